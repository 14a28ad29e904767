"""A quantised base follows the papers, trains like its dequantised weights, and gives an ordinary adapter."""

import json
import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import AutoPeftModelForCausalLM
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from tests import tiny
from tests.conftest import slow_but, sums, write_rows
from tests.model.test_result import logits, trained_logits
from tests.training.test_reference import BOUND, losses
from tunesmith import resume, train
from tunesmith.errors import UserError
from tunesmith.export.export import export
from tunesmith.finetune.result import trained_model
from tunesmith.model import adapt, check, load
from tunesmith.model.quantize import Stack4bit
from tunesmith.recipe import Model

# Dettmers et al. 2023, appendix E.
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
BLOCK, SCALES_BLOCK = 64, 256
ADAPTER = "adapter_model.safetensors"
SCALE_ERROR = 0.02  # 8 bits of a scale's distance from the mean scale, over the largest such distance


def quantised(folder, kind="nf4"):
    return load.load(Model(path=str(folder), quantize=kind), folder, torch.float32, None, 0)


def nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """NF4 by the paper: returns (values, code of each weight, scale of each block) without double quantisation."""
    blocks = weight.flatten().view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True)
    codes = ((blocks / scales)[..., None] - NF4).abs().argmin(-1)
    return (NF4[codes] * scales).view(weight.shape), codes, scales


def dequantised(parameter) -> torch.Tensor:
    if isinstance(parameter, Stack4bit):
        return parameter.dequantized()
    if hasattr(parameter, "SCB"):
        return parameter.data * parameter.SCB[:, None] / 127
    return dequantize_4bit(parameter.data, parameter.quant_state) if hasattr(parameter, "quant_state") else parameter


@pytest.fixture
def dequantised_base(family, tmp_path):
    """Returns a function that saves a family's model with quantised and then dequantised weights."""

    def make(name: str, kind: str):
        model = AutoModelForCausalLM.from_pretrained(family(name), dtype=torch.float32)
        small = quantised(family(name), kind)
        with torch.no_grad():
            for key, parameter in small.named_parameters():
                model.get_parameter(key).copy_(dequantised(parameter))
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
        packed, state = (
            (parameter.packed, parameter.state)
            if isinstance(parameter, Stack4bit)
            else (parameter.data, parameter.quant_state)
        )
        values, codes, scales = nf4(original.detach())
        found = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).view_as(codes)
        assert torch.equal(found.long(), codes), key
        assert state.nested and state.state2.blocksize == SCALES_BLOCK and state.blocksize == BLOCK
        largest = (scales - scales.mean()).abs().max() * SCALE_ERROR
        assert (dequantised(parameter) - values).abs().max() < largest + 1e-6, key
        seen += 1
    assert seen >= 10


@pytest.mark.parametrize(
    ("name", "kind"),
    slow_but(
        [("gemma3", "nf4"), ("gpt_oss", "nf4"), ("qwen3_moe", "nf4"), ("llama3", "int8")],
        [*((name, "nf4") for name in tiny.FAMILIES), ("llama3", "int8")],
    ),
)
def test_training_equals_lora_on_the_dequantised_weights(recipe, dequantised_base, name, kind):
    small = train(recipe(name, "small", model={"quantize": kind}))
    plain = train(recipe(name, "plain", model={"path": str(dequantised_base(name, kind))}))
    assert losses(small) == pytest.approx(losses(plain), abs=BOUND)
    assert losses(small)[-1] < losses(small)[0]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_adapter_opens_plainly_and_merges_into_the_full_base(recipe, tmp_path, kind):
    run = train(recipe(model={"quantize": kind}, train={"max_steps": 5, "learning_rate": 1e-2}))
    ids = torch.arange(5, 29)[None]
    opened = logits(AutoPeftModelForCausalLM.from_pretrained(run.result), ids)
    found = export(run, "merged", tmp_path / "merged")
    assert found["passed"] and found["logits"]["mean_kl"] < 1e-6
    apart = found["over_quantized"]
    assert apart["base"] == kind and apart["logits"]["mean_kl"] > 1e-6
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), ids), opened, atol=1e-4)
    chatting = logits(trained_model(run), ids)
    assert torch.allclose(chatting, trained_logits(run, ids), atol=1e-5) and not torch.allclose(chatting, opened)


@pytest.mark.parametrize(
    ("name", "kind"), [("llama3", "nf4"), ("qwen3_moe", "nf4"), ("gpt_oss", "nf4"), ("llama3", "int8")]
)
def test_merging_into_the_dequantised_base_gives_what_training_saw(recipe, tmp_path, name, kind):
    run = train(recipe(name, model={"quantize": kind}, train={"max_steps": 3, "learning_rate": 1e-2}))
    found = export(run, "merged", tmp_path / "merged", {"into": "dequantised"})
    assert found["passed"] and found["precision"] == ("f32" if kind == "nf4" else "q8_0")
    assert "over_quantized" not in found


