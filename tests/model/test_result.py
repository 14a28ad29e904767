"""A saved result opens in plain Transformers and PEFT as the model that was trained."""

import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.conftest import slow_but
from tunesmith import train
from tunesmith.export.export import export
from tunesmith.finetune import worker
from tunesmith.training.build import adapt_model, load_model
from tunesmith.training.checkpoint import complete, load
from tunesmith.training.optimizer import build_optimizer

QUICK = {"max_steps": 3, "learning_rate": 1e-2}


def trained_logits(run, ids) -> torch.Tensor:
    """Returns the logits of the trained model, rebuilt from the last checkpoint's tensors."""
    model = adapt_model(run, load_model(run, run.plan, run.base))
    load(complete(run.checkpoints)[-1], build_optimizer(model, run.recipe.train), states=False)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        return model.eval()(ids).logits


def logits(model, ids) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(ids).logits


@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"rslora": True},
        {"dora": True},
        {"targets": ["q_proj", "down_proj"]},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=lambda a: "-".join(a) or "lora",
)
def test_adapters_open_and_merge(recipe, tmp_path, adapter):
    run = train(recipe(adapter=adapter, train=QUICK))
    ids = torch.randint(5, 300, (1, 24), generator=torch.Generator().manual_seed(0))
    expected = trained_logits(run, ids)
    opened = logits(AutoPeftModelForCausalLM.from_pretrained(run.result), ids)
    assert torch.allclose(opened, expected, atol=1e-5)
    found = export(run, "merged", tmp_path / "merged")
    assert found["passed"] and found["logits"]["mean_kl"] < 1e-6
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids)
    assert torch.allclose(merged, expected, atol=1e-4)


@pytest.mark.parametrize("name", slow_but(("gemma3", "phi3", "qwen3_moe"), [f for f in tiny.FAMILIES if f != "llama3"]))
def test_every_family_merges(recipe, tmp_path, name):
    run = train(recipe(name, train=QUICK))
    ids = torch.randint(5, 300, (1, 24), generator=torch.Generator().manual_seed(0))
    export(run, "merged", tmp_path / "merged")
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids)
    assert torch.allclose(merged, trained_logits(run, ids), atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("model", ["llama3", "qwen3"])  # untied and tied embeddings
def test_new_tokens_are_learned_and_saved(recipe, tmp_path, kind, model):
    run = train(recipe(model, adapter={"kind": kind}, train=QUICK, tokens=["<call>", "</call>"]))
    tokenizer = AutoTokenizer.from_pretrained(run.result)
    new = tokenizer("<call></call>", add_special_tokens=False).input_ids
    assert len(new) == 2
    ids = torch.tensor([[5, 6, *new, 7]])
    opener = AutoPeftModelForCausalLM if kind == "lora" else AutoModelForCausalLM
    assert torch.allclose(logits(opener.from_pretrained(run.result), ids), trained_logits(run, ids), atol=1e-5)


def test_activation_checkpointing_changes_no_loss(recipe):
    runs = [train(recipe(name=mode, train=QUICK | {"gradient_checkpointing": mode})) for mode in ("on", "off")]
    first, second = ([e["loss"] for e in run.events("step")] for run in runs)
    assert first == pytest.approx(second, abs=1e-6)


def test_frequencies_of_positions_stay_in_float32_when_the_result_is_measured(recipe, family, tmp_path, monkeypatch):
    base = tmp_path / "bfloat16"
    shutil.copytree(family("llama3"), base)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    measured, measure = {}, worker.measure

    def note(job, state):
        measured.update(job.model.named_buffers())
        return measure(job, state)

    monkeypatch.setattr(worker, "measure", note)
    run = train(recipe(model={"path": str(base)}, data={"eval_share": 0.1}, adapter={"kind": "full"}, train=QUICK))
    model = AutoModelForCausalLM.from_pretrained(run.result)
    assert model.dtype == torch.bfloat16 and measured
    for name, buffer in model.named_buffers():
        assert measured[name].dtype == torch.float32 and torch.equal(measured[name], buffer)
