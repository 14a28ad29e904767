"""A run whose processes are killed, or hang, continues by itself and is the same run.

Training processes are forked from one that has imported everything, so that they start at once.
"""

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.finetune.test_resume import PATIENCE_SECONDS, happened
from tunesmith import train
from tunesmith.errors import Interrupted, NotFinite, ProcessDied, UserError
from tunesmith.evaluate.summary import summary
from tunesmith.finetune import control, job, launch, layout, recovery, watchdog, worker
from tunesmith.finetune.devices import Devices
from tunesmith.finetune.layout import Layout
from tunesmith.finetune.prepare import prepare
from tunesmith.machine import Gpu
from tunesmith.run import Run
from tunesmith.training import checkpoint, distributed, loop

TRAIN = {"max_steps": 12, "eval_every": 4, "save_every": 1, "processes": 2}
MOMENTS = ("in a step", "while a checkpoint is written", "while it starts")
GPUS = [Gpu(number, "RTX 3090", 24, 24, (8, 6), f"GPU-{number}") for number in range(3)]
work = worker.work


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(launch, "START_METHOD", "forkserver")


@pytest.fixture
def asked(recipe):
    def build(name: str = "run", kind: str = "lora", dropout: float = 0.1, **settings):
        return recipe(
            name=name,
            adapter={"kind": kind, "dropout": dropout},
            data={"eval_share": 0.1},
            train=TRAIN | settings,
        )

    return build


@pytest.fixture(scope="module")
def known() -> dict:
    return {}


@pytest.fixture
def whole(asked, known):
    """What happens in a run that nothing disturbs."""

    def find(**settings) -> dict:
        key = str(settings)
        if key not in known:
            known[key] = happened(job.train(asked("whole", **settings)))
        return known[key]

    return find


def noting(folder: Path) -> None:
    """A training process that writes its id into the run's folder."""
    (folder / f".process-{os.environ['RANK']}-{os.getpid()}").touch()
    work(folder)


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def alive(run: Run) -> dict[int, int]:
    """{rank: process id}"""
    known = (file.name.split("-")[1:] for file in run.folder.glob(".process-*"))
    return {int(rank): int(pid) for rank, pid in known if is_there(int(pid))}


def wait_until(is_so: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.002)


def last_step(run: Run) -> int:
    return max((event["step"] for event in run.events("step")), default=0)


def has_ended(run: Run) -> bool:
    return run.exists and run.result.exists()


class Killer(threading.Thread):
    """Kills training processes of a run, one after the other, each at a later step than the one before."""

    def __init__(self, run: Run, seed: int, kills: int, number: int = signal.SIGKILL, moments=MOMENTS, rank=None):
        super().__init__(daemon=True)
        self.victim, self.draw, self.left, self.killed = run, random.Random(seed), kills, 0
        self.number, self.moments, self.rank = number, moments, rank

    def run(self) -> None:
        wait_until(lambda: alive(self.victim))
        while self.left and not has_ended(self.victim):
            self.kill(self.draw.choice(self.moments))
            self.left -= 1

    def kill(self, moment: str) -> None:
        run, recovered = self.victim, self.victim.events("recovered")
        failed = [failed_at(event) for event in recovered]
        if moment == "while it starts":
            wait_until(lambda: alive(run) or has_ended(run))
            time.sleep(self.draw.uniform(0, 0.7))
        if moment != "while it starts" or not is_starting(run) or recovery.last_step(run) in failed:
            wait_until(lambda: last_step(run) > max(failed, default=0) or has_ended(run))
            if moment == "while a checkpoint is written":
                wait_until(lambda: list(run.checkpoints.glob(".step-*.tmp")) or has_ended(run))
            else:
                time.sleep(self.draw.uniform(0, 0.1))
        pids = alive(run)
        if pids and not has_ended(run):
            os.kill(pids[self.draw.choice(sorted(pids)) if self.rank is None else self.rank], self.number)
            self.killed += 1
            wait_until(lambda: len(run.events("recovered")) > len(recovered) or has_ended(run))


