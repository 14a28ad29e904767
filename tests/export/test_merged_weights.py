"""Merging one layer at a time gives the same weights as PEFT with the whole model in memory."""

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests import tiny
from tunesmith import train
from tunesmith.export.export import export
from tunesmith.export.forms import merged
from tunesmith.export.merged_weights import weights_of
from tunesmith.finetune.result import trained_model

QUICK = {"max_steps": 2, "learning_rate": 1e-2}
ADAPTERS = [
    {},
    {"rslora": True},
    {"dora": True},
    {"targets": ["q_proj", "down_proj"]},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["embed_tokens"]},
]


def by_peft(run) -> dict[str, torch.Tensor]:
    model = trained_model(run, quantize="none").merge_and_unload(safe_merge=True)
    return dict(model.state_dict())


def assert_same(run) -> None:
    expected = by_peft(run)
    weights = weights_of(run)
    found = dict(weights)
    assert list(found) == list(weights.shapes)
    assert {name: tensor.shape for name, tensor in found.items()} == weights.shapes
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=0, atol=1e-6), name
    tied = set(expected) - set(found)
    assert all(torch.equal(expected[name], expected["model.embed_tokens.weight"]) for name in tied)
    assert bool(tied) == bool(weights.config.get_text_config().tie_word_embeddings)


@pytest.mark.parametrize("base", ["llama3", "qwen3"])  # untied and tied
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda a: "-".join(f"{k}:{v}" for k, v in a.items()) or "lora")
def test_adapters(recipe, base, adapter):
    assert_same(train(recipe(base, adapter=adapter, train=QUICK)))


@pytest.mark.parametrize("base", ["llama3", "qwen3"])
def test_a_head_that_was_adapted_separately(recipe, tmp_path, base):
    """Where it was tied, PEFT merges into the embedding too, which training did not; so it is no reference here."""
    run = train(recipe(base, adapter={"targets": ["lm_head", "q_proj"]}, train=QUICK))
    assert export(run, "merged", tmp_path / "merged")["passed"]


@pytest.mark.parametrize("base", [f for f in tiny.FAMILIES if f not in ("llama3", "qwen3")])
def test_families(recipe, base):
    assert_same(train(recipe(base, train=QUICK)))


@pytest.mark.parametrize("base", ["llama3", "qwen3"])
def test_new_tokens(recipe, base):
    assert_same(train(recipe(base, train=QUICK, tokens=["<call>", "</call>"])))


def test_only_one_layer_is_in_memory(recipe):
    weights = weights_of(train(recipe(train=QUICK)))
    for layer in weights.layers():
        assert len({name.split(".")[2] for name in layer if ".layers." in name}) <= 1
        assert all(parameter.is_meta for parameter in weights.model.parameters())


def test_pieces_have_the_names_transformers_looks_for(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(merged, "SHARD_BYTES", 20_000)
    run = train(recipe("qwen3_moe", train=QUICK))
    export(run, "merged", tmp_path / "merged")
    files = sorted(file.name for file in (tmp_path / "merged").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    with safe_open(tmp_path / "merged" / files[0], "pt") as first:
        assert first.metadata() == {"format": "pt"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert all(torch.allclose(model.state_dict()[name], tensor, atol=1e-6) for name, tensor in by_peft(run).items())
