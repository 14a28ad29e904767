"""What a signal does to a launcher and its training processes."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tunesmith.errors import Interrupted
from tunesmith.finetune import job, launch, signals
from tunesmith.finetune.worker import work as worker_work
from tunesmith.machine import Gpu
from tunesmith.run import Run
from tunesmith.training import checkpoint, distributed, loop

PATIENCE_SECONDS = 240
STOPPED = 130
GPUS = [Gpu(number, "RTX 3090", 24, 24, (8, 6), f"GPU-{number}") for number in (1, 3)]


@pytest.fixture(autouse=True)
def preloaded(monkeypatch):
    """Processes are forked from one that has imported this module, because importing torch takes seconds."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    monkeypatch.setattr(launch, "START_METHOD", "forkserver")


def wait_for(is_so) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.01)


@pytest.mark.parametrize("ignored", [True, False])
def test_a_hangup_that_is_ignored_stays_so(ignored):
    came = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)  # as nohup does
    try:
        with signals.on_signals(lambda number, frame: came.append(number)):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert came == ([signal.SIGTERM] if ignored else [signal.SIGHUP, signal.SIGTERM])
    finally:
        signal.signal(signal.SIGHUP, before)


def saves_when_told(folder: Path) -> None:
    """Asked to stop, it takes until a file is there, and ends well, as a run does that was at its end already."""
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    (folder / f"process-{os.getpid()}").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
    wait_for(lambda: asked)
    (folder / f"asked-{os.getpid()}").touch()
    wait_for((folder / "go").exists)
    (folder / f"saved-{os.getpid()}").touch()


def hears_nothing(folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"process-{os.getpid()}").touch()
    wait_for(lambda: False)


def launch_two(entry, folder: Path) -> None:
    launch.START_METHOD = "fork"
    signals.SECOND_SIGNAL_AFTER_SECONDS = 0
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 2)
    try:
        launch.launch(entry, 2, folder, gpus=GPUS)
    except Interrupted:
        os._exit(STOPPED)


@pytest.fixture
def launched(tmp_path):
    """Gives a launcher whose two processes are at work, and which has got a signal."""

    def start(entry, number=signal.SIGTERM):
        launcher = multiprocessing.get_context("forkserver").Process(target=launch_two, args=(entry, tmp_path))
        launcher.start()
        wait_for(lambda: count(tmp_path, "process") == 2)
        os.kill(launcher.pid, number)
        if number == signal.SIGKILL:
            return launcher
        wait_for(lambda: (tmp_path / "output").read_text().count("a second signal stops at once") == 1)
        return launcher

    return start


def count(folder: Path, kind: str) -> int:
    return len(list(folder.glob(f"{kind}-*")))


def ended(launcher) -> int:
    launcher.join(PATIENCE_SECONDS)
    assert launcher.exitcode is not None, "it hangs"
    return launcher.exitcode


@pytest.mark.parametrize("seconds", [0, pytest.param(40, marks=pytest.mark.slow)])
def test_it_waits_as_long_as_saving_takes(launched, tmp_path, seconds):
    launcher = launched(saves_when_told)
    wait_for(lambda: count(tmp_path, "asked") == 2)
    time.sleep(seconds)  # torch's launcher would wait for 30
    assert launcher.is_alive()
    (tmp_path / "go").touch()
    assert ended(launcher) == 0 and count(tmp_path, "saved") == 2
    assert {file.read_text() for file in tmp_path.glob("process-*")} == {"GPU-1,GPU-3"}


def test_a_second_signal_kills(launched, tmp_path):
    launcher = launched(hears_nothing)
    os.kill(launcher.pid, signal.SIGTERM)
    assert ended(launcher) == STOPPED
    for file in tmp_path.glob("process-*"):
        assert not Path("/proc", file.name.removeprefix("process-")).exists()


def test_processes_end_with_a_launcher_that_is_killed(launched, tmp_path):
    launched(hears_nothing, signal.SIGKILL)
    wait_for(
        lambda: not any(Path("/proc", file.name.partition("-")[2]).exists() for file in tmp_path.glob("process-*"))
    )


def second_dies(folder: Path) -> None:
    """One process is killed while the other does something long that no exchange ends."""
    (folder / f"process-{os.getpid()}").touch()
    wait_for(lambda: count(folder, "process") == 2)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10 * PATIENCE_SECONDS)


def second_raises(folder: Path) -> None:
    distributed.join("cpu")
    if distributed.rank() == 1:
        raise KeyError("injected")
    distributed.wait()


def second_loses_its_gpu(folder: Path) -> None:
    distributed.join("cpu")
    if distributed.rank() == 1:
        raise RuntimeError("CUDA error: unspecified launch failure")
    distributed.wait()


@pytest.mark.parametrize(
    "entry, kind, may_pass, message",
    [
        (second_dies, "SIGKILL", True, "died at step 0, starting: SIGKILL, as the system does when memory runs out"),
        (second_raises, "KeyError", False, "died at step 0: KeyError: 'injected'\nTraceback"),
        (
            second_loses_its_gpu,
            "CUDA error",
            True,
            "died at step 0: RuntimeError: CUDA error: unspecified launch failure",
        ),
    ],
    ids=["dies", "raises", "gpu"],
)
def test_all_end_when_one_does_and_it_is_the_one_that_is_named(tmp_path, entry, kind, may_pass, message):
    with pytest.raises(launch.Failed) as raised:
        launch.launch(entry, 2, tmp_path)
    failure = raised.value.failure
    assert (failure.process, failure.kind, failure.may_pass) == (1, kind, may_pass)
    assert str(failure.error).startswith(f"training process 1 of 2 {message}")
    for file in tmp_path.glob("process-*"):
        assert not Path("/proc", file.name.removeprefix("process-")).exists()


def saves_slowly(folder: Path) -> None:
    """A training process whose launcher gets a signal at step 2, and which is still saving when the other is done."""
    save, seed_batch = checkpoint.save, loop.seed_batch

    def take_longer(folder, contents):
        time.sleep(2 * signals.SECOND_SIGNAL_AFTER_SECONDS)
        return save(folder, contents)

    def note(seed, step, row):
        seed_batch(seed, step, row)
        if step == 2 and distributed.rank() == 0:
            os.kill(multiprocessing.parent_process().pid, signal.SIGTERM)  # getppid would be the fork server

    checkpoint.save, loop.seed_batch = take_longer, note
    worker_work(folder)


@pytest.mark.slow
def test_no_process_ends_while_another_saves(recipe, monkeypatch, capfd):
    monkeypatch.setattr("tunesmith.finetune.worker.work", saves_slowly)
    asked = recipe(train={"processes": 2})
    with pytest.raises(Interrupted, match="continues it"):
        job.train(asked)
    run = Run(asked.output / "run")
    [stop] = run.events("stop")
    assert stop["reason"] == "interrupted"
    assert [found.name for found in checkpoint.complete(run.checkpoints)] == [f"step-{stop['step']:06d}"]
    assert "a second signal stops at once" in capfd.readouterr().err
