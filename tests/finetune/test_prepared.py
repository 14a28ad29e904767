"""What preparation leaves behind for those who work on a run."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.conftest import sums, write_rows
from tunesmith import train
from tunesmith.data import source
from tunesmith.errors import UserError
from tunesmith.finetune import job, prepare
from tunesmith.finetune.prepared import Prepared
from tunesmith.machine import probe
from tunesmith.run import Run


def test_a_run_lists_the_files_of_a_source_once_to_prepare_and_once_to_train(recipe, family, tmp_path, monkeypatch):
    write_rows(tmp_path / "rows.jsonl", sums(40))
    listed: Counter[str] = Counter()

    def counting(asked, select=source.select):
        listed[asked.path] += 1
        return select(asked)

    monkeypatch.setattr(source, "select", counting)
    path = str(tmp_path / "rows.jsonl")
    train(recipe("qwen3", data={"train": path}, train={"max_steps": 1}))
    assert listed == {path: 2}


def test_a_run_is_opened_as_it_was_prepared(recipe, family, tmp_path):
    run = train(recipe("qwen3", train={"max_steps": 1}))
    plan = Run(run.folder).plan
    assert plan == run.plan
    assert plan.as_dict() == run.events("plan")[0]["plan"]
    prepared = Prepared.open(Run(run.folder))
    assert len(prepared.dataset.train) == run.events("start")[0]["rows"]
    assert prepared.schedule.steps == run.events("start")[0]["steps"]
    assert prepared.dataset.ledger == plan.ledger


def test_a_step_that_does_not_fit_is_refused_unless_it_is_forced(recipe, monkeypatch, tmp_path):
    """A process needs 0.9 GB beside tensors, and this machine has 0.95 GB, of which a tenth is left alone."""
    monkeypatch.setattr(prepare, "probe", lambda folder: replace(probe(folder), free_memory_bytes=950 * 10**6))
    asked = recipe("qwen3", train={"max_steps": 1})
    with pytest.raises(UserError, match=r"^CPU: a training step needs 9\d\d.\d MB, and it may take 90\s% of 950.0 MB"):
        job.train(asked)
    assert not any(asked.output.glob("*/plan.json"))
    run = job.train(asked, force=True)
    assert "it may take 90\xa0%" in " ".join(event["message"] for event in run.events("warning"))
    [need] = run.plan.predicted["needs"]
    assert need["name"] == "CPU" and need["bytes"] == sum(need["parts"].values()) > 900 * 10**6


def test_a_prediction_that_fails_stops_no_training(recipe, monkeypatch):
    monkeypatch.setattr(prepare, "surely_fits", lambda *given: False)
    monkeypatch.setattr("tunesmith.planner.apart.sys.executable", "/bin/false")
    run = job.train(recipe("qwen3", train={"max_steps": 1}))
    assert any("memory and time are not predicted" in event["message"] for event in run.events("warning"))
    assert run.plan.predicted == {} and run.result.exists()
