"""What goes wrong: a full disk, a loss that is no number, and the user's mistakes on the real command line."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pkgutil
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError

from tests.conftest import slow_but, sums, write_rows
from tunesmith import train
from tunesmith.cli import main, runs
from tunesmith.data.row_order import Schedule
from tunesmith.errors import NotEnoughMemory, UserError
from tunesmith.evaluate import generate, heldout, summary
from tunesmith.finetune import job, worker
from tunesmith.model import load
from tunesmith.run import Run
from tunesmith.training import checkpoint
from tunesmith.training import loop as training

Usage = namedtuple("Usage", "total used free")


@contextlib.contextmanager
def largest_file(size: int):
    """The system refuses to write more than so many bytes to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def nothing_free(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 1000))


def full_half_way(monkeypatch) -> None:
    """The first file of the checkpoint is written, the second is not."""
    save_file = checkpoint.save_file

    def save(tensors, path):
        with largest_file(1000) if path.name == "optimizer.safetensors" else contextlib.nullcontext():
            save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", save)


def full_at_the_end(monkeypatch) -> None:
    def write(path, value):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_json", write)


@pytest.mark.parametrize("fill", [nothing_free, full_half_way, full_at_the_end])
def test_a_full_disk_fails_one_save_and_training_goes_on(recipe, monkeypatch, fill):
    seen = []
    save = checkpoint.save

    def save_or_not(folder, contents):
        with monkeypatch.context() as patch:
            if contents.state.step == 2:
                fill(patch)
            try:
                return save(folder, contents)
            finally:
                seen.append(sorted(found.name for found in folder.iterdir()))

    monkeypatch.setattr(checkpoint, "save", save_or_not)
    run = job.train(recipe(train={"max_steps": 3, "save_every": 1, "keep_checkpoints": 9}))
    assert seen == [["step-000001"], ["step-000001"], ["step-000001", "step-000003"]]
    [warning] = run.events("warning")
    assert "checkpoint at step 2 not saved" in warning["message"]
    assert [event["step"] for event in run.events("checkpoint")] == [1, 3]
    assert run.result.exists()


def command(monkeypatch, capsys, *arguments: str | Path) -> tuple[int, list[str]]:
    """Exit status and lines on stderr of `tunesmith ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code, capsys.readouterr().err.splitlines()


def test_a_loss_that_is_no_number(recipe, tmp_path, monkeypatch, capsys):
    """The third step's loss is infinite: the run stops and names its rows; what the second saved stays."""
    step, rows = [], {}
    seed_batch, step_rows, method_loss = training.seed_batch, Schedule.step_rows, training.method_loss
    monkeypatch.setattr(training, "seed_batch", lambda seed, now, row: (step.append(now), seed_batch(seed, now, row)))

    def note_rows(schedule, now):
        rows[now] = step_rows(schedule, now)
        return rows[now]

    def losses(*arguments):
        total, metrics = method_loss(*arguments)
        return total * (torch.inf if step[-1] == 3 else 1), metrics

    monkeypatch.setattr(Schedule, "step_rows", note_rows)
    monkeypatch.setattr(training, "method_loss", losses)
    asked = recipe(train={"save_every": 1})
    (tmp_path / "recipe.yaml").write_text(asked.dump())
    status, lines = command(monkeypatch, capsys, "train", tmp_path / "recipe.yaml")
    run = Run(asked.output / "run")
    assert status == 1
    assert lines[-1].startswith("tunesmith: step 3: loss inf is not finite")
    data = asked.data.train[0].path
    assert all(f"{data}:{row + 1}" in lines[-1] for row in rows[3]) and lines[-1].count(data) == len(rows[3]) == 8
    assert not any("Traceback" in line for line in lines)
    assert sum(line.startswith("tunesmith:") for line in lines) == 1
    assert [event["reason"] for event in run.events("stop")] == ["not_finite"]
    assert checkpoint.complete(run.checkpoints)[-1].name == "step-000002"
    assert not run.result.exists()


