"""Architectures that change a layer's output in place, have shared experts, or also read images."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests import other
from tests.model.test_result import QUICK, logits, trained_logits
from tests.training.test_reference import losses
from tunesmith import train
from tunesmith.export.export import export
from tunesmith.model.adapt import adapt
from tunesmith.model.load import load
from tunesmith.model.text import decoder_layers
from tunesmith.recipe import Adapter, Model

IDS = torch.arange(5, 29)[None]
MOE_FAMILIES = ["Glm4Moe", "DeepseekV3", "Qwen2Moe", "Ernie4_5_Moe", "Llama4Text"]


def on_text(recipe, tmp_path, prefix: str, **sections):
    folder = other.save_text(prefix, tmp_path / prefix)
    return train(recipe(model={"path": str(folder)}, train=QUICK, **sections))


@pytest.mark.parametrize("prefix", ["Falcon", "Gemma3nText"])
def test_layers_whose_output_is_changed_in_place_train(recipe, tmp_path, prefix):
    run = on_text(recipe, tmp_path, prefix)
    assert losses(run)[-1] < losses(run)[0]
    opened = logits(AutoPeftModelForCausalLM.from_pretrained(run.result), IDS)
    assert torch.allclose(opened, trained_logits(run, IDS), atol=1e-4)


@pytest.mark.parametrize("prefix", MOE_FAMILIES)
def test_shared_experts_are_left_out_and_named(recipe, tmp_path, prefix):
    run = on_text(recipe, tmp_path, prefix)
    warnings = [event["message"] for event in run.events("warning")]
    assert sum("all-linear leaves out" in message and "shared_expert" in message for message in warnings) == 1
    names = load_file(run.result / "adapter_model.safetensors").keys()
    reached = any("experts.lora_A" in name or "experts.base_layer.lora_A" in name for name in names)
    assert reached or any("feed_forward.experts" in message for message in warnings)  # Llama 4's have another form
    assert any("self_attn" in name for name in names)
    assert not any("shared_expert." in name or "shared_experts." in name for name in names)
    opened = logits(AutoPeftModelForCausalLM.from_pretrained(run.result), IDS)
    assert torch.allclose(opened, trained_logits(run, IDS), atol=1e-4)
    export(run, "merged", tmp_path / "merged", parity=False)
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), IDS), opened, atol=1e-3)


def on_images(recipe, tmp_path, prefix: str, **sections):
    folder = other.save_images(prefix, tmp_path / prefix)
    return train(recipe(model={"path": str(folder)}, train=QUICK, **sections))


def is_text(name: str) -> bool:
    """Whether a tensor belongs to the text part, by the names in the published checkpoints."""
    return any(part in name for part in ("language_model", "text_model", "lm_head")) or name.startswith(
        ("model.layers", "model.embed_tokens", "model.norm")
    )


@pytest.mark.parametrize(
    ("prefix", "kind"), [*((prefix, "lora") for prefix in other.IMAGES), ("Gemma3", "full"), ("Qwen3VL", "full")]
)
def test_text_training_leaves_vision_alone(recipe, tmp_path, prefix, kind):
    run = on_images(recipe, tmp_path, prefix, adapter={"kind": kind})
    assert losses(run)[-1] < losses(run)[0]
    export(run, "merged", tmp_path / "merged", parity=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (run.base, tmp_path / "merged"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(map(is_text, changed))
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"] == [f"{prefix}ForConditionalGeneration"] and config["vision_config"]
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged, IDS), trained_logits(run, IDS), atol=1e-3)


@pytest.mark.parametrize("prefix", ["Mistral3", "Qwen2_5_VL"])
def test_adapters_of_multimodal_models_open_plainly(recipe, tmp_path, prefix):
    run = on_images(recipe, tmp_path, prefix, adapter={"targets": ["q_proj", "v_proj"]})
    names = load_file(run.result / "adapter_model.safetensors").keys()
    assert names and all(map(is_text, names))
    base = AutoModelForImageTextToText.from_pretrained(run.base)
    opened = PeftModel.from_pretrained(base, run.result)
    assert torch.allclose(logits(opened, IDS), trained_logits(run, IDS), atol=1e-4)
    assert export(run, "adapter", tmp_path / "adapter")["passed"]


def test_a_vision_tower_is_not_quantised(tmp_path):
    folder = other.save_images("Gemma3", tmp_path)
    model = load(Model(path=str(folder), quantize="nf4"), folder, torch.float32, None, 0)
    stored = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.uint8}
    assert len(stored) == 2 * 7 and all(map(is_text, stored))


@pytest.mark.parametrize("prefix", [*other.IMAGES])
def test_the_decoder_layers_are_those_of_the_text(tmp_path, prefix):
    folder = other.save_images(prefix, tmp_path)
    model = adapt(load(Model(path=str(folder)), folder, torch.float32, None, 0), Adapter(), [], 0)
    layers = decoder_layers(model)
    assert len(layers) == 2 and all(hasattr(layer.mlp, "gate_proj") for layer in layers)
    adapted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(adapted) == 2 * 2 * 7 and all(map(is_text, adapted))
