"""What determines a run's result is checked before it resumes; a damaged checkpoint is passed over."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file

from tests.conftest import sums, write_rows
from tests.finetune.test_failures import command, contents
from tunesmith.errors import UserError
from tunesmith.finetune import job, provenance, worker
from tunesmith.run import Run
from tunesmith.training import checkpoint


@pytest.fixture
def stopped(recipe, tmp_path, family):
    """A run that has a base and a template of its own, and was stopped after step 2 of 3."""
    model = tmp_path / "model"
    shutil.copytree(family("qwen2"), model)
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    run = job.train(
        recipe(
            model={"path": str(model), "chat_template": str(template)},
            train={"max_steps": 3, "save_every": 1, "keep_checkpoints": 3},
        )
    )
    shutil.rmtree(run.result)
    shutil.rmtree(run.checkpoints / "step-000003")
    return run


def set_in_recipe(run: Run, section: str, **values) -> None:
    recipe = yaml.safe_load(run.recipe_file.read_text())
    recipe[section] |= values
    run.recipe_file.write_text(yaml.safe_dump(recipe))


def change_plan(run: Run) -> None:
    run.plan_file.write_text(json.dumps(run.plan.as_dict() | {"sequence_length": 64}))


CHANGES = {
    "train.learning_rate": lambda run: set_in_recipe(run, "train", learning_rate=1e-4),
    "adapter.alpha": lambda run: set_in_recipe(run, "adapter", alpha=9),
    "data.train": lambda run: set_in_recipe(run, "data", train=[{"path": "elsewhere.jsonl"}]),
    "plan: plan.json": change_plan,
    "tokenizer: chat_template.jinja": lambda run: (run.tokenizer / "chat_template.jinja").write_text("another"),
    "tokenizer: added.json": lambda run: (run.tokenizer / "added.json").write_text("{}"),
    "model.path: generation_config.json": lambda run: (run.base / "generation_config.json").write_text("{}"),
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_determines_the_result_must_be_as_it_was(stopped, monkeypatch, capsys, said):
    CHANGES[said](stopped)
    before = contents(stopped.folder)
    status, [line] = command(monkeypatch, capsys, "resume", stopped.folder)
    assert status == 2 and f"{said} is not what it was" in line
    assert contents(stopped.folder) == before


def test_what_does_not_determine_it_may_change(stopped, tmp_path, monkeypatch):
    """The run's own name and place, how the recipe is written, and the template's file, of which the run has a copy."""
    (tmp_path / "template.jinja").unlink()
    moved = Run(stopped.folder.rename(tmp_path / "moved"))
    recipe = yaml.safe_load(moved.recipe_file.read_text())
    moved.recipe_file.write_text("# a remark\n" + yaml.safe_dump(recipe | {"name": "moved", "output": str(tmp_path)}))
    version = provenance._version
    monkeypatch.setattr(provenance, "_version", lambda name: "0.0.1" if name == "torch" else version(name))
    assert job.resume(moved.folder).result.is_dir()
    [warning] = moved.events("warning")
    assert warning["message"].startswith("torch was ") and "is 0.0.1 now" in warning["message"]


def cut(file: str, size: int):
    def damage(folder):
        with open(folder / file, "r+b") as opened:
            opened.truncate(size)

    return damage


DAMAGES = {
    "weights": cut("trained.safetensors", 1000),
    "header": cut("trained.safetensors", 4),
    "moments": cut("optimizer.safetensors", 2000),
    "numbers": cut("optimizer.json", 1),
    "state": cut("state.json", 10),
    "empty state": cut("state.json", 0),
    "missing": lambda folder: (folder / "optimizer.safetensors").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(stopped, damage):
    whole = [event["loss"] for event in stopped.events("step")]
    DAMAGES[damage](stopped.checkpoints / "step-000002")
    job.resume(stopped.folder)
    [warning] = stopped.events("warning")
    assert "step-000002 is damaged" in warning["message"] and "continues from step-000001" in warning["message"]
    assert stopped.events("resume")[-1]["step"] == 1
    assert [event["loss"] for event in stopped.events("step")] == whole
    assert sorted(folder.name for folder in stopped.checkpoints.iterdir()) == [
        "damaged-step-000002",
        "step-000001",
        "step-000002",
        "step-000003",
    ]


def test_without_a_whole_checkpoint_it_is_refused(stopped, monkeypatch, capsys):
    for folder in checkpoint.complete(stopped.checkpoints):
        DAMAGES["weights"](folder)
    before = contents(stopped.folder)
    status, lines = command(monkeypatch, capsys, "resume", stopped.folder)
    assert status == 2 and "step-000002: this checkpoint is damaged" in lines[-1]
    assert contents(stopped.folder) == before


def test_the_best_checkpoint_damaged_is_said(recipe, monkeypatch):
    """Its weights were to be the result: the last ones are, with a warning."""
    losses = iter([1.0, 2.0])
    monkeypatch.setattr(worker, "log_evaluation", lambda job, state: next(losses))
    load_best = worker._load_best

    def damage_and_load(job, state):
        DAMAGES["weights"](job.run.checkpoints / "step-000001")
        load_best(job, state)

    monkeypatch.setattr(worker, "_load_best", damage_and_load)
    run = job.train(recipe(data={"eval_share": 0.1}, train={"max_steps": 2, "eval_every": 1, "result": "best"}))
    assert "the best weights, of step 1, were not saved or are damaged" in run.events("warning")[-1]["message"]
    saved = load_file(run.checkpoints / "step-000002" / "trained.safetensors")
    result = load_file(run.result / "adapter_model.safetensors")
    assert all((tensor == result[name.replace(".default", "")]).all() for name, tensor in saved.items())


def test_a_damaged_plan_is_one_line(stopped, monkeypatch, capsys):
    stopped.plan_file.write_text('{"device": "cp')
    status, [line] = command(monkeypatch, capsys, "resume", stopped.folder)
    assert status == 2 and "plan.json: damaged, not valid JSON" in line


SOURCES = {
    "empty": ([], "0 rows read"),
    "repeated": (sums(96), "96 rows read, 96 × .*(same|duplicate)"),
    "bad": ([{"messages": [{"role": "user", "content": "Hello"}]}] * 3, "3 rows read, 3 × "),
}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("key", ["train", "eval"])
def test_a_source_that_gives_no_row_is_refused(recipe, tmp_path, key, kind):
    rows, why = SOURCES[kind]
    other = str(write_rows(tmp_path / "other.jsonl", rows))
    first = str(tmp_path / "data.jsonl")
    if key == "eval" and kind == "repeated":  # then the rows to learn from are what is lost
        asked = recipe(data={"train": first, "eval": other})
        why = "data.train: .*data.jsonl gives no row: 96 rows read, 96 × "
    elif key == "eval":
        asked = recipe(data={"train": first, "eval": other})
        why = f"data.eval: .*other.jsonl gives no row: {why}"
    else:
        asked = recipe(data={"train": [first, other]})
        why = f"data.train: .*other.jsonl gives no row: {why}"
    with pytest.raises(UserError, match=why):
        job.train(asked)
    assert not list((tmp_path / "runs").iterdir())


def test_a_weight_that_leaves_no_row_of_a_source(recipe, tmp_path):
    few = str(write_rows(tmp_path / "few.jsonl", sums(3, first=200)))
    train = [str(tmp_path / "data.jsonl"), {"path": few, "weight": 0.05}]
    with pytest.raises(UserError, match="few.jsonl gives no row: of its 3 examples, weight: 0.05 leaves none"):
        job.train(recipe(data={"train": train}))
    assert job.train(recipe(data={"train": train}, train={"epochs": 10, "max_steps": 1})).result.exists()


def test_held_out_rows_that_cannot_be_had(recipe, tmp_path):
    rows = str(write_rows(tmp_path / "few.jsonl", sums(4)))
    with pytest.raises(UserError, match="train.patience needs held-out rows, and none of 4 examples could be held out"):
        job.train(recipe(data={"train": rows, "eval_share": 0.05}, train={"patience": 2, "eval_every": None}))
    run = job.train(recipe(data={"train": rows, "eval_share": 0.05}, train={"max_steps": 1, "eval_every": None}))
    warnings = [event["message"] for event in run.events("warning")]
    assert any(said.startswith("data.eval_share: 0.05 of 4 examples holds none out") for said in warnings)
