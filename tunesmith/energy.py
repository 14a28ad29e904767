"""The energy that the devices of a run take, from their own counters. No torch.

A GPU counts its joules (NVML), or reports its power, which is added up here. A CPU counts them in Linux's powercap,
which only root may read on most systems. Whatever a driver does not report is unknown, and never an error.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tunesmith.machine import gpu_joules, gpu_watts

POWERCAP = Path("/sys/class/powercap")
SECONDS_BETWEEN_SAMPLES = 1.0  # a CPU's counter wraps after some minutes, and power must be added up
PATIENCE_SECONDS = 5.0  # for a driver to answer; one whose GPU hangs may never do

Read = Callable[[], float | None]
Clock = Callable[[], float]


class Unknown(Exception):
    """The energy is not known; the message says why."""


class Counter:
    """The joules that a device took since this object was made."""

    def __init__(self, read: Read, wraps_at: float = 0.0):
        """`read`: joules of the device's own counter, None if it does not report them. `wraps_at`: joules after which
        that counter begins at 0 again."""
        self.joules = 0.0
        self._read, self._wraps_at = read, wraps_at
        self._last = self._answer()

    def sample(self) -> None:
        """Adds what was taken since the last sample. Raises Unknown."""
        now = self._answer()
        # A counter that is lower without having wrapped was reset, and the joules since the last sample are lost.
        self.joules += now - self._last if now >= self._last else max(0.0, now + self._wraps_at - self._last)
        self._last = now

    def _answer(self) -> float:
        joules = self._read()
        if joules is None:
            raise Unknown("a device stopped reporting its energy")
        return joules


class PowerSum:
    """A counter made of the power that a device reports: joules since the first call, None if it reports none."""

    def __init__(self, read_watts: Read, clock: Clock):
        self._read_watts, self._clock = read_watts, clock
        self._joules, self._last = 0.0, (clock(), read_watts())

    def __call__(self) -> float | None:
        (then, before), (now, after) = self._last, (self._clock(), self._read_watts())
        if before is None or after is None:
            return None
        self._joules += (now - then) * (before + after) / 2
        self._last = now, after
        return self._joules


def counters_of(device: str, uuids: Sequence[str] = (), clock: Clock = time.monotonic) -> list[Counter]:
    """The counters of GPUs (`device`: cuda), or of this machine's CPUs (cpu). Raises Unknown if one has none."""
    return [_gpu_counter(uuid, clock) for uuid in uuids] if device == "cuda" else _cpu_counters()


def _gpu_counter(uuid: str, clock: Clock) -> Counter:
    joules = partial(gpu_joules, uuid)
    if joules() is not None:
        return Counter(joules)
    watts = partial(gpu_watts, uuid)
    if watts() is None:
        raise Unknown(f"the driver reports neither energy nor power of {uuid or 'the GPU'}")
    return Counter(PowerSum(watts, clock))


def _cpu_counters() -> list[Counter]:
    """A counter for each CPU socket, memory not included."""
    zones = [zone for zone in sorted(POWERCAP.glob("intel-rapl:*")) if _text(zone / "name").startswith("package")]
    if not zones:
        raise Unknown("this system does not count the energy of its CPU")
    if unreadable := [zone for zone in zones if _joules(zone / "energy_uj") is None]:
        raise Unknown(f"{unreadable[0] / 'energy_uj'} cannot be read, which is usual for users other than root")
    return [
        Counter(partial(_joules, zone / "energy_uj"), _joules(zone / "max_energy_range_uj") or 0.0) for zone in zones
    ]


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _joules(microjoules: Path) -> float | None:
    text = _text(microjoules).strip()
    return int(text) / 1e6 if text.isdigit() else None


class Meter:
    """Adds up the joules and the seconds of a run, without its pauses. It asks the driver in a thread of its own,
    because one whose GPU hangs may never answer, and training must not wait for that."""

    def __init__(
        self,
        counters: Sequence[Counter] = (),
        unknown: str = "",
        joules: float = 0.0,
        seconds: float = 0.0,
        clock: Clock = time.monotonic,
    ):
        """`unknown`: why the energy is not known. `joules` and `seconds`: of the run so far, before it was resumed."""
        self.unknown = unknown
        self.is_reported_unknown = False
        self._counters, self._clock = counters, clock
        self._before, self._began, self._counted = joules, clock() - seconds, 0.0
        self._questions: queue.SimpleQueue[threading.Event | None] = queue.SimpleQueue()
        if counters and not unknown:
            threading.Thread(target=self._serve, name="energy", daemon=True).start()

    @property
    def seconds(self) -> float:
        return self._clock() - self._began

    def joules(self) -> float | None:
        """The joules so far, None if they are unknown. What is unknown once stays so."""
        if self._counters and not self.unknown:
            answered = threading.Event()
            self._questions.put(answered)
            if not answered.wait(PATIENCE_SECONDS):
                self.unknown = f"the driver did not report the energy within {PATIENCE_SECONDS:g} s"
        return None if self.unknown else self._before + self._counted

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is taken within it."""
        joules, began = self.joules(), self._clock()
        yield
        after = self.joules()
        if joules is not None and after is not None:
            self._before -= after - joules
        self._began += self._clock() - began

    def close(self) -> None:
        """Ends the thread."""
        self._questions.put(None)

    def _serve(self) -> None:
        while True:
            try:
                question = self._questions.get(timeout=SECONDS_BETWEEN_SAMPLES)
                if question is None:
                    return
            except queue.Empty:
                question = None
            if not self.unknown:
                self._sample()
            if question:
                question.set()

    def _sample(self) -> None:
        try:
            for counter in self._counters:
                counter.sample()
        except Unknown as reason:
            self.unknown = str(reason)
        self._counted = sum(counter.joules for counter in self._counters)
