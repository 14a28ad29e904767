"""Every form of a trained run passes its parity in the engine it is for, and is what its users open."""

import json

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from tests import tiny
from tunesmith import train
from tunesmith.errors import NotTheSame, UserError
from tunesmith.export.command import export
from tunesmith.export.settle import defaults

QUICK = {"max_steps": 3, "learning_rate": 1e-2}
# As these small ones are configured llama.cpp has no such model; test_gguf.py has them as it takes them.
OTHERWISE = ("smollm3", "qwen3_moe", "olmoe", "mistral", "phi3")
LARGE = [pytest.param(f, marks=pytest.mark.slow) for f in tiny.FAMILIES if f not in ("qwen3", *OTHERWISE)]


@pytest.fixture
def run(recipe):
    """Trained until it is sure of its answers: the bounds of coarse formats are for models that know something."""
    return train(recipe("qwen3", train={"epochs": 20, "max_steps": 200, "learning_rate": 5e-3}))


@pytest.mark.parametrize(("to", "settings", "file"), [
    ("gguf", {"precision": "f32"}, "model.gguf"), ("gguf", {"precision": "q8_0"}, "model.gguf"),
    ("gguf-adapter", {}, "adapter.gguf"), ("ollama", {"precision": "f16"}, "Modelfile"),
    ("fp8", {}, "model.safetensors")])
def test_forms(run, tmp_path, to, settings, file):
    found = export(run, to, tmp_path / "out", settings)
    assert found["passed"] and (tmp_path / "out" / file).is_file()
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".out")]


@pytest.mark.parametrize("base", ["qwen3", *LARGE])
def test_every_family_as_gguf(recipe, tmp_path, base):
    found = export(train(recipe(base, train=QUICK)), "gguf", tmp_path / "out", {"precision": "f32"})
    assert found["passed"] and found["logits"]["mean_kl"] < 1e-6
    assert len(found["tokens"]["excused"]) <= 2


def test_training_without_thinking_is_what_others_get(recipe, tmp_path):
    """The template of the file itself, without a variable of ours, asks as training asked."""
    run = train(recipe("qwen3", train=QUICK))
    assert run.plan["template_kwargs"] == {"enable_thinking": False}
    export(run, "gguf", tmp_path / "out", {"precision": "f32"})
    field = GGUFReader(tmp_path / "out/model.gguf").get_field("tokenizer.chat_template")
    assert field.contents().startswith(defaults({"enable_thinking": False}))


def test_a_model_without_an_adapter(recipe, tmp_path):
    run = train(recipe("qwen3", adapter={"kind": "full"}, train=QUICK))
    assert export(run, "gguf", tmp_path / "gguf", {"precision": "f32"})["passed"]
    assert export(run, "merged", tmp_path / "merged")["passed"]
    for to in ("adapter", "gguf-adapter"):
        with pytest.raises(UserError, match="no adapter"):
            export(run, to, tmp_path / to)


def test_an_importance_matrix_is_of_k_quants_alone(run, tmp_path):
    with pytest.raises(UserError, match="importance"):
        export(run, "gguf", tmp_path / "out", {"precision": "q8_0", "importance": True})
    assert not (tmp_path / "out").exists()


def test_fp8_weights_are_small_and_close(run, tmp_path):
    export(run, "fp8", tmp_path / "fp8")
    export(run, "merged", tmp_path / "merged")
    config = json.loads((tmp_path / "fp8/config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    small, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("fp8", "merged"))
    for name in (n for n in small if n.endswith("_scale")):
        found, weight_OI = small[name.removesuffix("_scale")], whole[name.removesuffix("_scale")]
        assert found.dtype == torch.float8_e4m3fn
        error_OI = (found.float() * small[name] - weight_OI).abs()
        smallest = weight_OI.abs().amax(1, keepdim=True) / 448 * 2**-9  # below that E4M3 has nothing
        assert (error_OI <= weight_OI.abs() * 2**-4 + smallest).all()  # three bits behind the first
    assert small["model.embed_tokens.weight"].dtype == torch.float32


def test_a_template_that_ollama_cannot_have_is_refused(recipe, tmp_path):
    with pytest.raises((UserError, NotTheSame), match="conversation|template"):
        export(train(recipe("mistral", train=QUICK)), "ollama", tmp_path / "out", {"precision": "f32"})
