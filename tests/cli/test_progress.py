"""A run is shown from its events alone, preparation included."""

import shutil
from io import StringIO

import pytest
from rich.console import Console

from tests.conftest import sums, write_rows
from tunesmith import train
from tunesmith.cli.progress import Screen, shown
from tunesmith.errors import UserError
from tunesmith.finetune import job
from tunesmith.run import Run


def lines(run: Run) -> list[str]:
    """What the events of a run show on a console that is no terminal."""
    out = StringIO()
    screen = Screen(run.recipe, Console(file=out, width=1000))
    for event in run.events():
        screen.show(event["event"], {name: value for name, value in event.items() if name != "event"})
    return out.getvalue().splitlines()


@pytest.fixture
def quiet(recipe, capfd):
    """As `recipe`; what making the model printed is forgotten."""

    def build(**sections):
        made = recipe(**sections)
        capfd.readouterr()
        return made

    return build


def test_training_without_a_watcher_is_silent_and_its_folder_shows_it_all(quiet, tmp_path, capfd):
    run = job.train(quiet(train={"max_steps": 2}, data={"eval_share": 0.1}))
    assert capfd.readouterr() == ("", "")
    elsewhere = Run(shutil.copytree(run.folder, tmp_path / "elsewhere"))
    assert lines(elsewhere) == lines(run)
    assert [line.split()[0] for line in lines(run) if not line.startswith(" ")] == [
        "data",
        "plan",
        "model",
        "eval",
        "step",
        "eval",
        "saved",
        "stop",
    ]


def test_what_is_watched_is_what_the_events_show(quiet, capfd):
    run = train(quiet(train={"max_steps": 2}, data={"eval_share": 0.1}))
    assert capfd.readouterr().err.splitlines() == lines(run)


def test_a_mistake_leaves_nothing_but_what_was_said_before_it(quiet, tmp_path, capfd):
    few = write_rows(tmp_path / "few.jsonl", sums(3))
    asked = quiet(
        data={"train": str(few), "eval_share": 0.01},
        train={"max_steps": 2, "batch": 2, "eval_every": 1, "result": "best"},
        evaluate={"samples": 0},
    )
    with pytest.raises(UserError, match="held-out rows"):
        train(asked)
    assert "3 rows read" in capfd.readouterr().err and not list(asked.output.iterdir())


def test_only_what_happens_while_it_is_watched_is_shown(quiet, capfd):
    run = job.train(quiet(train={"max_steps": 1}))
    with shown(run):
        run.log("warning", message="[now]")
        run.log("an event of tomorrow", step=1)
    assert capfd.readouterr().err == "warning [now]\n"
