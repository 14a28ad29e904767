"""A run's numbers reach its trackers once each, whatever happens to the run, and nothing that happens to a tracker
reaches the run.

The trackers here are recorders that write all calls to a file. They stand where a package of that name would be.
"""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tunesmith import Recipe, resume, train
from tunesmith.errors import UserError
from tunesmith.finetune.job import new_run
from tunesmith.run import Run
from tunesmith.trackers import TRACKERS, _follower, _processes
from tunesmith.training import loop

STEPS = 6
SMALL = {"max_steps": STEPS, "eval_every": 3, "save_every": 2}

# One module for all: it has the parts of each package's API that Tunesmith calls, as the real ones have them.
RECORDER = """
    import json, os, time, types

    FILE = os.environ["RECORDED"]
    FAULT = os.environ.get("FAULT", "")


    def record(*call):
        with open(FILE, "a") as file:
            file.write(json.dumps(call) + "\\n")


    class Settings:
        def __init__(self, console):
            assert console == "off"


    errors = types.SimpleNamespace(UsageError=type("UsageError", (Exception,), {}))


    class Run:
        summary = {}

        def log(self, values, step):
            if FAULT == "raise" and step == 3:
                raise RuntimeError("the server said no\\nand more")
            if FAULT == "hang" and step == 3:
                time.sleep(3600)
            if FAULT == "crash" and step == 3:
                os.abort()
            record("log", step, values)

        def finish(self, exit_code=None):
            record("finish", exit_code, self.summary)


    def init(project, name, **more):
        if FAULT == "no login" and more.get("mode") != "offline":
            raise errors.UsageError("No API key configured.")
        more.pop("settings"), more.pop("dir")
        record("init", project, name, more)
        return Run()
"""


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Puts a recorder where wandb would be. Returns a function that returns the calls of one kind."""
    place = tmp_path / "packages"
    place.mkdir()
    (place / "wandb.py").write_text(textwrap.dedent(RECORDER))
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("RECORDED", str(tmp_path / "recorded"))
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)

    def calls(kind: str) -> list:
        file = tmp_path / "recorded"
        lines = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
        return [call[1:] for call in lines if call[0] == kind]

    return calls


@pytest.fixture
def tracked(recipe):
    def build(name: str = "run", trackers: tuple = ("wandb",), **train) -> Recipe:
        return recipe(name=name, data={"eval_share": 0.1}, train=SMALL | train, trackers=list(trackers))

    return build


def numbers(calls: list) -> dict[tuple[int, str], list]:
    """{(step, name): every value that was sent for it}."""
    found: dict[tuple[int, str], list] = {}
    for step, values in calls:
        for name, value in values.items():
            found.setdefault((step, name), []).append(value)
    return found


def expected(run: Run) -> dict[tuple[int, str], list]:
    """What a tracker should have, by the events themselves."""
    keys = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes", "joules")
    steps = {(e["step"], f"train/{key}"): [e[key]] for e in run.events("step") for key in keys if key in e}
    return steps | {(e["step"], "eval/loss"): [e["loss"]] for e in run.events("eval")}


def losses(run: Run) -> list[float]:
    return [event["loss"] for event in run.events("step")]


def messages(run: Run) -> list[str]:
    return [event["message"] for event in run.events("warning") if "tracker" in event["message"]]


def test_every_number_arrives_once(tracked, recorded):
    """Also with a name that means something to shells, paths, URLs and databases."""
    name = "-r un;$(touch x) 'é%20?#\"\\"
    run = train(tracked(name))
    assert losses(run) == losses(train(tracked("plain", ())))
    assert len(expected(run)) == STEPS * 5 + 3 and numbers(recorded("log")) == expected(run)
    [(project, named, more)] = recorded("init")
    assert (project, named) == ("tunesmith", name)
    assert more["config"]["train.max_steps"] == STEPS and "train.max_minutes" not in more["config"]
    [(status, summary)] = recorded("finish")
    assert status == 0 and summary["run/steps_done"] == STEPS and summary["run/status"] == "done"
    assert summary["run/loss_after"] == pytest.approx(json.loads(run.eval_file.read_text())["after"]["loss"]["mean"])
    assert messages(run) == []


BREAKS = """
    import os, sys
    from tunesmith import Recipe, train
    from tunesmith.training import loop
    seed_batch = loop.seed_batch

    def seed_and_break(seed, step, row):
        seed_batch(seed, step, row)
        if step == STEP:
            BREAK

    loop.seed_batch = seed_and_break
    train(Recipe.load(sys.argv[1]))