def failed_at(recovered: dict) -> int:
    """The step of the failure, at least that of the checkpoint: a process that starts does not know it yet."""
    return max(int(re.search(r"at step (\d+)", recovered["cause"])[1]), recovered["step"])


def is_starting(run: Run) -> bool:
    """Whether the processes that were started last have not begun with a step."""
    return next((e for e in reversed(run.events("start", "recovered"))), {}).get("event") != "start"


def train_and_kill(wanted, *arguments, **settings) -> tuple[Run, int]:
    """Returns the run, and how often a process was killed."""
    killer = Killer(Run(wanted.output / wanted.name), *arguments, **settings)
    killer.start()
    run = train(wanted)
    killer.join()
    return run, killer.killed


def test_a_run_whose_processes_are_killed_continues_and_is_the_same_run(asked, whole, monkeypatch, capfd):
    expected = whole(max_steps=24)
    monkeypatch.setattr(worker, "work", noting)
    run, killed = train_and_kill(asked(max_steps=24), seed=0, kills=3)
    assert happened(run) == expected
    recovered = run.events("recovered")
    assert killed == len(recovered) == 3 and {event["processes"] for event in recovered} == {2}
    assert all("SIGKILL" in event["cause"] and "\n" not in event["cause"] for event in recovered)
    screen = capfd.readouterr().err
    assert screen.count("recover ") == len(recovered) and "Traceback" not in screen
    assert not alive(run) and summary(run)["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_hundred_kills(asked, whole, monkeypatch, kind, processes):
    monkeypatch.setattr("tunesmith.machine.cores", lambda: 4)
    settings = {"kind": kind, "processes": processes, "max_steps": 80, "epochs": 9, "eval_every": 10}
    expected = whole(**settings)
    monkeypatch.setattr(worker, "work", noting)
    run, killed = train_and_kill(asked(**settings), seed=processes, kills=34)
    assert killed == len(run.events("recovered")) == 34
    assert happened(run) == expected and not alive(run)


def test_the_process_that_writes_a_checkpoint_is_killed_before_there_is_any_other(asked, whole, monkeypatch):
    settings = {"kind": "full", "save_every": 6, "eval_every": 100}
    expected = whole(**settings)
    monkeypatch.setattr(worker, "work", noting)
    run, killed = train_and_kill(asked(**settings), seed=1, kills=1, moments=["while a checkpoint is written"], rank=0)
    [recovered] = run.events("recovered")
    assert killed == 1 and recovered["step"] in (0, 6) and happened(run) == expected
    assert not list(run.folder.glob("**/.*.tmp"))


def test_a_stopped_process_ends_with_its_name(asked, whole, monkeypatch):
    monkeypatch.setattr(watchdog, "HANG_SECONDS", 3.0)
    monkeypatch.setattr(worker, "work", noting)
    expected = whole()
    run, _ = train_and_kill(asked(), seed=2, kills=1, number=signal.SIGSTOP, moments=["in a step"], rank=1)
    [recovered] = run.events("recovered")
    assert re.fullmatch(
        r"process 1 of 2 made no progress for 3 s at step \d+, .+: the process is stopped \(SIGSTOP\)",
        recovered["cause"],
    )
    assert happened(run) == expected and not alive(run)


def hanging_once(folder: Path) -> None:
    """A training process whose second layer never ends in step 3, the first time that it is computed."""
    learn = loop._learn

    def hang(module, inputs):
        (folder / ".hung").touch()
        time.sleep(10 * PATIENCE_SECONDS)

    def learn_or_hang(job, state, *others):
        if state.step == 3 and distributed.rank() == 1 and not (folder / ".hung").exists():
            job.model.base_model.model.model.layers[1].mlp.register_forward_pre_hook(hang)
        return learn(job, state, *others)

    loop._learn = learn_or_hang
    work(folder)


def test_a_process_that_hangs_in_a_layer_is_named_with_it(asked, whole, monkeypatch):
    monkeypatch.setattr(watchdog, "HANG_SECONDS", 3.0)
    expected = whole()
    monkeypatch.setattr(worker, "work", hanging_once)
    run = job.train(asked())
    assert [event["cause"] for event in run.events("recovered")] == [
        "process 1 of 2 made no progress for 3 s at step 3, layer 2 of 2, forward: no cause found"
    ]
    assert happened(run) == expected


def test_a_paused_run_does_not_hang(asked, monkeypatch):
    monkeypatch.setattr(watchdog, "HANG_SECONDS", 2.0)
    run = Run.create(asked(processes=1))
    prepare(Devices(run))

    def pause():
        wait_until(lambda: last_step(run) >= 2)
        control.request(run, "pause")
        wait_until(lambda: run.events("pause"))
        time.sleep(4.0)
        control.request(run, "run")

    pauser = threading.Thread(target=pause, daemon=True)
    pauser.start()
    with run.held():
        recovery.train_in_processes(run, Layout(1))
    pauser.join()
    assert run.events("continue") and not run.events("recovered") and run.result.exists()


@pytest.mark.parametrize("statuses, expected", [([0, 3, 0], [0, 2]), ([0, 1, None], [0, 1])])
def test_a_gpu_is_gone_if_it_does_not_answer_or_takes_forever(monkeypatch, statuses, expected):
    """A probe that fails for another reason says nothing about the GPU."""
    programs = {gpu.uuid: f"sys.exit({status})" for gpu, status in zip(GPUS, statuses)}
    programs |= {gpu.uuid: "import time; time.sleep(600)" for gpu, status in zip(GPUS, statuses) if status is None}
    popen = subprocess.Popen
    monkeypatch.setattr(
        layout.subprocess, "Popen", lambda command: popen([*command[:2], f"import sys; {programs[command[-1]]}"])
    )
    monkeypatch.setattr(layout, "PROBE_SECONDS", 3.0)
    assert [gpu.index for gpu in layout.answering_gpus(GPUS)] == expected


def dying_in_step_3(folder: Path) -> None:
    seed_batch = loop.seed_batch

    def seed_or_die(seed: int, step: int, row: int) -> None:
        if step == 3 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGBUS)
        seed_batch(seed, step, row)

    loop.seed_batch = seed_or_die
    work(folder)


