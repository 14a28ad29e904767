"""The queue through the studio: the same queue as that of the terminal."""

import shutil

import pytest

from tests.conftest import sums, write_rows
from tests.studio.conftest import START, steps
from tunesmith.jobs.keeper import AFTER_RESTART


@pytest.fixture(autouse=True)
def nothing_starts(studio, monkeypatch):
    """Jobs wait: the queue is paused, and no process keeps it."""
    studio.store.set("paused", "for the test")
    monkeypatch.setattr("tunesmith.studio.routes.jobs.ensure_kept", lambda store: None)


@pytest.fixture
def values(studio, family):
    """The values of a recipe whose files are in the studio's folder."""
    shutil.copytree(family("llama3"), studio.folder / "model")
    write_rows(studio.folder / "rows.jsonl", sums(40))
    return {"model": {"path": "model"}, "data": {"train": "rows.jsonl", "sequence_length": 64}}


def problem(answer) -> str:
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


@pytest.mark.slow
def test_a_recipe_is_queued_as_a_grid_with_exports(client, studio, values):
    asked = {
        "recipe": values | {"name": "try"},
        "grid": {"train.learning_rate": [1e-4, 2e-4]},
        "export": ["merged"],
        "priority": "high",
        "hold": True,
    }
    answer = client.post("/api/jobs", json=asked)
    assert answer.status_code == 200, answer.text
    jobs = client.get("/api/queue").json()["jobs"]
    assert [job["id"] for job in jobs] == answer.json() and len(jobs) == 4
    trainings = [job for job in jobs if job["kind"] == "train"]
    assert {job["asked_by"] for job in jobs} == {"studio"} and {job["priority"] for job in jobs} == {"high"}
    assert {job["state"] for job in trainings} == {"held"}
    assert [job["after"] for job in jobs if job["kind"] == "export"] == [job["id"] for job in trainings]
    rates = [client.get(f"/api/runs/{job['run']}").json()["recipe"]["train"]["learning_rate"] for job in trainings]
    assert rates == [1e-4, 2e-4]


def test_a_wrong_recipe_is_refused_in_one_line_and_leaves_nothing(client, studio, values):
    wrong = {
        "unknown key `train.btach`; did you mean `train.batch`?": values | {"train": {"btach": 4}},
        "there is no such file": values | {"data": {"train": str(studio.folder / "nothing.jsonl")}},
        "outside the studio's folders": values | {"data": {"train": "/etc/passwd"}},
        "`output`: ../elsewhere: outside": values | {"output": "../elsewhere"},
    }
    for says, one in wrong.items():
        message = problem(client.post("/api/jobs", json={"recipe": one}))
        assert says in message and "\n" not in message and "/tmp/tmp" not in message
    assert client.get("/api/queue").json()["jobs"] == [] and client.get("/api/runs").json() == []


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        ({"output": ["runs", "/tmp/elsewhere"]}, "`output`: /tmp/elsewhere: outside"),
        ({"data.train": ["/etc/passwd"]}, "`data.train.0.path`: /etc/passwd: outside"),
        ({"model.path": ["model,/etc"]}, "comma"),
        ({"--output=/tmp/elsewhere": [1]}, "unknown key"),
        ({" output": ["/tmp/elsewhere"]}, "unknown key"),
        ({"train.batch": [*range(1, 200)], "train.max_steps": [*range(1, 200)]}, "combinations"),
    ],
)
def test_no_grid_leads_out(client, studio, values, grid, says):
    assert says in problem(client.post("/api/jobs", json={"recipe": values, "grid": grid}))
    assert client.get("/api/queue").json()["jobs"] == []


@pytest.mark.parametrize("asked", [{"export": ["--notify=touch here"]}, {"at": "--notify=touch here"}])
def test_no_text_becomes_a_flag(client, studio, values, asked):
    message = problem(client.post("/api/jobs", json={"recipe": values} | asked))
    assert "--notify=touch here" in message  # taken for a value, which is wrong
    assert client.get("/api/queue").json()["jobs"] == []


def test_verbs_change_the_queue(client, studio, make_run):
    first, second = (studio.store.add("train", make_run(name).folder) for name in "ab")

    def order() -> list[int]:
        return [job["id"] for job in client.get("/api/queue").json()["jobs"]]

    def change(job, verb, **changes):
        return client.post(f"/api/jobs/{job.id}/{verb}", json=changes)

    assert order() == [first.id, second.id]
    assert change(second, "move", before=first.id).status_code == 200 and order() == [second.id, first.id]
    change(first, "move", priority="high")
    assert order() == [first.id, second.id]
    change(first, "hold")
    held = client.get("/api/queue").json()["jobs"][0]
    assert held["state"] == "held" and "queue release" in held["why"]
    change(first, "release")
    assert client.get("/api/queue").json()["jobs"][0]["why"] == "the queue is paused: for the test"
    assert "not running" in problem(change(first, "pause"))
    change(first, "cancel")
    cancelled = next(job for job in client.get("/api/queue").json()["jobs"] if job["id"] == first.id)
    assert cancelled["state"] == "cancelled" and cancelled["run"] is None
    assert "cannot be tried again" in problem(change(first, "retry"))
    assert "there is no job 99" in problem(client.post("/api/jobs/99/hold", json={}))
    assert client.post(f"/api/jobs/{second.id}/explode", json={}).status_code == 422


def test_the_queue_is_paused_and_continued(client, studio):
    assert client.post("/api/queue/resume", json={}).json()["paused"] == ""
    assert client.post("/api/queue/pause", json={}).json()["paused"].startswith("since ")
    assert client.post("/api/queue/settings", json={"after_restart": True}).json()["after_restart"]
    assert studio.store.setting(AFTER_RESTART) == "yes"


def test_a_job_at_work_shows_its_progress(client, studio, make_run):
    run = make_run("a", ("start", START), *steps(4))
    studio.store.add("train", run.folder)
    with run.held():
        [job] = client.get("/api/queue").json()["jobs"]
    assert job["state"] == "running"
    assert job["progress"] == {
        "step": 4,
        "steps": 10,
        "seconds_left": 3.0,
        "loss": 0.75,
        "tokens_per_second": 200.0,
        "doing": "",
    }