@pytest.fixture
def stored(family, tmp_path):
    """Gives a folder with a family's model whose weights are stored quantised by bitsandbytes."""

    def make(name: str, **settings):
        folder = shutil.copytree(family(name), tmp_path / f"{name}-stored")
        (folder / "model.safetensors").unlink()
        config = BitsAndBytesConfig(**settings)
        AutoModelForCausalLM.from_pretrained(family(name), quantization_config=config).save_pretrained(folder)
        return folder

    return make


NF4_BFLOAT16 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
}


@pytest.mark.parametrize("name", ["llama3", "qwen3"])
def test_a_base_stored_in_4_bits_trains_as_one_quantised_on_loading_and_merges(recipe, stored, tmp_path, name):
    here = train(recipe(name, "here", model={"quantize": "nf4"}, train={"max_steps": 5}))
    there = train(recipe(name, "there", model={"path": str(stored(name, **NF4_BFLOAT16))}, train={"max_steps": 5}))
    assert losses(there) == pytest.approx(losses(here), abs=BOUND)
    norms = ([event["grad_norm"] for event in run.events("step")] for run in (here, there))
    assert next(norms) == pytest.approx(next(norms), rel=1e-3)
    assert export(there, "merged", tmp_path / "merged")["passed"]
    ids = torch.arange(5, 29)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(merged.config, "quantization_config")
    assert torch.allclose(logits(merged, ids), trained_logits(there, ids), atol=1e-3)


def test_a_base_stored_in_8_bits_merges(recipe, stored, tmp_path):
    run = train(recipe(model={"path": str(stored("llama3", load_in_8bit=True))}, train={"max_steps": 2}))
    assert export(run, "merged", tmp_path / "merged")["passed"]


def test_weights_stored_quantised_are_not_fully_trained(recipe, stored):
    with pytest.raises(UserError, match="adapter.kind: full: the weights of .* are stored quantised"):
        train(
            recipe(
                model={"path": str(stored("llama3", **NF4_BFLOAT16))},
                adapter={"kind": "full"},
                data={"train": "no such file.jsonl"},
            )
        )


def test_parameters_are_counted_in_weights(family):
    full, small = (
        adapt.parameter_counts(m)[1]
        for m in (AutoModelForCausalLM.from_pretrained(family("qwen3_moe")), quantised(family("qwen3_moe")))
    )
    assert full == small


def test_activation_checkpointing_and_dora_work(recipe):
    asked = [
        recipe(
            name=mode,
            model={"quantize": "nf4"},
            adapter={"dora": True},
            train={"max_steps": 3, "gradient_checkpointing": mode},
        )
        for mode in ("on", "off")
    ]
    first, second = map(losses, map(train, asked))
    assert first == pytest.approx(second, abs=1e-6)


def test_evaluating_first_changes_no_step(recipe, tmp_path):
    """bitsandbytes repacks weights for inference on some CPUs, after which training would be wrong."""
    held_out = str(write_rows(tmp_path / "eval.jsonl", sums(8, first=500)))
    first, second = (
        train(recipe(name=name, model={"quantize": "nf4"}, train={"max_steps": 3}, data=data))
        for name, data in (("without", {}), ("with", {"eval": held_out}))
    )
    assert losses(first) == losses(second)
    assert second.events("eval")


def test_a_killed_run_resumes_bit_for_bit(recipe):
    whole = train(recipe(name="whole", model={"quantize": "nf4"}, train={"max_steps": 6, "save_every": 3}))
    half = train(recipe(name="half", model={"quantize": "nf4"}, train={"max_steps": 6, "save_every": 3}))
    shutil.rmtree(half.result)
    shutil.rmtree(half.checkpoints / "step-000006")
    resume(half.folder)
    assert (whole.result / ADAPTER).read_bytes() == (half.result / ADAPTER).read_bytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"kind": "full"}}, "needs adapter.kind: lora"),
        ({"adapter": {"modules_to_save": ["q_proj"]}}, "adapter.modules_to_save"),
    ],
)
def test_impossible_settings_are_refused(recipe, changes, said):
    with pytest.raises(UserError, match=said):
        train(recipe(model={"quantize": "nf4"}, **changes))


def test_a_quantised_base_and_a_missing_package_are_refused(recipe, family, tmp_path, monkeypatch):
    folder = shutil.copytree(family("llama3"), tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    with pytest.raises(UserError, match="is quantised already .mxfp4."):
        train(recipe(model={"quantize": "nf4", "path": str(folder)}))
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tunesmith.bnb"):
        train(recipe(model={"quantize": "nf4"}))


def test_rows_that_bitsandbytes_gets_wrong_on_a_cpu_are_refused(family, tmp_path):
    config = AutoConfig.from_pretrained(family("llama3"), intermediate_size=96)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="multiple of 64 inputs, model.layers.0.mlp.down_proj has 96"):
        quantised(tmp_path)


def test_a_stack_that_is_moved_stays_in_4_bits():
    stack = Stack4bit.quantize(torch.randn(3, 64, 128))
    moved = stack.to("cpu", copy=True)
    assert isinstance(moved, Stack4bit) and moved.packed.data_ptr() != stack.packed.data_ptr()
    assert torch.equal(moved.dequantized(), stack.dequantized()) and moved.shape == stack.shape
