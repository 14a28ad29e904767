"""Whole runs log the energy that they take. The devices are stand-ins of known watts: NVML over a simulated GPU, and
powercap for a CPU. Time passes for them only where the tests say so."""

import os
import shutil
import sys
import time
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from tests import simulated_gpu
from tests.test_energy import ONE, TWO, Clock, Counting
from tunesmith import energy, resume, train
from tunesmith.cli.progress import Screen
from tunesmith.cli.runs import show_run
from tunesmith.energy import Meter, counters_of
from tunesmith.evaluate import heldout
from tunesmith.evaluate.summary import summary
from tunesmith.files import write_atomic
from tunesmith.finetune import control, launch, worker
from tunesmith.run import Run
from tunesmith.training import checkpoint, distributed, loop, step
from tunesmith.units import number

WATTS = 200.0
STEP, EVALUATION, PAUSE, LOADING = 3.0, 20.0, 500.0, 7.0  # seconds
TRAIN = {"max_steps": 4, "eval_every": 2, "save_every": 2}


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """Passes in passes of the loop, in evaluations and while the model is loaded."""
    clock = Clock()

    def lasts(seconds, inner):
        def call(*args, **kwargs):
            clock.seconds += seconds
            return inner(*args, **kwargs)

        return call

    monkeypatch.setattr(loop, "_gradients", lasts(STEP, loop._gradients))
    monkeypatch.setattr(heldout, "row_losses", lasts(EVALUATION, heldout.row_losses))
    monkeypatch.setattr(worker, "build", lasts(LOADING, worker.build))
    return clock


@pytest.fixture
def nvml(clock, monkeypatch) -> Counting:
    """The stand-in of the driver on a machine with two simulated GPUs, the first of which trains."""
    driver = Counting(clock, {ONE: WATTS, TWO: 70.0})
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver


@contextmanager
def gpu_machine(patch: pytest.MonkeyPatch):
    with simulated_gpu.played(), patch.context() as patch:
        patch.setenv("PYTORCH_ALLOC_CONF", "as it is here")
        patch.setattr("tunesmith.finetune.prepare.probe", lambda folder: simulated_gpu.MACHINE)
        patch.setattr("tunesmith.finetune.prepare.usable_gpus", lambda devices, gpus, *_: gpus)
        patch.setattr("tunesmith.finetune.prepare.surely_fits", lambda *_: True)  # nothing is traced
        patch.setattr("tunesmith.finetune.job.usable_gpus", lambda devices, gpus, *_: gpus)
        own = SimpleNamespace(major=9, minor=0, total_memory=2**33, name="a GPU", uuid=ONE.removeprefix("GPU-"))
        patch.setattr(torch.cuda, "get_device_properties", lambda *_: own)
        yield


@pytest.fixture
def on_gpu(monkeypatch):
    """Calls a function on a machine with GPUs."""

    def call(function, *args):
        with gpu_machine(monkeypatch):
            return function(*args)

    return call


@pytest.fixture
def asked(recipe):
    def build(name="run", **train):
        return recipe(
            name=name, train=TRAIN | train, data={"eval_share": 0.1}, power={"host_watts": 80.0, "price_per_kwh": 0.5}
        )

    return build


def joules(run: Run) -> list[float | None]:
    return [event.get("joules") for event in run.events("step")]


def joules_logged(run: Run) -> list[float]:
    return [event["joules"] for event in run.events("energy")]


def lines(run: Run) -> list[str]:
    """What the events of a run show on a screen."""
    out = StringIO()
    screen = Screen(run.recipe, Console(file=out, width=1000))
    for event in run.events():
        screen.show(event["event"], {name: value for name, value in event.items() if name != "event"})
    return out.getvalue().splitlines()


def shown(run: Run) -> str:
    console = Console(width=1000, color_system=None)
    with console.capture() as capture:
        console.print(show_run(run))
    return capture.get()


def test_steps_have_their_joules_and_the_run_all_of_them(asked, nvml, on_gpu):
    run = on_gpu(train, asked())
    assert joules(run) == [WATTS * STEP] * 4
    whole = WATTS * (LOADING + 4 * STEP + 4 * EVALUATION)  # before, twice in training, and after
    assert run.events("energy")[-1]["joules"] == whole and joules_logged(run) == sorted(joules_logged(run))

    tokens = sum(event["tokens"] for event in run.events("step"))
    host = 80 * run.events("energy")[-1]["seconds"]
    found = summary(run)
    assert found["joules"] == whole and found["joules_per_token"] == pytest.approx(4 * WATTS * STEP / tokens)
    assert found["kwh"] == pytest.approx((whole + host) / 3.6e6) and found["price"] == pytest.approx(0.5 * found["kwh"])
    said = f"{whole / 3600:.1f} Wh of the GPUs, {number(found['joules_per_token'])} J a token; "
    assert said in shown(run) and said in lines(run)[-1] and "of the host, 0.00 at 0.5 a kWh" in shown(run)