def no_memory(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(training, "method_loss", fail)


def no_memory_for_the_model(monkeypatch):
    monkeypatch.setattr(load, "load", no_memory_to)


def no_memory_to_evaluate(monkeypatch):
    monkeypatch.setattr(heldout, "row_losses", no_memory_to)


def no_memory_to_answer(monkeypatch):
    monkeypatch.setattr(generate, "answers", no_memory_to)


def no_memory_to(*_):
    raise (
        torch.AcceleratorError("CUDA error: out of memory") if torch.cuda.is_available() else torch.OutOfMemoryError("")
    )


@pytest.mark.parametrize(
    "break_it, said",
    [
        (no_memory_for_the_model, "the model does not fit in memory; .*nf4"),
        (no_memory_to_evaluate, "the loss of held-out rows does not fit"),
        (no_memory_to_answer, "answering held-out prompts"),
    ],
)
def test_no_memory_outside_of_a_step_is_said(recipe, monkeypatch, capsys, break_it, said):
    asked = recipe(data={"eval_share": 0.1}, train={"max_steps": 3}, evaluate={"samples": 2})
    break_it(monkeypatch)
    with pytest.raises(NotEnoughMemory, match=said):
        job.train(asked)
    assert [stop["reason"] for stop in Run(asked.output / "run").events("stop")] == ["out_of_memory"]


def fault_in_a_step(monkeypatch):
    learning_rate = training.learning_rate
    monkeypatch.setattr(
        training, "learning_rate", lambda step, *others: learning_rate(step, *others) if step < 2 else {}["injected"]
    )


def fault_at_the_end(monkeypatch):
    monkeypatch.setattr(worker, "save_result", lambda run, model: [][0])


@pytest.mark.parametrize(
    "break_it, reason, step, error",
    [
        (no_memory, "out_of_memory", 0, "step 1: a row of"),
        (fault_in_a_step, "error", 1, "KeyError: 'injected'"),
        (fault_at_the_end, "error", 3, "IndexError: list index out of range"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_breaks_a_run_off_is_its_status(recipe, monkeypatch, break_it, reason, step, error):
    asked = recipe(train={"max_steps": 3})
    with monkeypatch.context() as patch:
        break_it(patch)
        with pytest.raises(Exception, match=error.partition(": ")[2]):
            job.train(asked)
    run = Run(asked.output / "run")
    facts = summary.summary(run)
    assert (facts["status"], facts["steps_done"]) == (reason, step) and facts["error"].startswith(error)
    assert f"The run failed at step {step} of 3" in summary.ending(facts)
    printed = io.StringIO()
    Console(file=printed, width=300).print(runs.show_run(run))
    assert facts["error"] in printed.getvalue()
    assert summary.summary(job.resume(run.folder)) | {"seconds": 0, "started": 0} == facts | {
        "status": "done",
        "error": None,
        "steps_done": 3,
        "seconds": 0,
        "started": 0,
    }


def unknown_key(values, folder):
    return values.replace("learning_rate:", "learning_rat:"), "did you mean `train.learning_rate`"


def wrong_value(values, folder):
    return values.replace("batch: 8", "batch: -8"), "train.batch"


def broken_yaml(values, folder):
    return "model: {path: x\ndata: [", "recipe.yaml:2"


def missing_data(values, folder):
    return values.replace("data.jsonl", "nothing.jsonl"), "nothing.jsonl"


def no_safetensors(values, folder):
    (folder / "pickled").mkdir()
    (folder / "pickled/config.json").write_text("{}")
    (folder / "pickled/pytorch_model.bin").write_bytes(b"")
    return _with_model(values, folder / "pickled"), "pytorch_model.bin"


def no_model(values, folder):
    return _with_model(values, folder / "nowhere"), "nowhere"


def _with_model(values: str, model: Path) -> str:
    return "\n".join(f"  path: {model}" if "llama3" in line else line for line in values.splitlines())


def nothing_usable(values, folder):
    write_rows(folder / "data.jsonl", [{"messages": row["messages"][:1]} for row in sums(5)])
    return values, "data.jsonl"


def name_taken(values, folder):
    (folder / "runs/run").mkdir(parents=True)
    (folder / "runs/run/kept.txt").write_text("mine")
    return values, "exists already"


@pytest.mark.parametrize(
    "mistake",
    [unknown_key, wrong_value, broken_yaml, missing_data, no_safetensors, no_model, nothing_usable, name_taken],
    ids=lambda mistake: mistake.__name__,
)
def test_a_mistake_is_one_line_and_changes_nothing(recipe, tmp_path, monkeypatch, capsys, mistake):
    text, said = mistake(recipe().dump(), tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    before = contents(tmp_path)
    status, lines = command(monkeypatch, capsys, "train", tmp_path / "recipe.yaml")
    assert status == 2
    *progress, line = lines
    assert line.startswith("tunesmith: ") and said in line
    assert all(shown.startswith("tokenising: ") for shown in progress)
    assert contents(tmp_path) - {tmp_path / "runs"} == before - {tmp_path / "runs"}


def test_resume_refuses_what_is_no_run_or_is_finished(recipe, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, capsys, "resume", tmp_path) == (
        2,
        [f"tunesmith: {tmp_path}: not a run folder (recipe.yaml and checkpoints/); `tunesmith runs` lists runs"],
    )
    run = job.train(recipe(train={"max_steps": 1}))
    before = contents(run.folder)
    status, [line] = command(monkeypatch, capsys, "resume", run.folder)
    assert status == 2 and "is finished" in line
    assert contents(run.folder) == before


def test_a_mistake_that_shows_late_costs_no_training(recipe, monkeypatch):
    def gone(*asked):
        raise UserError("model.path: the base is gone")

    asked = recipe(adapter={"kind": "full"}, train={"max_steps": 2})
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_as_saved", gone)
        with pytest.raises(UserError, match="is gone"):
            job.train(asked)
    run = Run(asked.output / "run")
    assert checkpoint.complete(run.checkpoints)
    assert job.resume(run.folder).result.is_dir()


def test_a_pause_ends_with_the_resume_whatever_is_warned_of(recipe, monkeypatch):
    monkeypatch.setattr("tunesmith.training.packed_attention.why_not_packed", lambda *_: "made up")
    run = job.train(recipe(train={"max_steps": 2}))
    shutil.rmtree(run.result)
    job.resume(run.folder)
    names = [event["event"] for event in run.events()]
    assert names[names.index("stop") + 1] == "resume" and names.count("warning") == 2


@pytest.mark.parametrize("what", ["tokens", "run"])
def test_a_full_disk_before_training_is_one_line(recipe, tmp_path, monkeypatch, capsys, what):
    """Whether tokens or what the run keeps of them is written: nothing is left behind."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": ""}]} for i in range(300)
    ]
    data = write_rows(tmp_path / "rows.jsonl", sums(400 if what == "tokens" else 8) + rows)
    (tmp_path / "recipe.yaml").write_text(recipe(data={"train": str(data)}).dump())
    target = {"tokens": "tunesmith.data.encode._write", "run": "tunesmith.data.dataset.Ledger.__enter__"}[what]
    module, _, name = target.rpartition(".")
    inner = pkgutil.resolve_name(target)

    def write_little(*arguments):
        stack.enter_context(largest_file(4096))
        return inner(*arguments)

    with contextlib.ExitStack() as stack:
        monkeypatch.setattr(pkgutil.resolve_name(module), name, write_little)
        status, lines = command(monkeypatch, capsys, "train", tmp_path / "recipe.yaml")
    folder = {"tokens": tmp_path / "cache/tokens", "run": tmp_path / "runs/run"}[what]
    assert status == 2 and lines[-1].startswith(f"tunesmith: {folder}: no room on the disk"), lines
    assert not list((tmp_path / "runs").iterdir())
    assert not list((tmp_path / "cache/tokens").glob(".*"))


def test_a_full_disk_at_the_end_keeps_what_was_learned(recipe, monkeypatch, capsys, tmp_path):
    def no_room(model, *arguments, **settings):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    asked = recipe(train={"max_steps": 2})
    (tmp_path / "recipe.yaml").write_text(asked.dump())
    with monkeypatch.context() as patch:
        patch.setattr("peft.PeftModel.save_pretrained", no_room)
        status, lines = command(patch, capsys, "train", tmp_path / "recipe.yaml")
    run = Run(asked.output / "run")
    assert status == 2 and "no room on the disk" in lines[-1] and "tunesmith resume" in lines[-1]
    assert summary.summary(run)["status"] == "error"
    assert job.resume(run.folder).result.is_dir()


def test_a_file_system_without_locks(recipe, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    run = job.train(recipe(train={"max_steps": 1}))
    assert "no locks" in run.events("warning")[0]["message"] and not run.is_held
    assert summary.summary(run)["status"] == "done"


@pytest.mark.parametrize("train", slow_but([{"processes": 2}], [{"micro_batch": "auto"}, {"processes": 2}]))
def test_a_script_without_a_guard_is_told(tmp_path, recipe, train):
    """Processes of ours import it, and would train too. They end without a word, so that the reason is the last line
    and stands below one traceback: that of the script."""
    asked = recipe(train=train | {"max_steps": 1})
    (tmp_path / "recipe.yaml").write_text(asked.dump())
    script = tmp_path / "script.py"
    script.write_text(f"from tunesmith import Recipe, train\ntrain(Recipe.load({str(tmp_path / 'recipe.yaml')!r}))\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode and done.stderr.count("Traceback") == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tunesmith.errors.UserError") and 'outside of `if __name__ == "__main__":`' in last
    assert not (asked.output / "run").exists()


def test_the_screen_is_tunesmiths(recipe, capfd):
    """No progress bar or warning of a library between its lines."""
    train(recipe(train={"max_steps": 1}))
    shown = capfd.readouterr().err.splitlines()
    assert shown
    known = ("data ", "plan ", "  ", "model ", "step ", "saved ", "stop ", "tokenising: ", "eval ")
    assert [line for line in shown if not line.startswith(known)] == []


def contents(folder: Path) -> set:
    """Every path below, and each file's bytes."""
    return {path if path.is_dir() else (path, path.read_bytes()) for path in folder.rglob("*")}


def test_a_run_whose_data_or_model_changed_is_not_resumed(recipe, tmp_path):
    run = job.train(recipe(train={"max_steps": 2}))
    shutil.rmtree(run.result)  # as if it had been stopped
    data = tmp_path / "data.jsonl"
    before = data.read_text()
    data.write_text(before + before.splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"data: .*data\.jsonl is not what it was"):
        job.resume(run.folder)
    data.write_text(before)
    assert job.resume(run.folder).result.is_dir()


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"targets": ["no_such_module"]}},
        {"data": {"train": [{"path": "DATA", "weight": 0.001}]}},
        {"data": {"train": [{"path": "DATA", "columns": {"question": "no_such_column"}}]}},
    ],
    ids=["targets", "weight", "columns"],
)
def test_what_shows_only_with_model_or_data_leaves_nothing(recipe, tmp_path, changes):
    asked = recipe(**json.loads(json.dumps(changes).replace("DATA", str(tmp_path / "data.jsonl"))))
    with pytest.raises(UserError, match="no_such|weight"):
        job.train(asked)
    assert not list((tmp_path / "runs").iterdir())
