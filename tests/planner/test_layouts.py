"""The planner chooses the fastest layout that fits. Expectations are the arithmetic of the machines."""

import re
from pathlib import Path

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig

from tests.planner.test_predict import LLAMA_8B
from tunesmith.errors import UserError
from tunesmith.model.load import config_of
from tunesmith.planner.machine_spec import described
from tunesmith.planner.predict import predict, surely_fits, with_thin_link
from tunesmith.planner.prediction import Prediction
from tunesmith.recipe import Recipe

LLAMA_70B = LlamaConfig(
    **LLAMA_8B.to_dict()
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
)
QWEN_30B_A3B = Qwen3MoeConfig(
    architectures=["Qwen3MoeForCausalLM"],
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    num_experts=128,
    num_experts_per_tok=8,
    max_position_embeddings=40960,
)
SMALL = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    max_position_embeddings=2048,
)


def planned(folder: Path, config, machine: str, **asked) -> Prediction:
    """32 rows of 1,024 tokens a step."""
    config.save_pretrained(folder)
    recipe = Recipe.build(
        {
            "model": {"path": str(folder)} | asked.get("model", {}),
            "data": {"train": "none.jsonl", "sequence_length": 1024},
            "adapter": {"kind": asked.get("kind", "lora")},
            "train": {"batch": 32} | asked.get("train", {}),
        }
    )
    return predict(recipe, described(machine), config_of(folder), folder)


def test_activations_are_kept_while_they_fit(tmp_path):
    """A model of 1.1B weights needs recomputation on 8 GB, and fewer tokens in a pass on the way there."""
    few = {"batch": 4}
    large = planned(tmp_path, SMALL, "A100-PCIe-80GB,host=64GB", train=few)
    assert large.fits and large.plan.gradient_checkpointing == "off"
    small = planned(tmp_path, SMALL, "3070,host=64GB", train=few)
    assert small.fits and small.plan.kept_layers is None
    assert small.plan.gradient_checkpointing != "off" or small.plan.micro_batch_tokens < 4096
    assert small.plan.reasons["gradient_checkpointing"] == "the fastest that fits"


def test_a_recipe_that_says_so_is_not_changed(tmp_path):
    found = planned(tmp_path, SMALL, "3060-12GB,host=64GB", train={"gradient_checkpointing": "on", "micro_batch": 2})
    assert (found.plan.gradient_checkpointing, found.plan.micro_batch_tokens) == ("on", 2048)
    alone = planned(tmp_path, SMALL, "3070+4090,host=64GB", train={"processes": 1, "micro_batch": 1})
    assert [need.place.name for need in alone.needs] == ["NVIDIA GeForce RTX 3070"]


def test_a_gpu_that_slows_the_others_down_is_left_out(tmp_path):
    """Gradients of all weights, 4.4 GB, through one lane take longer than an A6000 saves."""
    one_pass = {"micro_batch": 1, "gradient_checkpointing": "on"}
    found = planned(tmp_path, SMALL, "A100-PCIe-80GB@4.0x16+A6000@3.0x1,host=64GB", kind="full", train=one_pass)
    assert [need.place.name for need in found.needs] == ["NVIDIA A100 80GB PCIe"]
    [why] = found.left_out.values()
    assert re.fullmatch(r"with it [\d,]+ tokens/s instead of [\d,]+", why)


@pytest.mark.slow
def test_8b_on_a_4090_and_a_3090_shares_by_speed(tmp_path):
    found = planned(tmp_path, LLAMA_8B, "4090+3090,host=128GB,link=4.0x8")
    shares = [lane.tokens / found.speed.tokens for lane in found.speed.lanes]
    assert found.plan.kept_layers is None and shares == pytest.approx([0.7, 0.3], abs=0.03)
    alone = next(other for other in found.alternatives if other.change.endswith("4090 alone"))
    assert found.speed.tokens_per_second / alone.tokens_per_second == pytest.approx(1.4, abs=0.1)


@pytest.mark.slow
def test_a_small_gpu_beside_a_large_one_keeps_some_layers(tmp_path):
    found = planned(tmp_path, LLAMA_8B, "4090+3060-12GB,host=128GB,link=4.0x8")
    assert found.plan.kept_layers[0] == 32 and 4 <= found.plan.kept_layers[1] <= 16
    alone = next(other for other in found.alternatives if "4090 alone" in other.change)
    assert found.speed.tokens_per_second / alone.tokens_per_second == pytest.approx(1.15, abs=0.05)


@pytest.mark.slow
def test_70b_in_4_bits_streams_through_two_3090s(tmp_path):
    found = planned(tmp_path, LLAMA_70B, "2x3090,host=64GB,link=4.0x8", model={"quantize": "nf4"})
    assert found.fits and 0 < min(found.plan.kept_layers) < 80 and found.speed.bound == "compute"


@pytest.mark.slow
def test_8b_in_full_on_one_gpu_needs_small_states(tmp_path):
    with pytest.raises(UserError, match=r"they need 1\d\d.\d GB of host memory; 57.6 GB are free; .* adafactor"):
        planned(tmp_path, LLAMA_8B, "4090,host=64GB", kind="full")
    small = {"weights": "bfloat16", "optimizer": "adafactor"}
    found = planned(tmp_path, LLAMA_8B, "4090,host=64GB", kind="full", train=small)
    assert found.fits and 0 < found.plan.kept_layers[0] < 32


@pytest.mark.slow
def test_thin_links_favour_4_bits(tmp_path):
    link = "2x3090,host=128GB,link=3.0x8"
    whole, quantised = (planned(tmp_path, QWEN_30B_A3B, link, model={"quantize": how}) for how in ("none", "nf4"))
    assert whole.speed.bound == "link" and quantised.speed.tokens_per_second > 1.2 * whole.speed.tokens_per_second


@pytest.mark.slow
def test_gpus_on_risers_keep_all_layers(tmp_path):
    found = planned(tmp_path, LLAMA_8B, "4x3090,host=128GB,link=3.0x1")
    assert found.plan.kept_layers is None and len(found.needs) == 4


def test_only_models_that_are_small_beside_the_memory_are_not_traced(tmp_path, family):
    recipe = Recipe.build({"model": {"path": str(family("llama3"))}, "data": "d"})
    base = family("llama3")
    assert surely_fits(recipe, described("3060-12GB,host=16GB"), config_of(base), base)
    SMALL.save_pretrained(tmp_path)
    recipe = Recipe.build({"model": {"path": str(tmp_path)}, "data": "d"})
    assert not surely_fits(recipe, described("A100-PCIe-80GB,host=64GB"), config_of(tmp_path), tmp_path)


@pytest.mark.slow
def test_4_bits_are_proposed_where_layers_wait_for_the_link(tmp_path):
    """All layers come from host memory over one lane, or over sixteen for many more tokens."""
    for lanes, batch, proposed in ((1, 1, ["model.quantize: nf4"]), (16, 32, [])):
        asked = {"kept_layers": 0, "micro_batch": 1, "batch": batch}
        found = planned(tmp_path, SMALL, machine := f"3090,host=64GB,link=4.0x{lanes}", train=asked)
        recipe = Recipe.build({"model": {"path": str(tmp_path)}, "data": {"train": "none"}, "train": asked})
        with_nf4 = with_thin_link(found, recipe, described(machine), config_of(tmp_path), tmp_path)
        assert [other.change for other in with_nf4.alternatives] == proposed
        assert (found.speed.bound == "link") is bool(proposed)
        assert not proposed or "60.2" in with_nf4.alternatives[0].quality
