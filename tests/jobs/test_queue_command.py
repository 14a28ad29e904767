"""`tunesmith queue`, as people type it. No job runs: nothing keeps the queue here."""

import json

import pytest

from tunesmith.cli import queue
from tunesmith.cli.main import main
from tunesmith.jobs.store import Store
from tunesmith.run import Run


@pytest.fixture
def ask(tmp_path, monkeypatch, recipe, capsys):
    """Returns a function that runs the command and returns its status and what it printed."""
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(queue, "ensure_kept", lambda store: None)
    (tmp_path / "recipe.yaml").write_text(recipe().dump())

    def asked(*words: str) -> tuple[int, str]:
        try:
            main(["queue", *words])
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out + said.err

    return asked


def listed(ask) -> list[dict]:
    return json.loads(ask("list", "--json")[1])


def test_a_recipe_is_checked_and_gets_its_run_folder_when_it_is_added(ask, tmp_path):
    status, said = ask("add", str(tmp_path / "recipe.yaml"), "--name", "one", "--train.epochs", "2")
    assert status == 0 and "job 1  train" in said
    [job] = listed(ask)
    run = Run(job["folder"])
    assert (job["state"], job["why"], run.name) == ("waiting", "", "one") and run.recipe.train.epochs == 2
    assert "1    waiting  train one" in ask("list")[1] and ask("why", "1")[1] == "job 1 starts now\n"


def test_a_grid_makes_a_job_of_each_combination(ask, tmp_path):
    grid = ["--grid", "train.learning_rate=1e-4,2e-4", "--grid", "adapter.rank=4,8"]
    assert ask("add", str(tmp_path / "recipe.yaml"), "--name", "g", *grid)[0] == 0
    jobs = listed(ask)
    found = [(run.recipe.train.learning_rate, run.recipe.adapter.rank) for run in (Run(job["folder"]) for job in jobs)]
    assert found == [(1e-4, 4), (1e-4, 8), (2e-4, 4), (2e-4, 8)]
    assert len({job["folder"] for job in jobs}) == 4 and len({job["batch"] for job in jobs}) == 1


def test_exports_wait_for_the_success_of_the_training(ask, tmp_path):
    assert ask("add", str(tmp_path / "recipe.yaml"), "--export", "gguf", "--export", "merged", "--hold")[0] == 0
    jobs = listed(ask)
    assert [(job["kind"], job["arguments"]) for job in jobs[1:]] == [
        ("export", ["--to", form]) for form in ("gguf", "merged")
    ]
    assert jobs[0]["state"] == "held" and {job["why"] for job in jobs[1:]} == {"it starts after job 1, which is held"}


def test_jobs_are_held_released_moved_and_cancelled(ask, tmp_path):
    for name in ("a", "b", "c"):
        ask("add", str(tmp_path / "recipe.yaml"), "--name", name)
    ask("move", "3", "--before", "1")
    ask("hold", "1")
    ask("pause")
    assert [(job["id"], job["state"]) for job in listed(ask)] == [(3, "waiting"), (1, "held"), (2, "waiting")]
    assert "The queue is paused: since" in ask("list")[1] and "the queue is paused" in ask("why", "3")[1]
    ask("resume")
    ask("release", "1")
    ask("move", "2", "--priority", "high")
    folder = listed(ask)[0]["folder"]
    assert [job["id"] for job in listed(ask)] == [2, 3, 1]
    assert ask("cancel", "2")[0] == 0 and not Run(folder).exists
    assert ask("cancel", "2") == (2, "tunesmith: queue: job 2 is cancelled already\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add"], "queue add: no recipe"),
        (["add", "RECIPE", "--data.train", "nowhere.jsonl"], "nowhere.jsonl"),
        (["add", "RECIPE", "--model.path", "nowhere"], "model.path"),
        (["add", "RECIPE", "--adapter.rank", "0"], "adapter.rank"),
        (["add", "RECIPE", "--export", "safetensors"], "--to safetensors: there is no such form"),
        (["add", "RECIPE", "--grid", "train.learning_rate"], "is not KEY=VALUE,VALUE"),
        (["add", "RECIPE", "--grid", "train.rank=1,2"], "train.rank"),
        (["add", "RECIPE", "--at", "soon"], "--at: soon is no time"),
        (["add", "RECIPE", "--after", "9"], "there is no job 9"),
        (["why", "9"], "there is no job 9"),
        (["log", "9"], "there is no job 9"),
        (["pause", "9"], "there is no job 9"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing_behind(ask, tmp_path, words, said):
    status, found = ask(*(str(tmp_path / "recipe.yaml") if word == "RECIPE" else word for word in words))
    assert status == 2 and said in found and found.count("\n") == 1
    assert not Store().jobs() and not [*(tmp_path / "runs").glob("*")]


def test_a_log_is_there_once_a_job_has_started(ask, tmp_path):
    ask("add", str(tmp_path / "recipe.yaml"))
    assert "has not started" in ask("log", "1")[1]
    file = Store().file_of(1, "log")
    file.parent.mkdir()
    file.write_text("step 1\n")
    assert ask("log", "1", "-f") == (0, "step 1\n")
