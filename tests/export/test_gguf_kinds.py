"""Smaller GGUF types keep as much of the model as their bits allow, and the importance matrix is right."""

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from tests.export.test_gguf import Weights, llama_cpp, made, torch_logits
from tunesmith.errors import UserError
from tunesmith.export.gguf.importance import importance
from tunesmith.export.gguf.write import write_gguf

pytest.importorskip("llama_cpp", reason="pip install 'tunesmith[gguf]'")
from tunesmith.export.gguf.quantize import quantize, save_importance

# K-quants have blocks of 256. Weights are as small as a trained model's, for logits that rounding does not upset.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}


def rows(count: int, seed: int) -> list[list[int]]:
    return torch.randint(5, 300, (count, 64), generator=torch.Generator().manual_seed(seed)).tolist()


def divergence(model, path) -> tuple[float, float]:
    """Returns the mean KL divergence in nats of llama.cpp from Transformers, and the share of equal top tokens."""
    ids = rows(1, seed=0)[0]
    p, q = (
        torch.from_numpy(x).double().log_softmax(-1)
        for x in (torch_logits(model, ids), llama_cpp(path, lambda engine: engine.logits(ids)))
    )
    return float((p.exp() * (p - q)).sum(-1).mean()), float((p.argmax(-1) == q.argmax(-1)).float().mean())


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    return made("qwen3", folder / "model", **WIDE), folder


def test_fewer_bits_keep_less(wide):
    """KL grows with the square of the weights' relative error: 2^-12 in f16, 2^-9 in bf16, and so on down."""
    model, folder = wide
    lost = {}
    for kind in ("f32", "f16", "bf16", "q8_0"):
        write_gguf(Weights(model), folder / "model", folder / f"{kind}.gguf", kind)
        lost[kind] = divergence(model, folder / f"{kind}.gguf")
    for kind in ("q6_k", "q4_k_m", "q2_k"):
        quantize(folder / "f32.gguf", folder / f"{kind}.gguf", kind)
        lost[kind] = divergence(model, folder / f"{kind}.gguf")
    kl = [found[0] for found in lost.values()]
    assert kl == sorted(kl), lost
    assert kl[0] < 1e-8 and lost["f32"][1] == 1 and lost["bf16"][1] > 0.9, lost


@pytest.mark.parametrize("name", ["llama3", "mixtral", "gemma2", "gpt_oss", "phi3", "lfm2", "qwen3_5", "gemma4"])
def test_families_are_quantized(tmp_path, name):
    wide = WIDE | ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}} if name == "phi3" else {})
    model = made(name, tmp_path / "model", **wide)
    write_gguf(Weights(model), tmp_path / "model", tmp_path / "f32.gguf", "f32")
    quantize(tmp_path / "f32.gguf", tmp_path / "q5.gguf", "q5_k_m")
    quantize(tmp_path / "f32.gguf", tmp_path / "q3.gguf", "q3_k_m")
    (fine, agreed), (coarse, _) = (divergence(model, tmp_path / f"{kind}.gguf") for kind in ("q5", "q3"))
    assert fine < min(coarse, 0.05) and agreed > 0.5, (fine, coarse, agreed)


def test_importance_is_the_mean_square_of_what_a_layer_reads(wide):
    model, _ = wide
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda m, given, _, name=name: seen.setdefault(name, []).append(given[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    found = importance(model, rows(3, seed=1))
    for hook in hooks:
        hook.remove()
    for name, inputs in seen.items():
        own = "model.embed_tokens.weight" if name == "lm_head" else f"{name}.weight"  # tied
        expected = torch.cat([x.flatten(0, -2) for x in inputs]).square().mean(0)
        assert np.allclose(found[own][0], expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_importance_of_experts_is_each_ones_own(tmp_path, name):
    model = made(name, tmp_path / "model")
    found = importance(model, rows(3, seed=1))
    read: list[tuple[torch.Tensor, torch.Tensor]] = []
    experts = model.model.layers[0].mlp.experts
    hook = experts.register_forward_pre_hook(lambda m, given: read.append((given[0].flatten(0, -2), given[1])))
    with torch.inference_mode():
        for row in rows(3, seed=1):
            model(torch.tensor([row]))
    hook.remove()
    states, chosen = (torch.cat(parts) for parts in zip(*read))
    for expert, vector in enumerate(found["model.layers.0.mlp.experts.gate_up_proj"]):
        expected = states[(chosen == expert).any(-1)].square().mean(0)
        assert np.allclose(vector, expected.numpy(), rtol=1e-4)
    width = model.config.moe_intermediate_size if name == "qwen3_moe" else model.config.intermediate_size
    assert found["model.layers.0.mlp.experts.down_proj"].shape == (4, width)


def test_importance_is_in_the_order_of_the_file(tmp_path):
    """Also if llama.cpp reorders a weight's inputs."""
    model = made("qwen3_5", tmp_path / "model")
    found = importance(model, rows(2, seed=1))
    write_gguf(Weights(model), tmp_path / "model", tmp_path / "f32.gguf", "f32")
    save_importance(model.config, found, tmp_path / "importance.safetensors")
    name, own = "blk.0.ssm_out.weight", "model.layers.0.linear_attn.out_proj.weight"
    there = np.square(contents(tmp_path / "f32.gguf")[name]) @ load_file(tmp_path / "importance.safetensors")[name]
    here = model.get_parameter(own).detach().double().square() @ found[own][0]
    assert np.allclose(there, here.numpy(), rtol=1e-4)


def test_importance_reduces_the_weighted_error(wide):
    """Where inputs are large less is lost: the error weighted by importance falls."""
    model, folder = wide
    weights = Weights(model)
    write_gguf(weights, folder / "model", folder / "f32.gguf", "f32")
    save_importance(model.config, importance(model, rows(4, seed=1)), folder / "importance.safetensors")
    vectors = load_file(folder / "importance.safetensors")
    quantize(folder / "f32.gguf", folder / "without.gguf", "q3_k_m")
    quantize(folder / "f32.gguf", folder / "with.gguf", "q3_k_m", folder / "importance.safetensors")
    whole = contents(folder / "f32.gguf")
    lost = [
        sum(
            float((np.square(contents(folder / f"{kind}.gguf")[name] - whole[name]) * vectors[name]).sum())
            for name in vectors
        )
        for kind in ("with", "without")
    ]
    assert lost[0] < lost[1]


def contents(path) -> dict[str, np.ndarray]:
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def test_a_file_that_cannot_be_quantized_is_reported(wide, tmp_path):
    _, folder = wide
    with pytest.raises(UserError, match="choose one of q2_k"):
        quantize(folder / "f32.gguf", tmp_path / "x.gguf", "q9")
    with pytest.raises(UserError, match="llama.cpp cannot quantise it to q4_k_m"):
        quantize(folder / "none.gguf", tmp_path / "x.gguf", "q4_k_m")
    assert not list(tmp_path.iterdir())


def test_f16_that_cannot_hold_a_weight_is_refused(tmp_path):
    model = made("qwen3", tmp_path / "model")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    with pytest.raises(UserError, match="f16 cannot represent"):
        write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "f16")


def test_rows_without_whole_blocks_are_kept_wider(tmp_path):
    model = made("qwen3", tmp_path / "model", intermediate_size=72)
    write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q8_0"
    assert divergence(model, tmp_path / "model.gguf")[0] < 0.05
