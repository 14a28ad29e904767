"""Runs in the studio: the same as their folders say, however many there are and whatever becomes of them."""

import shutil
import time

import pytest

from tests.studio.conftest import START, steps
from tunesmith import Recipe, recipe_text
from tunesmith.finetune import control
from tunesmith.leases import held
from tunesmith.run import Run

STOP = ("stop", {"step": 10, "reason": "done"})


def row(client, name: str) -> dict:
    return next(one for one in client.get("/api/runs").json() if one["name"] == name)


def test_the_list_has_the_state_of_each_folder(client, make_run):
    done = make_run("done", ("start", START), *steps(10), STOP)
    done.result.mkdir()
    make_run("killed", ("start", START), *steps(4))
    make_run("new")
    running = make_run("running", ("start", START), *steps(3))
    with running.held():
        states = {
            one["name"]: (one["status"], one["steps_done"], one["held"]) for one in client.get("/api/runs").json()
        }
    assert states == {
        "done": ("done", 10, False),
        "killed": ("cut off", 4, False),
        "new": ("not started", 0, False),
        "running": ("running", 3, True),
    }
    assert row(client, "running")["status"] == "cut off"
    with done.held():
        assert row(client, "done")["status"] == "finishing"
        done.log("stage", doing="loading the model")
        assert row(client, "done")["status"] == "running"
    assert row(client, "done")["has_result"] and not row(client, "killed")["has_result"]


def test_a_run_that_was_deleted_is_said_to_be_gone(client, make_run):
    run = make_run("a", ("start", START))
    name = row(client, "a")["id"]
    shutil.rmtree(run.folder)
    for path in ("", "/curves", "/events", "/history", "/ledger", "/deletion"):
        answer = client.get(f"/api/runs/{name}{path}")
        assert answer.status_code == 400 and "there is no run" in answer.json()["error"]["message"]
    assert client.get("/api/runs").json() == []


def test_a_damaged_run_does_not_hide_the_others(client, make_run):
    make_run("good", ("start", START))
    make_run("bad", ("start", START)).recipe_file.write_text("model: [")
    assert row(client, "good")["status"] == "cut off"
    assert "recipe.yaml" in row(client, "bad")["error"]


def test_one_run_says_everything_of_its_folder(client, make_run):
    make_run("a", ("start", START), *steps(10), ("warning", {"message": "slow"}), STOP)
    found = client.get(f"/api/runs/{row(client, 'a')['id']}").json()
    assert found["row"]["steps_done"] == 10 and found["ending"].startswith("The run")
    assert found["warnings"] == {"slow": 1} and found["recipe"]["name"] == "a" and "name: a" in found["recipe_yaml"]
    speed = next(one for one in found["compared"] if one["name"] == "tokens_per_second")
    assert speed["measured"] == 200.0 and speed["predicted"] is None


def test_another_run_begins_with_what_was_not_a_default(client, studio, make_run, recipe):
    asked = recipe(name="b", train={"learning_rate": 5e-4}, method={"name": "cpt"}, output=str(studio.folder / "runs"))
    Run.create(asked)
    again = recipe_text.parse(client.get(f"/api/runs/{row(client, 'b')['id']}/again").json()["yaml"])
    assert again["method"] == {"name": "cpt"} and "name" not in again and "packing" not in again["data"]
    assert Recipe.build(again | {"name": "b"}) == asked


def test_events_are_read_from_an_offset_and_half_a_line_waits(client, make_run):
    run = make_run("a", ("start", START), *steps(2))
    name = row(client, "a")["id"]
    first = client.get(f"/api/runs/{name}/events").json()
    assert [event["event"] for event in first["events"]] == ["start", "step", "step"]
    assert first["next"] == run.events_file.stat().st_size
    with run.events_file.open("ab") as lines:
        lines.write(b'{"event": "step", "st')
    waiting = client.get(f"/api/runs/{name}/events", params={"since": first["next"]}).json()
    assert (waiting["events"], waiting["next"]) == ([], first["next"])
    with run.events_file.open("ab") as lines:
        lines.write(b'ep": 3}\n')
    assert client.get(f"/api/runs/{name}/events", params={"since": first["next"]}).json()["events"][0]["step"] == 3


def test_the_history_leaves_out_steps(client, make_run):
    make_run("a", ("start", START), *steps(5), ("samples", {"step": 5, "samples": []}), ("resume", {"step": 3}))
    found = client.get(f"/api/runs/{row(client, 'a')['id']}/history").json()["events"]
    assert [event["event"] for event in found] == ["start", "resume"]


def test_a_running_run_takes_wishes(client, make_run):
    run = make_run("a", ("start", START), *steps(2))
    name = row(client, "a")["id"]
    for verb, wish in (("pause", "pause"), ("continue", "run"), ("stop", "stop")):
        refused = client.post(f"/api/runs/{name}/{verb}", json={})
        assert refused.status_code == 400 and "not running" in refused.json()["error"]["message"]
        with run.held():
            assert client.post(f"/api/runs/{name}/{verb}", json={}).json()["wish"] == wish
            assert control.wish_of(run) == wish