"""


def break_off(recipe: Recipe, monkeypatch) -> None:
    """Trains until an error in the last step."""
    seed_batch = loop.seed_batch
    with monkeypatch.context() as patch:
        patch.setattr(loop, "seed_batch", lambda seed, step, row: seed_batch(seed, step, row) or 1 // (STEPS - step))
        with pytest.raises(ZeroDivisionError):
            train(recipe)


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_that_broke_off_and_is_resumed_doubles_no_step(tracked, recorded, tmp_path, monkeypatch, killed):
    """It breaks off behind its last checkpoint, by an error or by a signal that nothing survives, and repeats steps."""
    run = Run(tmp_path / "runs/run")
    if killed:
        file = tmp_path / "recipe.yaml"
        file.write_text(tracked().dump())
        code = textwrap.dedent(BREAKS).replace("STEP", "6").replace("BREAK", "os.kill(os.getpid(), 9)")
        path = f"{tmp_path / 'packages'}{os.pathsep}{Path(__file__).parents[2]}"
        died = subprocess.run([sys.executable, "-c", code, file], env=os.environ | {"PYTHONPATH": path}, check=False)
        assert died.returncode == -signal.SIGKILL
    else:
        break_off(tracked(), monkeypatch)
    resume(run.folder)
    written = [json.loads(line) for line in run.events_file.read_text().splitlines()]
    steps = [event["step"] for event in written if event["event"] == "step"]
    assert set(steps) == set(range(1, STEPS + 1)) and len(steps) > STEPS
    sent = numbers(recorded("log"))
    assert sent.keys() == expected(run).keys() and {len(values) for values in sent.values()} == {1}
    for key, values in expected(run).items():
        if key[1].endswith("loss"):  # speeds differ between the two
            assert sent[key] == values
    first, second = recorded("init")
    assert first[2]["id"] == second[2]["id"] and [status for status, _ in recorded("finish")] == [1, 0]


def test_a_tracker_that_is_added_later_gets_all_steps(tracked, recorded, monkeypatch, tmp_path):
    run = Run(tmp_path / "runs/run")
    break_off(tracked(trackers=()), monkeypatch)
    run.recipe_file.write_text(run.recipe_file.read_text().replace("trackers: []", "trackers: [wandb]"))
    resume(run.folder)
    sent = numbers(recorded("log"))
    assert sent.keys() == expected(run).keys() and {len(values) for values in sent.values()} == {1}


@pytest.mark.parametrize(
    "fault, message",
    [
        ("raise", "trackers: wandb failed and gets nothing more of this run: RuntimeError: the server said no; "),
        ("hang", "trackers: wandb did not end within 1 s of the run, and was killed"),
        ("crash", "trackers: wandb crashed (exit status -6); "),
    ],
)
def test_a_tracker_that_breaks_is_one_warning(tracked, recorded, monkeypatch, fault, message):
    """The other tracker still gets all."""
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setattr(_processes, "SECONDS_AFTER_END", 1.0 if fault == "hang" else 60.0)
    run = train(tracked())
    assert run.result.exists() and losses(run) == losses(train(tracked("plain", ())))
    [warning] = messages(run)
    assert warning.startswith(message)
    assert {step for step, _ in recorded("log")} <= {0, 1, 2} and not recorded("finish")


def test_without_a_login_it_is_offline(tracked, recorded, monkeypatch):
    monkeypatch.setenv("FAULT", "no login")
    run = train(tracked())
    [(_, _, more)] = recorded("init")
    assert more["mode"] == "offline" and numbers(recorded("log")) == expected(run)
    [warning] = messages(run)
    assert "no login" in warning and "sent nowhere" in warning


def test_a_run_that_fails_at_once_leaves_nothing(tracked, recorded, monkeypatch, tmp_path):
    """A folder that a tracker writes to could not be removed."""
    monkeypatch.setattr("tunesmith.finetune.job._work", lambda *_: (_ for _ in ()).throw(UserError("no")))
    with pytest.raises(UserError, match="no"):
        train(tracked())
    assert not (tmp_path / "runs/run").exists() and not recorded("init")


@pytest.mark.parametrize(
    "name, message",
    [
        ("wandbb", "trackers: 'wandbb' is unknown; did you mean wandb?"),
        ("?", "trackers: '?' is unknown; use mlflow, tensorboard, trackio, wandb"),
        ("wandb", "trackers: absent_package is not installed; pip install absent_package"),
    ],
)
def test_a_tracker_that_is_not_there_is_refused_first(tracked, tmp_path, monkeypatch, name, message):
    """Also where a folder has the name of a package, as wandb makes one."""
    monkeypatch.setattr(TRACKERS["wandb"], "package", "absent_package")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "absent_package").mkdir()
    monkeypatch.setattr("tunesmith.finetune.prepare.local_folder", None)  # nothing is looked at before
    for begin in (train, new_run):
        with pytest.raises(UserError) as refused:
            begin(tracked(trackers=[name]))
        assert str(refused.value) == message
    assert not (tmp_path / "runs").exists()


def test_a_value_that_is_not_finite_arrives_as_nan(tmp_path):
    run, got = Run(tmp_path), []
    for step, loss in ((1, 2.0), (2, math.nan)):
        run.log("step", step=step, loss=loss, metrics={"gap": math.inf if step == 2 else 0.5})
    run.log("eval", step=2, loss=math.nan)
    for step, values in _follower._unsent(_follower.Events(run.events_file).read(), _follower.Sent()):
        got += [(step, name, str(value)) for name, value in values.items()]
    assert got == [
        (1, "train/loss", "2.0"),
        (1, "train/gap", "0.5"),
        (2, "train/loss", "nan"),
        (2, "train/gap", "nan"),
        (2, "eval/loss", "nan"),
    ]


def test_events_are_read_as_they_grow_and_as_run_reads_them(tmp_path):
    """Half a line waits for its end, a damaged one is left out, and a resume takes back what it undid."""
    run = Run(tmp_path)
    run.events_file.touch()
    events, steps = _follower.Events(run.events_file), []
    lines = [
        '{"event": "step", "step": 1}\n{"event": "st',
        'ep", "step": 2}\n{"eve\n',
        '{"event": "step", "step": 3}\n',
    ]
    lines[2] += '{"event": "resume", "step": 2}\n'
    for part in lines:
        with run.events_file.open("a") as file:
            file.write(part)
        steps.append([event["step"] for event in events.read() if event["event"] == "step"])
    assert steps == [[1], [2], []] and [event["step"] for event in run.events("step")] == [1, 2]
