"""Every export form passes the parity gate in its engine, and opens for its users."""

import json
from types import SimpleNamespace

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from gguf import GGUFReader
from safetensors.torch import load_file
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from tests import tiny
from tests.conftest import slow_but
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.export.export import export
from tunesmith.export.forms.ollama import Template
from tunesmith.export.parity.samples import CAPITALS, DECOMPOSED
from tunesmith.finetune.prepared import Prepared

QUICK = {"max_steps": 3, "learning_rate": 1e-2}
# As these small ones are configured llama.cpp has no such model; test_gguf.py has them as it takes them.
OTHERWISE = ("smollm3", "qwen3_moe", "olmoe", "mistral")
EVERY = slow_but(("qwen3", "phi3"), [f for f in tiny.FAMILIES if f not in OTHERWISE])


# Until it is sure of its answers: the bounds of coarse formats are for models that know something.
THOROUGH = {"epochs": 20, "max_steps": 200, "learning_rate": 5e-3}


@pytest.fixture
def run(recipe):
    return train(recipe("qwen3", train=THOROUGH))


@pytest.mark.parametrize(
    ("to", "settings", "file"),
    [
        ("gguf", {"precision": "f32"}, "model.gguf"),
        ("gguf", {"precision": "q8_0"}, "model.gguf"),
        ("gguf-adapter", {}, "adapter.gguf"),
        ("ollama", {"precision": "f16"}, "Modelfile"),
    ],
)
def test_forms(run, tmp_path, to, settings, file):
    found = export(run, to, tmp_path / "out", settings)
    assert found["passed"] and (tmp_path / "out" / file).is_file()
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".out")]


def test_tokens_that_consume_whitespace(recipe, tmp_path):
    """As in Phi-4: only messages with whitespace around them get other ids."""
    found = export(train(recipe("phi4", train=QUICK)), "gguf", tmp_path / "out", {"precision": "f32"})
    assert found["passed"] and "spaces around messages" in found["tokens"]["not_expressed"]
    assert not {"one turn", "several turns", "system"} & {*found["tokens"]["not_expressed"]}


@pytest.mark.parametrize("base", EVERY)
def test_every_family_as_gguf(recipe, tmp_path, base):
    found = export(train(recipe(base, train=QUICK)), "gguf", tmp_path / "out", {"precision": "f32"})
    assert found["passed"] and found["logits"]["mean_kl"] < 1e-6
    assert len(found["tokens"]["excused"]) <= len(CAPITALS + DECOMPOSED)


def test_training_without_thinking_is_the_exports_default(recipe, tmp_path):
    """The file's own template, without further variables, renders the prompts of training."""
    run = train(recipe("qwen3", train=QUICK))
    assert run.plan.template_kwargs == {"enable_thinking": False}
    export(run, "gguf", tmp_path / "out", {"precision": "f32"})
    field = GGUFReader(tmp_path / "out/model.gguf").get_field("tokenizer.chat_template")
    assert field.contents().startswith("{%- set enable_thinking = false -%}")
    messages = [{"role": "user", "content": "What is 1 plus 2?"}]
    asked, _ = render_jinja_template(
        conversations=[messages], chat_template=field.contents(), enable_thinking=True, add_generation_prompt=True
    )  # as llama.cpp's server and Ollama ask
    assert asked == [Prepared.open(run).tokenizer.render(messages, add_generation_prompt=True)]
    export(run, "merged", tmp_path / "merged", parity=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    plain, thinking = (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **more)
        for more in ({}, {"enable_thinking": True})
    )
    assert plain == asked[0] != thinking


def test_a_model_without_an_adapter(recipe, tmp_path):
    run = train(recipe("qwen3", adapter={"kind": "full"}, train=QUICK))
    assert export(run, "gguf", tmp_path / "gguf", {"precision": "f32"})["passed"]
    assert export(run, "merged", tmp_path / "merged")["passed"]
    for to in ("adapter", "gguf-adapter"):
        with pytest.raises(UserError, match="no adapter"):
            export(run, to, tmp_path / to)


def test_only_k_quants_take_an_importance_matrix(run, tmp_path):
    with pytest.raises(UserError, match="importance"):
        export(run, "gguf", tmp_path / "out", {"precision": "q8_0", "importance": True})
    assert not (tmp_path / "out").exists()


