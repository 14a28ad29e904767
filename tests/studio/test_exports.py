"""Exports through the studio: forms, jobs, and what a run has."""

import json

import pytest

from tests.studio.calling import calling, studio_in
from tunesmith import Recipe
from tunesmith.cli.main import app
from tunesmith.export.forms import FORMS
from tunesmith.run import Run
from tunesmith.studio.catalogue import id_of


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("tunesmith.studio.routes.exports.ensure_kept", lambda store: None)  # nothing starts


@pytest.fixture
def studio(tmp_path):
    return studio_in(tmp_path)


@pytest.fixture
def client(studio):
    with calling(studio) as client:
        yield client


@pytest.fixture
def run(tmp_path) -> Run:
    """A run with a result."""
    (tmp_path / "d.jsonl").write_text('{"text": "a"}\n')
    values = {"model": {"path": "m"}, "data": {"train": str(tmp_path / "d.jsonl")}, "output": str(tmp_path / "runs")}
    made = Run.create(Recipe.build(values | {"name": "first"}))
    made.result.mkdir()
    return made


def message(answer) -> str:
    assert answer.status_code == 400
    return answer.json()["error"]["message"]


def test_all_forms_have_their_settings(client):
    found = {form["name"]: form["settings"] for form in client.get("/exports/forms").json()}
    assert set(found) >= {name.replace("_", "-") for name in FORMS}
    precision = found["gguf"]["properties"]["precision"]
    assert precision["default"] == "bf16" and "q4_k_m" in precision["enum"] and precision["description"]


def test_an_export_becomes_a_job_whose_flags_the_command_takes(client, studio, run):
    path = f"/runs/{id_of(run.folder)}/exports"
    settings = {"precision": "q4_k_m", "importance": True}
    found = client.post(path, json={"form": "gguf", "settings": settings, "parity": False}).json()
    [job] = studio.store.jobs()
    assert [(one["form"], one["state"], one["job"]) for one in found["jobs"]] == [("gguf", "waiting", job.id)]
    assert (job.kind, job.asked_by, job.folder, job.after) == ("export", "studio", str(run.folder), None)
    _, bound, _ = app.parse_args(["export", job.folder, *job.arguments], exit_on_error=False)
    assert bound.arguments["to"] == "gguf" and bound.arguments["parity"] is False
    assert bound.arguments["settings"] == settings
    assert "in the queue already" in message(client.post(path, json={"form": "gguf"}))


def test_what_cannot_be_exported_is_refused_at_once(client, studio, run):
    path = f"/runs/{id_of(run.folder)}/exports"
    assert "no such form" in message(client.post(path, json={"form": "../x"}))
    assert "precision" in message(client.post(path, json={"form": "gguf", "settings": {"precision": "q1"}}))
    assert "precision" in message(client.post(path, json={"form": "merged", "settings": {"precision": "q1"}}))
    (run.folder / "merged").mkdir()
    assert "exists already" in message(client.post(path, json={"form": "merged"}))
    run.result.rmdir()
    assert "no result" in message(client.post(path, json={"form": "gguf"}))
    assert studio.store.jobs() == []


def test_an_export_of_a_run_that_is_queued_waits_for_it(client, studio, run):
    run.result.rmdir()
    training = studio.store.add("train", run.folder)
    client.post(f"/runs/{id_of(run.folder)}/exports", json={"form": "gguf"})
    [job] = [job for job in studio.store.jobs() if job.kind == "export"]
    assert job.after == training.id and job.after_success


def test_written_exports_are_listed_with_their_comparison(client, run):
    for name, report in (
        ("merged", {"form": "merged", "passed": True, "logits": {"mean_kl": 1e-6}}),
        ("gguf.failed", {"form": "gguf", "passed": False, "problem": "logits: mean KL 1"}),
    ):
        folder = run.folder / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x" * 100)
        (folder / "parity.json").write_text(json.dumps(report))
    failed, merged = client.get(f"/runs/{id_of(run.folder)}/exports").json()["written"]
    assert (merged["form"], merged["passed"], merged["report"]["logits"]) == ("merged", True, {"mean_kl": 1e-6})
    assert merged["bytes"] == 100 + len((run.folder / "merged" / "parity.json").read_text())
    assert merged["commands"][0] == f"tunesmith serve {run.folder / 'merged'}"
    assert (failed["passed"], failed["problem"], failed["commands"]) == (False, "logits: mean KL 1", [])
