"""Runs made by earlier versions: their folders resume, serve and export, and training learns what it learned then."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from tests.training.test_reference import losses
from tunesmith import resume, train
from tunesmith.export.export import export
from tunesmith.run import Run
from tunesmith.serve.open_models import open_models

HERE = Path(__file__).parent
MADE_IN = "/tmp/oldrun"  # where the runs of the archive were made
BOUND = 1e-4  # on another processor sums are rounded in another order; on one the losses are equal to the bit
RECORDED = json.loads((HERE / "recorded_losses.json").read_text())
RECIPES = {
    "LoRA, packed": ("llama3", {}),
    "full, padded": ("gemma3", {"adapter": {"kind": "full"}, "data": {"packing": False}}),
    "LoRA over nf4, mixture of experts": ("qwen3_moe", {"model": {"quantize": "nf4"}}),
}


@pytest.fixture
def old_runs(tmp_path) -> Path:
    """The folder of two runs made in November 2026, one of them cut off after step 3, as if they were made here."""
    with tarfile.open(HERE / "old-runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for file in [*tmp_path.glob("runs/*/*.yaml"), *tmp_path.glob("runs/**/*.json")]:
        file.write_text(file.read_text().replace(MADE_IN, str(tmp_path)))
    for run in map(Run, (tmp_path / "runs").iterdir()):
        origin = json.loads(run.provenance_file.read_text())
        origin["plan"] = {run.plan_file.name: hashlib.sha256(run.plan_file.read_bytes()).hexdigest()}
        run.provenance_file.write_text(json.dumps(origin))
    return tmp_path / "runs"


def test_a_run_that_was_cut_off_ends_as_the_whole_one_did(old_runs):
    whole, cut = Run(old_runs / "finished"), resume(old_runs / "cut")
    assert losses(cut) == pytest.approx(losses(whole), abs=BOUND) and len(losses(cut)) == 6
    assert [event["step"] for event in cut.events("resume")] == [3]
    for side in ("before", "after"):
        expected, found = (json.loads(run.eval_file.read_text())[side]["loss"]["mean"] for run in (whole, cut))
        assert found == pytest.approx(expected, abs=BOUND)


def test_a_finished_run_is_served_and_exported(old_runs, tmp_path):
    served = open_models([old_runs / "finished"])
    assert [(model.name, model.kind) for model in served.values()] == [("finished", "tuned"), ("base", "base")]
    assert export(Run(old_runs / "finished"), "merged", tmp_path / "merged")["passed"]


@pytest.mark.parametrize("kind", RECIPES)
def test_training_learns_what_it_learned_then(recipe, kind):
    base, sections = RECIPES[kind]
    assert losses(train(recipe(base, train={"max_steps": 10}, **sections))) == pytest.approx(RECORDED[kind], abs=BOUND)