def test_the_same_failure_at_the_same_step_ends_the_run(asked, whole, monkeypatch):
    expected = whole()
    wanted = asked()
    with monkeypatch.context() as patch:
        patch.setattr(worker, "work", dying_in_step_3)
        with pytest.raises(ProcessDied, match="process 1 of 2 died at step 3, forward: SIGBUS; the same .* ends here"):
            job.train(wanted)
    run = Run(wanted.output / "run")
    assert len(run.events("recovered")) == 1 and summary(run)["status"] == "error"
    assert happened(job.resume(run.folder)) == expected


def not_finite_in_step_3(folder: Path) -> None:
    check_step = loop.check_step

    def check_or_fail(settings, state, *others) -> None:
        if state.step == 3:
            raise NotFinite("step 3: injected")
        check_step(settings, state, *others)

    loop.check_step = check_or_fail
    work(folder)


def test_an_error_of_the_run_itself_is_not_tried_again(asked, monkeypatch):
    monkeypatch.setattr(worker, "work", not_finite_in_step_3)
    wanted = asked()
    with pytest.raises(NotFinite, match="step 3: injected"):
        job.train(wanted)
    run = Run(wanted.output / "run")
    assert not run.events("recovered") and summary(run)["status"] == "not_finite"
    assert checkpoint.complete(run.checkpoints)[-1].name == "step-000002"


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_run_resumed_with_another_number_of_processes_learns_the_same(asked, before, after):
    whole = job.train(asked("whole", dropout=0, processes=before))
    wanted = asked(dropout=0, processes=before)
    run = Run(wanted.output / "run")

    def stop():
        wait_until(lambda: run.folder.exists() and last_step(run) >= 4)
        control.request(run, "stop")

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    with pytest.raises(Interrupted):
        job.train(wanted)
    stopper.join()
    stopped = last_step(run)
    assert 4 <= stopped < TRAIN["max_steps"]
    assert job.resume(run.folder, processes=after).result.is_dir()
    [resumed] = run.events("resume")
    assert resumed["step"] == stopped and resumed["processes"] == after and run.plan.processes == before
    for kind in ("step", "eval"):
        expected = [event["loss"] for event in whole.events(kind)]
        assert [event["loss"] for event in run.events(kind)] == pytest.approx(expected, rel=1e-5)


