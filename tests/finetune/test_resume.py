"""A run that was killed or stopped, and resumed, is the same run: same losses, same evaluations, same bytes.

Commands run in processes of their own, forked from one that has imported everything, so that each starts at once.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tunesmith.errors import Interrupted
from tunesmith.evaluate import summary
from tunesmith.finetune import job, signals, worker
from tunesmith.run import Run
from tunesmith.training import checkpoint
from tunesmith.training import loop as training

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["tunesmith.cli.main", "tunesmith.finetune.worker", "peft", "transformers.models.llama.modeling_llama"]
)
PATIENCE_SECONDS = 240
TRAIN = {"max_steps": 12, "eval_every": 3, "save_every": 1}


class Command:
    """`tunesmith ARGUMENTS` in a process of its own."""

    def __init__(self, folder: Path, *arguments: str | Path):
        self.output = folder / f"output-{time.monotonic_ns()}"
        self.process = FORKED.Process(target=_command, args=(list(map(str, arguments)), self.output))
        self.process.start()

    def status(self) -> int:
        """Waits for the exit status; minus the number of a signal that killed it."""
        self.process.join(PATIENCE_SECONDS)
        assert self.process.exitcode is not None, "it hangs"
        return self.process.exitcode

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait_for(self, folder: Path, pattern: str) -> list[Path]:
        """Until the folder has such a path, or the process ended without."""
        while not (found := list(folder.glob(pattern))) and self.process.is_alive():
            time.sleep(0.0005)
        return found

    def send(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, number)


def _command(arguments: list[str], output: Path) -> None:
    from tunesmith.cli import main

    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["tunesmith", *arguments]
    main.main()


def happened(run: Run) -> dict:
    """What must not depend on whether the run was interrupted."""
    [weights] = run.result.glob("*.safetensors")
    return {
        "losses": [(e["step"], e["loss"]) for e in run.events("step")],
        "evaluations": [(e["step"], e["loss"]) for e in run.events("eval") if e["step"]],
        "weights": weights.read_bytes(),
    }


@pytest.fixture
def asked(recipe):
    """A recipe in which random numbers matter where there are any: LoRA dropout."""

    def build(kind: str, name: str, **train):
        return recipe(name=name, adapter={"kind": kind, "dropout": 0.1}, data={"eval_share": 0.1}, train=TRAIN | train)

    return build


@pytest.fixture
def started(asked, tmp_path):
    """Gives the run and the running `tunesmith train` of a kind of adapter."""

    def start(kind: str, name: str = "run", **train) -> tuple[Run, Command]:
        wanted = asked(kind, name, **train)
        file = tmp_path / f"{name}.yaml"
        file.write_text(wanted.dump())
        return Run(wanted.output / name), Command(tmp_path, "train", file)

    return start


@pytest.fixture(scope="module")
def known() -> dict:
    return {}


@pytest.fixture
def uninterrupted(started, known):
    """What happened in the run of a kind of adapter that nothing disturbed."""

    def find(kind: str) -> dict:
        if kind not in known:
            run, command = started(kind, "whole")
            assert command.status() == 0, command.text()
            known[kind] = happened(run)
            assert len(known[kind]["losses"]) == TRAIN["max_steps"]
        return known[kind]

    return find


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_killed_while_saving(started, uninterrupted, tmp_path, kind):
    run, command = started(kind)
    assert command.wait_for(run.checkpoints, "step-000002")
    command.wait_for(run.checkpoints, ".step-*.tmp")
    command.send(signal.SIGKILL)
    assert command.status() == -signal.SIGKILL
    resumed = Command(tmp_path, "resume", run.folder)
    assert resumed.status() == 0, resumed.text()
    assert happened(run) == uninterrupted(kind)
    assert not list(run.folder.glob("**/.*.tmp"))


def test_a_run_that_is_going_on_is_not_resumed(started, tmp_path):
    run, command = started("lora")
    assert command.wait_for(run.checkpoints, "step-000001")
    command.send(signal.SIGSTOP)
    try:
        before = None
        while before != (before := run.events_file.read_bytes()):  # until it has stopped
            time.sleep(0.5)
        status = summary.summary(run)["status"]
        second = Command(tmp_path, "resume", run.folder)
        assert second.status() == 2 and status == "running"
        assert run.events_file.read_bytes() == before
        assert second.text().splitlines()[-1] == (
            f"tunesmith: {run.folder}: another process ({command.process.pid}) works on this run; stop that one first "
            f"(`tunesmith runs stop {run.folder}`), or wait for its end"
        )
        assert "Traceback" not in second.text()
    finally:
        command.send(signal.SIGKILL)
    assert command.status() == -signal.SIGKILL
    assert summary.summary(run)["status"] == "cut off"
    third = Command(tmp_path, "resume", run.folder)
    assert third.status() == 0, third.text()
    assert summary.summary(run)["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_moments(started, uninterrupted, tmp_path, seed):
    kind = ("lora", "full")[seed % 2]
    expected = uninterrupted(kind)
    moments = random.Random(seed)
    run, command = started(kind)
    command.wait_for(run.folder, "recipe.yaml")
    for _ in range(6):
        time.sleep(moments.uniform(0, 6))
        command.send(signal.SIGKILL)
        if command.status() == 0 or run.result.exists():  # killed, perhaps, when all was done
            break
        command = Command(tmp_path, "resume", run.folder)
    assert command.status() == 0 or run.result.exists(), command.text()
    assert happened(run) == expected


@pytest.mark.parametrize("kind, number", [("lora", signal.SIGINT), ("full", signal.SIGTERM)])
def test_stopped_by_a_signal(started, uninterrupted, tmp_path, kind, number):
    run, command = started(kind)
    assert command.wait_for(run.checkpoints, "step-000001")
    command.send(number)
    assert command.status() == 130, command.text()
    *_, stop = run.events("stop")
    assert stop["reason"] == "interrupted"
    assert command.text().splitlines()[-1] == (
        f"tunesmith: stopped at step {stop['step']}; `tunesmith resume {run.folder}` continues it"
    )
    assert "Traceback" not in command.text()
    assert checkpoint.complete(run.checkpoints)[-1].name == f"step-{stop['step']:06d}"
    resumed = Command(tmp_path, "resume", run.folder)
    assert resumed.status() == 0, resumed.text()
    assert happened(run) == uninterrupted(kind)


def interrupt_at(monkeypatch, step: int) -> None:
    """Sends SIGINT to this process as a step begins, which has one micro-batch."""
    seed_batch = training.seed_batch

    def seed_and_interrupt(seed: int, now: int, row: int) -> None:
        seed_batch(seed, now, row)
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(training, "seed_batch", seed_and_interrupt)


@pytest.mark.parametrize("step", [1, TRAIN["eval_every"], TRAIN["max_steps"]])
def test_an_interruption_moves_no_evaluation(asked, uninterrupted, monkeypatch, step):
    whole = uninterrupted("lora")
    interrupt_at(monkeypatch, step)
    wanted = asked("lora", "interrupted")
    with pytest.raises(Interrupted):
        job.train(wanted)
    monkeypatch.undo()
    assert happened(job.resume(wanted.output / "interrupted")) == whole


def test_a_second_signal_stops_at_once(monkeypatch):
    class Ended(Exception):
        pass

    def end(status: int):
        raise Ended(status)

    monkeypatch.setattr(signals, "SECOND_SIGNAL_AFTER_SECONDS", 0)
    monkeypatch.setattr(os, "_exit", end)
    with worker.stop_on_signal() as stop_asked:
        assert not stop_asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_asked()
        with pytest.raises(Ended, match=str(128 + signal.SIGTERM)):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "ending", [{"max_tokens": 500}, {"max_minutes": 1e-6}, {"patience": 2, "learning_rate": 1e-30}]
)
def test_a_run_killed_after_its_last_step_learns_no_more(asked, ending):
    run = job.train(asked("lora", "run", **ending))
    before = happened(run)
    assert 0 < len(before["losses"]) < TRAIN["max_steps"]
    run.result.rename(run.folder / "away")
    assert happened(job.resume(run.folder)) == before


@pytest.mark.slow
def test_two_processes_stop_on_a_signal(started, tmp_path):
    whole, command = started("lora", "whole", processes=2)
    assert command.status() == 0, command.text()
    run, command = started("lora", processes=2)
    assert command.wait_for(run.checkpoints, "step-000001")
    command.send(signal.SIGTERM)
    assert command.status() == 130, command.text()
    assert command.text().splitlines()[-1] == f"tunesmith: stopped; `tunesmith resume {run.folder}` continues it"
    assert "Traceback" not in command.text()
    resumed = Command(tmp_path, "resume", run.folder)
    assert resumed.status() == 0, resumed.text()
    assert happened(run) == happened(whole)
