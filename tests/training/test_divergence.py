"""A run that makes the model much worse is stopped and says so; the untrained model is a candidate for the best."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

from tests.finetune.test_failures import command
from tunesmith.errors import Diverged
from tunesmith.evaluate import heldout, summary
from tunesmith.files import json_text
from tunesmith.finetune import job, worker
from tunesmith.recipe import Recipe, Train
from tunesmith.run import Run
from tunesmith.training.checkpoint import State, complete
from tunesmith.training.divergence import check_held_out, check_step

FULL = {"kind": "full"}
WILD = {"learning_rate": 3.0, "warmup_ratio": 0.0, "max_steps": 12}


def strict(text: str):
    """What a parser reads that knows no Infinity and no NaN, as that of every other language."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def assert_valid_json(run: Run) -> None:
    for file in run.folder.glob("**/*.json"):
        strict(file.read_text())
    for file in run.folder.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            strict(line)


@pytest.mark.parametrize("base", ["qwen2", "gemma3"])
def test_a_held_out_loss_far_above_that_before_training(recipe, tmp_path, monkeypatch, capsys, base):
    asked = recipe(base, adapter=FULL, data={"eval_share": 0.1}, train=WILD | {"eval_every": 4})
    (tmp_path / "recipe.yaml").write_text(asked.dump())
    status, lines = command(monkeypatch, capsys, "train", tmp_path / "recipe.yaml")
    run = Run(asked.output / "run")
    before, after = (event["loss"] for event in run.events("eval"))
    assert status == 1 and after > 3 * before
    assert f"rose from {before:.4g} before training to {after:.4g}" in lines[-1]
    assert "train.learning_rate: 0.0002 (it was 3)" in lines[-1]
    assert not any("Traceback" in line or "best so far" in line for line in lines)
    facts = summary.summary(run)
    assert (facts["status"], facts["steps_done"]) == ("diverged", 4) and not run.result.exists()
    assert f"from {before:.2f} to" in summary.verdict(run).text and summary.verdict(run).tone == "worse"
    assert "Training diverged" in run.report_file.read_text()
    assert_valid_json(run)


def test_a_training_loss_far_above_the_first_without_held_out_rows(recipe):
    asked = recipe("qwen2", adapter=FULL, train=WILD)
    with pytest.raises(Diverged, match="training loss rose from"):
        job.train(asked)
    run = Run(asked.output / "run")
    losses = [event["loss"] for event in run.events("step")]
    assert 6 <= len(losses) < 12 and min(losses[-5:]) > 3 * losses[0]
    assert [event["reason"] for event in run.events("stop")] == ["diverged"] and run.report_file.exists()


def test_switched_off_it_runs_to_its_end_and_says_what_came_of_it(recipe):
    asked = recipe(
        "qwen2",
        adapter=FULL,
        data={"eval_share": 0.1},
        train=WILD | {"max_loss_ratio": 0, "max_steps": 4, "eval_every": 2},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run = job.train(asked)
    assert summary.verdict(run).tone == "worse"
    assert not any(event["best"] for event in run.events("checkpoint"))
    assert_valid_json(run)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_best_of_a_run_that_never_gained_is_the_untrained_model(recipe, family, monkeypatch, kind):
    monkeypatch.setattr(worker, "log_evaluation", lambda job, state: 99.0)
    run = job.train(
        recipe(
            adapter={"kind": kind},
            data={"eval_share": 0.1},
            train={"max_loss_ratio": 0, "max_steps": 4, "eval_every": 2, "result": "best", "keep_checkpoints": 1},
        )
    )
    assert [event["step"] for event in run.events("checkpoint") if event["best"]] == [0]
    assert any("the result, train.result: best, is the untrained" in e["message"] for e in run.events("warning"))
    evaluation = strict(run.eval_file.read_text())
    assert evaluation["difference"]["loss"] == {"mean": 0, "low": 0, "high": 0}
    [weights] = run.result.glob("*.safetensors")
    if kind == "lora":
        assert all(not tensor.any() for name, tensor in load_file(weights).items() if "lora_B" in name)
    else:
        base = load_file(family("llama3") / "model.safetensors")
        assert all(torch.equal(tensor, base[name]) for name, tensor in load_file(weights).items())


def test_a_run_resumes_from_its_untrained_weights(recipe, monkeypatch):
    """Killed after the checkpoint of step 0: the rest is as in a run that was not."""
    asked = {
        name: recipe(name=name, data={"eval_share": 0.1}, train={"max_steps": 3, "eval_every": 1, "result": "best"})
        for name in ("whole", "killed")
    }
    whole = job.train(asked["whole"])
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.training.loop.learning_rate", lambda *_: [][0])
        with pytest.raises(IndexError):
            job.train(asked["killed"])
    killed = Run(asked["killed"].output / "killed")
    assert [folder.name for folder in complete(killed.checkpoints)] == ["step-000000"]
    job.resume(killed.folder)
    assert [e["loss"] for e in killed.events("step")] == [e["loss"] for e in whole.events("step")]


def test_three_times_almost_nothing_is_no_divergence():
    state = State(step=1, base_loss=0.001)
    check_held_out(Train(), state, 0.29)
    with pytest.raises(Diverged):
        check_held_out(Train(), state, 0.31)
    check_held_out(Train(max_loss_ratio=0), state, 1e9)
    with pytest.raises(Diverged):
        check_held_out(Train(), state, float("nan"))


def test_one_hard_batch_is_no_divergence():
    """Nor are some losses that a model has which knows nothing: e^7 tokens, equally likely."""
    state, vocabulary = State(), round(2.718281828**7)
    for step, loss in enumerate([1, 9, 9, 9, 9, 6.9, 9, 9, 9, 9], 1):
        state.step = step
        check_step(Train(), state, loss, vocabulary)
    state.step += 1
    with pytest.raises(Diverged, match="from 1 at step 1 to 9"):
        check_step(Train(), state, 9, vocabulary)


def test_numbers_that_json_does_not_have():
    value = {"loss": float("inf"), "rows": [1.5, float("nan"), (2, -float("inf"))], "text": "Infinity"}
    assert strict(json_text(value)) == {"loss": None, "rows": [1.5, None, [2, None]], "text": "Infinity"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = heldout.compare({"losses": [[2.0, 1], [3.0, 1]]}, {"losses": [[1313.0, 1], [None, 1]]})
        heldout.compare({"losses": [[2.0, 1]]}, {"losses": [[1313.0, 1]]})
    assert strict(json_text(found))["after"]["perplexity"]["mean"] is None


@pytest.mark.parametrize("ratio", [0.5, 1, -1])
def test_a_ratio_that_would_stop_a_run_that_learns(ratio):
    with pytest.raises(Exception, match="train.max_loss_ratio"):
        Recipe.build({"model": {"path": "m"}, "data": {"train": "d"}, "train": {"max_loss_ratio": ratio}})