def test_a_resumed_run_adds_up_its_sessions(asked, nvml, on_gpu):
    """Also those steps that a resume repeats."""
    run = on_gpu(train, asked())
    before = run.events("energy")[-1]["joules"]
    for folder in (run.result, *checkpoint.complete(run.checkpoints)[1:]):
        shutil.rmtree(folder)
    nvml.began -= 10**6  # the driver counts what others take meanwhile
    on_gpu(resume, run.folder)
    assert joules(run) == [WATTS * STEP] * 4
    again = WATTS * (LOADING + 2 * STEP + 2 * EVALUATION)
    assert run.events("energy")[-1]["joules"] == before + again


def test_a_pause_takes_no_energy(asked, nvml, on_gpu, clock, monkeypatch):
    wanted = asked()
    run = Run(wanted.output / wanted.name)
    learn = loop._gradients

    def pausing(job, state, *args):
        if state.step == 1:
            control.request(run, "pause")
        return learn(job, state, *args)

    def sleep(_):
        clock.seconds += PAUSE
        control.request(run, "run")

    monkeypatch.setattr(loop, "_gradients", pausing)
    monkeypatch.setattr(step, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    on_gpu(train, wanted)
    assert run.events("pause") and clock.seconds > PAUSE and joules(run) == [WATTS * STEP] * 4
    assert run.events("energy")[-1]["joules"] == WATTS * (clock.seconds - PAUSE)


def test_a_gpu_that_reports_nothing_is_logged_once_and_trains_the_same(asked, nvml, on_gpu):
    known = [event["loss"] for event in on_gpu(train, asked(name="known")).events("step")]
    nvml.has_counter = nvml.has_power = False
    run = on_gpu(train, asked())
    assert [event["loss"] for event in run.events("step")] == known and joules(run) == [None] * 4
    [event] = run.events("energy")
    assert event["joules"] is None and summary(run)["kwh"] is None and summary(run)["price"] is None
    assert f"unknown: the driver reports neither energy nor power of {ONE}" in shown(run)
    assert not [line for line in lines(run) if line.startswith("energy")]


def test_the_first_process_reads_all_gpus_of_its_machine(recipe, nvml, clock, monkeypatch, on_gpu):
    run = Run.create(recipe())
    monkeypatch.setattr(distributed, "gather_here", lambda own: [own, TWO])
    meter = on_gpu(worker._meter, run, simulated_gpu.GPU)
    clock.seconds += 10
    assert meter.joules() == 2700
    monkeypatch.setattr(distributed, "is_first_here", lambda: False)
    assert on_gpu(worker._meter, run, simulated_gpu.GPU).joules() == 0
    meter.close()


def test_a_step_does_not_wait_for_the_meters_of_other_machines(nvml, clock, monkeypatch):
    meter = Meter(counters_of("cuda", [ONE]))
    job = SimpleNamespace(meter=meter)
    clock.seconds += 1
    assert step.energy_fields(job, 50.0) == {"joules": WATTS - 50}
    monkeypatch.setattr(distributed, "is_one_machine", lambda: False)
    assert step.energy_fields(job, 50.0) == {}
    meter.close()


def test_an_earlier_part_that_was_not_measured_makes_the_whole_unknown(recipe, nvml, on_gpu):
    run = Run.create(recipe())
    run.log("step", step=1)
    assert "before the run was resumed" in on_gpu(worker._meter, run, simulated_gpu.GPU).unknown
    run.log("energy", device="cuda", joules=5.0, seconds=2.0)
    meter = on_gpu(worker._meter, run, simulated_gpu.GPU)
    assert meter.joules() == 5 and meter.seconds >= 2
    meter.close()
    run.log("energy", device="cuda", joules=None, seconds=2.0, unknown="made up")
    assert on_gpu(worker._meter, run, simulated_gpu.GPU).joules() is None


def counting(folder: Path, machines: int) -> None:
    """A training process on a CPU, whose package takes 10 J in each step, on the second machine 20 J."""
    rank, learn = int(os.environ["RANK"]), loop._gradients
    zone = folder / f"powercap-{rank % machines}" / "intel-rapl:0"
    energy.POWERCAP, is_first_here = zone.parent, rank < machines
    if is_first_here:
        zone.mkdir(parents=True)
        (zone / "name").write_text("package-0")
        (zone / "energy_uj").write_text("0")
    if machines > 1:
        os.environ[distributed.MACHINE] = str(rank)

    def take(*args):
        if is_first_here:
            taken = int((zone / "energy_uj").read_text()) + 10**7 * (rank + 1)
            write_atomic(zone / "energy_uj", str(taken))
        return learn(*args)

    loop._gradients = take
    worker.work(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("machines", "of_step", "of_all"), [(1, 10, 10), (2, None, 30)])
def test_processes_read_each_machine_once(asked, monkeypatch, machines, of_step, of_all):
    """On several machines, only their sum is known, and not that of each step."""
    start = launch.launch
    monkeypatch.setattr(launch, "launch", lambda entry, processes, folder: start(counting, processes, folder, machines))
    run = train(asked(processes=2))
    assert joules(run) == [of_step] * 4 and run.events("energy")[-1]["joules"] == of_all * 4
    assert "of the CPU" in shown(run) and "of the CPU" in lines(run)[-1]