# Weights as small as a trained model's, for logits that rounding does not upset; layers as wide as a group of int4.
WIDE = {"hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.05}


@pytest.mark.parametrize("base", slow_but(("mixtral",), ("qwen3", "qwen3_moe", "mixtral")))
def test_small_weights_are_small_and_close(recipe, tmp_path, base):
    more = WIDE | ({"moe_intermediate_size": 128} if base == "qwen3_moe" else {})
    path = tiny.save(base, tmp_path / "model", **more)
    run = train(recipe(base, model={"path": str(path)}, train=THOROUGH | {"max_steps": 100, "learning_rate": 1e-3}))
    export(run, "merged", tmp_path / "merged", parity=False)
    whole = load_file(tmp_path / "merged/model.safetensors")
    for to, check in (("fp8", check_fp8), ("int4", check_int4)):
        assert export(run, to, tmp_path / to)["passed"]
        small = load_file(tmp_path / to / "model.safetensors")
        rounded = {name.removesuffix("_scale") for name in small if name.endswith("_scale")}
        kept = {name for name in whole.keys() - rounded if whole[name].ndim == 2}
        ignored = json.loads((tmp_path / to / "config.json").read_text())["quantization_config"]["ignore"]
        assert kept <= {f"{name}.weight" for name in ("model.embed_tokens", *ignored)}  # each expert's are small too
        assert all(torch.equal(small[name], whole[name]) for name in whole.keys() - rounded)
        for name in rounded:
            check(small, name, whole[name])


def check_fp8(small: dict, name: str, weight_OI: torch.Tensor) -> None:
    assert small[name].dtype == torch.float8_e4m3fn
    error_OI = (small[name].float() * small[f"{name}_scale"] - weight_OI).abs()
    smallest = weight_OI.abs().amax(1, keepdim=True) / 448 * 2**-9  # below that E4M3 has nothing
    assert (error_OI <= weight_OI.abs() * 2**-4 + smallest).all()  # three bits behind the first


def check_int4(small: dict, name: str, weight_OI: torch.Tensor) -> None:
    scale_OG1 = small[f"{name}_scale"][:, :, None]
    codes_OI = unpack_from_int32(small[f"{name}_packed"], 4, weight_OI.shape)
    codes_OGK, weight_OGK = (matrix.unflatten(1, (scale_OG1.shape[1], -1)) for matrix in (codes_OI, weight_OI))
    error_OGK, widest_OG1 = (codes_OGK * scale_OG1 - weight_OGK).abs(), weight_OGK.abs().amax(2, keepdim=True)
    assert (error_OGK <= widest_OG1 / 7.5 * 0.501).all()  # half a step


def test_int4_groups_are_as_wide_as_the_layers_allow(recipe, tmp_path):
    run = train(recipe("qwen3", train=QUICK))
    assert "groups are of 64" in export(run, "int4", tmp_path / "out", parity=False)["notes"][0]
    narrow = tiny.save("qwen3", tmp_path / "narrow", intermediate_size=40)
    with pytest.raises(UserError, match="multiple of 32.*has 40"):
        export(train(recipe("qwen3", "narrow", model={"path": str(narrow)}, train=QUICK)), "int4", tmp_path / "none")


@pytest.mark.parametrize("to", ["fp8", "int4"])
def test_stacked_experts_are_refused(recipe, tmp_path, to):
    with pytest.raises(UserError, match="experts in one tensor"):
        export(train(recipe("gpt_oss", train=QUICK)), to, tmp_path / to)


def test_ollama_of_a_template_without_system_messages(recipe, tmp_path):
    found = export(train(recipe("gemma2", train=QUICK)), "ollama", tmp_path / "out", {"precision": "f32"})
    assert found["passed"] and found["tokens"]["conversations"] >= 3


@pytest.mark.parametrize("base", ["llama3", "mistral"])
def test_ollama_of_a_template_that_does_more(recipe, tmp_path, base):
    """Llama trims messages; Mistral writes the system message into the last turn and trims answers."""
    more = {"kind": "metaspace-complete", "sliding_window": None, "head_dim": 32} if base == "mistral" else {}
    path = tiny.save(base, tmp_path / "model", **more)
    found = export(
        train(recipe(base, model={"path": str(path)}, train=QUICK)), "ollama", tmp_path / "out", {"precision": "f32"}
    )
    assert found["passed"] and "spaces around messages" in found["tokens"]["not_expressed"]
    assert not {"system", "several turns", "system and several turns"} & {*found["tokens"]["not_expressed"]}


def test_a_template_that_ollama_cannot_express_is_refused():
    backwards = SimpleNamespace(render=lambda messages, **_: "".join(m["content"] for m in reversed(messages)))
    with pytest.raises(UserError, match="once and in order"):
        Template.of(backwards)
