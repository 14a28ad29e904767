"""A base whose experts are stored in MXFP4, such as gpt-oss: training, merging, and export to GGUF."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Mxfp4Config

from tests import tiny
from tests.export.test_merged_weights import assert_same
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.export.export import export
from tunesmith.export.merged_weights import Weights

# OCP Microscaling Formats 1.0: 32 numbers of 4 bits (E2M1) share a scale that is a power of two (E8M0, bias 127).
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
BLOCK, LARGEST_EXPONENT, BIAS = 32, 2, 127
QUICK = {"max_steps": 2, "learning_rate": 1e-2}


def encoded(weight_EIO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two numbers a byte, the first in the lower half: (E, O, blocks, 16), and scales (E, O, blocks)."""
    blocks = weight_EIO.transpose(1, 2).unflatten(2, (-1, BLOCK))
    exponents = blocks.abs().amax(-1).log2().floor() - LARGEST_EXPONENT
    codes = (blocks[..., None] / 2 ** exponents[..., None, None] - E2M1).abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponents + BIAS).to(torch.uint8)


def decoded(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).int()
    return (E2M1[codes] * 2.0 ** (scales[..., None].float() - BIAS)).flatten(-2).transpose(1, 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Returns the folder and its dequantised experts."""
    folder = tiny.save("gpt_oss", tmp_path_factory.mktemp("mxfp4") / "gpt-oss")
    stored, worth = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if re.search(r"experts\.(gate_up|down)_proj$", name):
            stored[f"{name}_blocks"], stored[f"{name}_scales"] = (part.contiguous() for part in encoded(tensor))
            worth[name] = decoded(stored[f"{name}_blocks"], stored[f"{name}_scales"])
            assert (worth[name] - tensor).norm() < 0.2 * tensor.norm()
        else:
            stored[name] = tensor
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, worth


@pytest.fixture
def run(recipe, base):
    """A run with an adapter for attention and experts."""

    def trained(**sections):
        return train(recipe("gpt_oss", model={"path": str(base[0])}, **{"train": QUICK} | sections))

    return trained


def test_merging_into_the_dequantised_base(run, base, tmp_path):
    done = run()
    assert_same(done)
    full = AutoModelForCausalLM.from_pretrained(base[0], quantization_config=Mxfp4Config(dequantize=True))
    assert all(torch.equal(full.state_dict()[name], tensor) for name, tensor in base[1].items())
    assert export(done, "merged", tmp_path / "merged")["logits"]["mean_kl"] < 1e-6
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in config
    names = load_file(tmp_path / "merged/model.safetensors")
    assert "model.layers.0.mlp.experts.down_proj" in names and not any("blocks" in name for name in names)


@pytest.mark.parametrize(("to", "settings"), [("gguf", {"precision": "f32"}), ("gguf-adapter", {}), ("adapter", {})])
def test_other_forms(run, tmp_path, to, settings):
    assert export(run(), to, tmp_path / "out", settings)["passed"]


def test_every_weight_of_it_is_trained(run, tmp_path):
    done = run(adapter={"kind": "full"})
    assert export(done, "merged", tmp_path / "merged")["passed"]


def test_a_base_in_another_quantised_format_is_refused(base, tmp_path):
    config = json.loads((base[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UserError, match="gptq.*--to adapter"):
        Weights(tmp_path, torch.float32)