def test_a_run_that_was_cut_off_is_resumed_by_the_queue(client, studio, make_run, monkeypatch):
    monkeypatch.setattr("tunesmith.studio.routes.runs.ensure_kept", lambda store: None)
    make_run("a", ("start", START), *steps(2))
    name = row(client, "a")["id"]
    assert client.post(f"/api/runs/{name}/resume", json={}).status_code == 200
    [job] = client.get("/api/queue").json()["jobs"]
    assert (job["run"], job["state"]) == (name, "waiting")
    again = client.post(f"/api/runs/{name}/resume", json={})
    assert again.status_code == 400 and len(studio.store.jobs()) == 1


def test_deleting_frees_what_it_said_and_leaves_what_others_wrote(client, make_run):
    run = make_run("a", ("start", START), *steps(100), STOP)
    (run.checkpoints / "step-10").mkdir()
    (run.checkpoints / "step-10" / "weights").write_bytes(b"x" * 5000)
    (run.folder / "gguf").mkdir()
    (run.folder / "gguf" / "parity.json").write_text("{}")
    (run.folder / "my-notes.txt").write_text("mine")
    (run.folder / "my-folder").mkdir()
    name = row(client, "a")["id"]
    before = sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file())
    found = client.get(f"/api/runs/{name}/deletion").json()
    assert found == {"bytes": before - len("mine"), "refusal": "", "kept": ["my-folder", "my-notes.txt"]}
    assert client.delete(f"/api/runs/{name}").json() == found
    assert sorted(entry.name for entry in run.folder.iterdir()) == found["kept"]
    assert client.get("/api/runs").json() == []


def test_a_link_in_a_run_is_removed_and_its_target_is_not(client, studio, make_run):
    run = make_run("a", ("start", START), STOP)
    (studio.folder / "precious").mkdir()
    (studio.folder / "precious" / "file").write_text("here")
    run.result.symlink_to(studio.folder / "precious")
    client.delete(f"/api/runs/{row(client, 'a')['id']}")
    assert not run.folder.exists() and (studio.folder / "precious" / "file").read_text() == "here"


@pytest.mark.parametrize("needed", ["held", "queued", "served", "base"])
def test_a_run_that_something_needs_is_not_deleted(client, studio, make_run, recipe, needed):
    run = make_run("a", ("start", START), STOP)
    name = row(client, "a")["id"]

    def refused(says: str) -> None:
        answer = client.delete(f"/api/runs/{name}")
        assert answer.status_code == 400 and says in answer.json()["error"]["message"]
        assert Run(run.folder).exists

    if needed == "held":
        with run.held():
            refused("a process works on it")
    elif needed == "queued":
        studio.store.add("train", run.folder)
        refused("job 1 of the queue")
    elif needed == "served":
        with held(["cpu"], "serving", folder=run.folder / "adapter"):
            refused("(serving)")
    else:
        Run.create(recipe(model={"path": str(run.folder / "model")}, name="b", output=str(studio.folder / "runs")))
        refused("base of the run b")
    if needed in ("held", "served"):
        assert client.delete(f"/api/runs/{name}").status_code == 200


def test_runs_are_put_side_by_side(client, studio, make_run, recipe):
    make_run("a", ("start", START), *steps(2))
    other = Run.create(recipe(name="b", train={"learning_rate": 5e-4}, output=str(studio.folder / "runs")))
    other.log("start", **START)
    names = [row(client, name)["id"] for name in ("a", "b")]
    found = client.get("/api/compare", params={"runs": names}).json()
    assert [one["name"] for one in found["runs"]] == ["a", "b"]
    [different] = [one for one in found["differences"] if one["key"] == "train.learning_rate"]
    assert different["values"][1] == 5e-4
    assert client.get("/api/compare", params={"runs": names[:1]}).status_code == 422


def test_a_list_that_has_not_changed_is_not_read_again(client, make_run, monkeypatch):
    for number in range(5):
        make_run(f"run-{number}", ("start", START), *steps(3))
    client.get("/api/runs")
    read = []
    monkeypatch.setattr("tunesmith.studio.catalogue.summary", lambda run: read.append(run.name))
    assert len(client.get("/api/runs").json()) == 5 and read == []
    time.sleep(0.01)


def test_logs_of_jobs_are_read_in_parts(client, studio, make_run):
    run = make_run("a")
    job = studio.store.add("train", run.folder)
    assert client.get(f"/api/jobs/{job.id}/log").json() == {"text": "", "offset": 0}
    file = studio.store.file_of(job.id, "log")
    file.parent.mkdir(exist_ok=True)
    file.write_text("first\nsecond\n")
    part = client.get(f"/api/jobs/{job.id}/log", params={"offset": -7}).json()
    assert part == {"text": "second\n", "offset": 13}
    assert client.get(f"/api/jobs/{job.id}/log", params={"offset": 6}).json()["text"] == "second\n"
    assert client.get("/api/jobs/9/log").status_code == 400


def test_a_paused_run_says_so(client, make_run):
    run = make_run("a", ("start", START), *steps(3), ("pause", {"step": 3}))
    with run.held():
        found = client.get(f"/api/runs/{row(client, 'a')['id']}").json()
    assert found["row"]["status"] == "paused" and found["ending"] == "The run is paused at step 3 of 10."
