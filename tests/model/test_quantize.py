"""A quantised base is what the papers say, trains as its dequantised weights would, and its adapter is an adapter."""

import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.model.test_result import logits
from tests.train.test_reference import BOUND, losses
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.export.merged import export_merged, trained_model
from tunesmith.model import load
from tunesmith.model.quantize import Stack4bit
from tunesmith.recipe import Model

# Dettmers et al. 2023, appendix E.
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])
BLOCK, SCALES_BLOCK = 64, 256
SCALE_ERROR = 0.02  # 8 bits of a scale's distance from the mean scale, over the largest such distance


def quantised(folder, kind="nf4"):
    return load.load(Model(path=str(folder), quantize=kind), folder, torch.float32, None, 0)


def nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Written from the paper: (values, code of each weight, scale of each block), the scales not quantised."""
    blocks = weight.flatten().view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True)
    codes = ((blocks / scales)[..., None] - NF4).abs().argmin(-1)
    return (NF4[codes] * scales).view(weight.shape), codes, scales


def dequantised(parameter, module) -> torch.Tensor:
    if isinstance(parameter, Stack4bit):
        return parameter.dequantized()
    if hasattr(parameter, "SCB"):
        return parameter.data * parameter.SCB[:, None] / 127
    return dequantize_4bit(parameter.data, parameter.quant_state) if hasattr(parameter, "quant_state") else parameter


@pytest.fixture
def dequantised_base(family, tmp_path):
    """Gives a folder with a family's model whose weights are what quantising left of them."""
    def make(name: str, kind: str):
        model = AutoModelForCausalLM.from_pretrained(family(name), dtype=torch.float32)
        small = quantised(family(name), kind)
        with torch.no_grad():
            for key, parameter in small.named_parameters():
                model.get_parameter(key).copy_(dequantised(parameter, small.get_submodule(key.rpartition(".")[0])))
        folder = shutil.copytree(family(name), tmp_path / f"{name}-dequantised")
        model.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("name", ["llama3", "qwen3_moe", "gpt_oss"])
def test_weights_are_nf4_with_double_quantisation(family, name):
    full = AutoModelForCausalLM.from_pretrained(family(name), dtype=torch.float32)
    small = quantised(family(name))
    seen = 0
    for key, parameter in small.named_parameters():
        original = full.get_parameter(key)
        if parameter.dtype == torch.float32 and not isinstance(parameter, Stack4bit):
            assert torch.equal(parameter, original), key
            assert original.ndim < 2 or any(part in key for part in ("lm_head", "embed", "gate.", "router", "bias"))
            continue
        packed, state = ((parameter.packed, parameter.state) if isinstance(parameter, Stack4bit) else
                         (parameter.data, parameter.quant_state))
        values, codes, scales = nf4(original.detach())
        found = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).view_as(codes)
        assert torch.equal(found.long(), codes), key
        assert state.nested and state.state2.blocksize == SCALES_BLOCK and state.blocksize == BLOCK
        largest = (scales - scales.mean()).abs().max() * SCALE_ERROR
        assert (dequantised(parameter, None) - values).abs().max() < largest + 1e-6, key
        seen += 1
    assert seen >= 10


@pytest.mark.parametrize(("name", "kind"), [(name, "nf4") for name in tiny.FAMILIES] + [("llama3", "int8")])
def test_training_equals_lora_on_the_dequantised_weights(recipe, dequantised_base, name, kind):
    small = train(recipe(name, "small", model={"quantize": kind}))
    plain = train(recipe(name, "plain", model={"path": str(dequantised_base(name, kind))}))
    assert losses(small) == pytest.approx(losses(plain), abs=BOUND)
    assert losses(small)[-1] < losses(small)[0]
