"""The meter adds up what devices count. NVML and powercap are stand-ins: GPUs of known watts, and a clock that the
tests move."""

import sys
import threading
from itertools import count

import pytest

from tests.test_machine import Driver, NotSupported
from tunesmith import energy
from tunesmith.energy import Counter, Meter, PowerSum, Unknown, counters_of

ONE, TWO = "GPU-1", "GPU-2"


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Counting(Driver):
    """NVML of GPUs that draw constant watts: {UUID: watts}. `began`: the clock when the driver was loaded."""

    def __init__(self, clock: Clock, watts: dict[str, float]):
        super().__init__(dict.fromkeys(watts, ("a GPU", (12, 11), (8, 6))), {})
        self.clock, self.watts, self.began = clock, watts, -1000.0
        self.has_counter = self.has_power = True

    def nvmlDeviceGetTotalEnergyConsumption(self, uuid):
        if not self.has_counter:
            raise NotSupported
        return int(self.watts[uuid] * (self.clock() - self.began) * 1000)

    def nvmlDeviceGetPowerUsage(self, uuid):
        if not self.has_power:
            raise NotSupported
        return int(self.watts[uuid] * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def driver(monkeypatch, clock) -> Counting:
    found = Counting(clock, {ONE: 250.0, TWO: 100.0})
    monkeypatch.setitem(sys.modules, "pynvml", found)
    return found


@pytest.fixture
def meter(clock, monkeypatch):
    """Makes meters, which sample only when they are read, and ends their threads."""
    monkeypatch.setattr(energy, "SECONDS_BETWEEN_SAMPLES", 3600.0)
    made = []

    def make(*args, **kwargs) -> Meter:
        made.append(Meter(*args, clock=clock, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_gpus_are_added_up_by_uuid(driver, clock, meter):
    both, second = (meter(counters_of("cuda", uuids, clock)) for uuids in ([ONE, TWO], [TWO]))
    assert both.joules() == 0
    clock.seconds = 10
    assert (both.joules(), second.joules(), both.seconds) == (3500, 1000, 10)


def test_a_gpu_without_a_counter_has_its_power_added_up(driver, clock, meter):
    driver.has_counter = False
    found = meter(counters_of("cuda", [ONE], clock))
    clock.seconds = 4
    assert found.joules() == 1000
    driver.watts[ONE] = 350.0  # it rose evenly, for all that is known
    clock.seconds = 6
    assert found.joules() == 1600


def test_a_run_that_was_resumed_continues_its_account(driver, clock, meter):
    found = meter(counters_of("cuda", [ONE], clock), joules=5000.0, seconds=60.0)
    clock.seconds = 2
    assert (found.joules(), found.seconds) == (5500, 62)


def test_a_pause_is_left_out(driver, clock, meter):
    found = meter(counters_of("cuda", [ONE], clock))
    clock.seconds = 2
    with found.paused():
        clock.seconds = 100
    clock.seconds = 101
    assert (found.joules(), found.seconds) == (750, 3)


def test_a_counter_that_was_reset_loses_no_more_than_since_the_last_sample(driver, clock, meter):
    found = meter(counters_of("cuda", [ONE], clock))
    clock.seconds = 3
    assert found.joules() == 750
    driver.began = clock.seconds = 4
    assert found.joules() == 750
    clock.seconds = 6
    assert found.joules() == 1250


def test_a_counter_that_wraps_counts_on():
    values = iter([9.0, 9.5, 0.5, 2.0])
    counter = Counter(lambda: next(values), wraps_at=10.0)
    seen = []
    for _ in range(3):
        counter.sample()
        seen.append(counter.joules)
    assert seen == [0.5, 1.5, 3.0]


@pytest.mark.parametrize("uuid", [ONE, "GPU-gone", ""])
def test_a_gpu_that_reports_nothing_is_unknown(driver, uuid):
    driver.has_counter = driver.has_power = False
    with pytest.raises(Unknown, match="the driver reports neither energy nor power"):
        counters_of("cuda", [TWO, uuid])


def test_what_becomes_unknown_stays_so(driver, clock, meter):
    found = meter(counters_of("cuda", [ONE, TWO], clock))
    clock.seconds = 1
    assert found.joules() == 350
    driver.has_counter = False
    assert found.joules() is None and found.unknown == "a device stopped reporting its energy"
    driver.has_counter = True
    with found.paused():
        assert found.joules() is None
    assert found.seconds == 1


def test_without_a_driver_it_is_unknown():
    """With the real NVML, which finds no library on a machine without a driver, or no GPU of this name."""
    with pytest.raises(Unknown):
        counters_of("cuda", [ONE])


def test_a_driver_that_does_not_answer_is_not_waited_for(monkeypatch, meter):
    monkeypatch.setattr(energy, "PATIENCE_SECONDS", 0.05)
    released, calls = threading.Event(), count()

    def hangs() -> float:
        if next(calls):
            released.wait()
        return 1.0

    found = meter([Counter(hangs)])
    assert found.joules() is None and found.joules() is None
    released.set()
    assert "did not report the energy" in found.unknown


def test_it_samples_by_itself(monkeypatch, meter):
    """So that no counter wraps unseen, and power is added up."""
    monkeypatch.setattr(energy, "SECONDS_BETWEEN_SAMPLES", 0.001)
    often, calls = threading.Event(), count()

    def read() -> float:
        if next(calls) > 3:
            often.set()
        return 0.0

    meter([Counter(read)])
    assert often.wait(60)


def test_a_process_that_is_not_the_first_measures_nothing(meter):
    threads = threading.active_count()
    assert meter().joules() == 0 and meter(unknown="why").joules() is None and threading.active_count() == threads


def test_power_that_is_no_longer_reported_is_unknown(clock):
    watts = [100.0, None]
    found = PowerSum(lambda: watts.pop(0), clock)
    assert found() is None


@pytest.fixture
def zones(tmp_path, monkeypatch):
    """Powercap as Linux has it for two sockets: their packages, and parts of a package."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)

    def write(zone: str, name: str, microjoules: int) -> None:
        folder = tmp_path / zone
        folder.mkdir(exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")

    write("intel-rapl:0", "package-0", 262_143_000_000)
    write("intel-rapl:0:0", "core", 5)
    write("intel-rapl:1", "package-1", 7)
    write("intel-rapl:2", "psys", 7)
    write("intel-rapl-mmio:0", "package-0", 7)
    return write


def test_cpu_packages_are_counted_once_and_wrap(zones, meter):
    found = meter(counters_of("cpu"))
    zones("intel-rapl:0", "package-0", 671_150)
    zones("intel-rapl:0:0", "core", 10**9)
    zones("intel-rapl:1", "package-1", 2_000_007)
    zones("intel-rapl:2", "psys", 10**9)
    zones("intel-rapl-mmio:0", "package-0", 10**9)
    assert found.joules() == pytest.approx(3.0)


def test_a_cpu_counter_that_cannot_be_read_is_unknown(zones, tmp_path):
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()  # as one without permission: root may read any file
    with pytest.raises(Unknown, match="intel-rapl:1/energy_uj cannot be read"):
        counters_of("cpu")


def test_a_cpu_without_counters_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "powercap")
    with pytest.raises(Unknown, match="does not count"):
        counters_of("cpu")