def test_more_processes_than_cores_are_refused(asked, tmp_path):
    run = job.train(asked(max_steps=1))
    run.result.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"--processes: 0 asked"):
        job.resume(run.folder, processes=0)
    with pytest.raises(UserError, match=r"--processes: 4096 asked for, but this machine has \d+ cores"):
        job.resume(run.folder, processes=4096)


class PlannedForGpus:
    """What the layout reads of a run."""

    class plan:
        device, processes, gpus = "cuda", 3, ()


@pytest.mark.parametrize("there, expected", [(GPUS, GPUS), (GPUS[1:], GPUS[1:]), ([*GPUS, *GPUS], GPUS)])
def test_a_run_uses_what_is_left_of_its_gpus(monkeypatch, there, expected):
    monkeypatch.setattr("tunesmith.machine.find_gpus", lambda: ("600", there))
    assert layout.layout_of(PlannedForGpus, None) == Layout(len(expected), expected)
    with pytest.raises(UserError, match="--processes: 7 asked for, but this machine has . GPUs"):
        layout.layout_of(PlannedForGpus, 7)


@pytest.fixture
def launches(asked, monkeypatch):
    """Gives a function that trains on three GPUs, of which processes fail as told; returns the GPUs of each launch."""
    run = Run.create(asked())

    def start(answering: list[Gpu], *failures: launch.Failure) -> tuple[list, list]:
        left, used = list(failures), []

        def fail(entry, processes, folder, gpus):
            used.append([gpu.index for gpu in gpus])
            assert processes == len(gpus)
            if left:
                raise launch.Failed(left.pop(0))

        monkeypatch.setattr(launch, "launch", fail)
        monkeypatch.setattr(recovery, "answering_gpus", lambda gpus: [gpu for gpu in gpus if gpu in answering])
        recovery.train_in_processes(run, Layout(3, GPUS))
        return used, [event["processes"] for event in run.events("recovered")]

    return start


def failure(process: int, kind: str, step: int = 5, **settings) -> launch.Failure:
    return launch.Failure(process, step, kind, ProcessDied(f"process {process}: {kind}"), True, **settings)


def test_a_gpu_that_is_gone_or_hangs_is_left_out(launches):
    assert launches(GPUS, failure(1, "SIGKILL")) == ([[0, 1, 2], [0, 1, 2]], [3])


def test_a_gpu_that_no_longer_answers_is_left_out(launches):
    assert launches(GPUS[1:], failure(0, "CUDA error")) == ([[0, 1, 2], [1, 2]], [2])


def test_a_gpu_that_hangs_is_left_out(launches):
    hangs = [failure(1, "hang", gpu_suspected=True), failure(1, "hang", 7, gpu_suspected=True)]
    assert launches(GPUS, *hangs) == ([[0, 1, 2], [0, 2], [0]], [2, 1])


def test_the_last_gpu_ends_the_run(launches):
    with pytest.raises(ProcessDied, match="process 0: CUDA error; no GPU is left, so the run ends here"):
        launches([], failure(0, "CUDA error"))
