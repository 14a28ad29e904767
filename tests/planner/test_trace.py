"""The traced memory of a step is that of the real step: the bytes of live storages, stage by stage."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests import tiny
from tests.conftest import slow_but
from tunesmith.machine import Machine
from tunesmith.methods import Method
from tunesmith.model.adapt import adapt
from tunesmith.model.load import config_of, load
from tunesmith.planner import depths, trace
from tunesmith.planner.decide import choose
from tunesmith.planner.live_bytes import LiveBytes
from tunesmith.recipe import Recipe
from tunesmith.training import attention_kernels, packed_attention
from tunesmith.training.batch import collate
from tunesmith.training.build import inspect
from tunesmith.training.planned_device import plan_for_gpu

MACHINE = Machine("", "", 2, 10**10, 10**10, 10**12, True)
KINDS = ("lora", "full")
LENGTHS = [100, 70, 70]
CASES = {
    "LoRA": ("lora", {}),
    "LoRA, recomputing": ("lora", {"gradient_checkpointing": "on"}),
    "nf4": ("lora", {"gradient_checkpointing": "on"}),
    "full": ("full", {}),
    "bfloat16": ("full", {"weights": "bfloat16", "optimizer": "adafactor", "gradient_checkpointing": "on"}),
    "Muon": ("full", {"optimizer": "muon", "gradient_checkpointing": "selective"}),
    "8 bits": ("full", {"optimizer": "adamw_8bit"}),
}


def asked(base: Path, kind: str, train: dict, quantize: str = "none", new_tokens: tuple[str, ...] = (), **data):
    recipe = Recipe.build(
        {
            "model": {"path": str(base), "quantize": quantize, "new_tokens": [*new_tokens]},
            "data": {"train": "d"} | data,
            "adapter": {"kind": kind},
            "train": train,
        }
    )
    return recipe, choose(recipe, MACHINE)


def really(recipe, plan, base: Path, kept: int | None = None, batches: int = 1) -> trace.Traced:
    """The same count on steps with real numbers."""
    attention = packed_attention.choose(config_of(base), plan.packing)
    model = load(recipe.model, base, getattr(torch, plan.weights), attention, 0)
    rows = model.get_input_embeddings().num_embeddings
    vocabulary = rows + len(recipe.model.new_tokens)
    model, live = adapt(model, recipe.adapter, [*range(rows, vocabulary)], vocabulary), LiveBytes()
    built = trace.build(live, model, recipe, plan, kept, lambda model, plan: inspect(model, plan, _ignore))
    random = np.random.default_rng(0)
    rows = [(random.integers(5, 200, n), np.ones(n, bool)) for n in LENGTHS]
    made = [collate(rows, np.arange(len(rows)), plan.packing) for _ in range(batches)]
    return trace.steps(live, built, Method(recipe.method), made)


def _ignore(*_, **__) -> None:
    pass


QUICK = [
    ("llama3", "LoRA", True),
    ("qwen3_moe", "nf4", True),
    ("llama3", "bfloat16", True),
    ("gpt_oss", "LoRA", False),
    ("gpt_oss", "full", True),
]


@pytest.mark.parametrize(("name", "case", "packing"), slow_but(QUICK, [*product(tiny.FAMILIES, CASES, (True, False))]))
def test_a_traced_step_takes_the_bytes_of_a_real_one(family, name, case, packing):
    kind, train = CASES[case]
    recipe, plan = asked(family(name), kind, train, "nf4" if case == "nf4" else "none", packing=packing)
    expected = really(recipe, plan, family(name))
    found = trace.trace(recipe, plan, config_of(family(name)), LENGTHS, passes=2)
    assert found.stages.keys() == expected.stages.keys() and len(found.stages) > 8
    assert found == expected
    assert (found.pass_work.flops, found.update_work) == (expected.pass_work.flops, expected.update_work)
    assert found.pass_work.moved_bytes == pytest.approx(expected.pass_work.moved_bytes, rel=0.005)
    one_pass = trace.trace(recipe, plan, config_of(family(name)), LENGTHS)
    assert one_pass.peak_bytes == pytest.approx(expected.peak_bytes, rel=1e-4)  # without what a step leaves behind


@pytest.mark.parametrize(
    ("name", "kind"), slow_but([("llama3", "lora"), ("qwen2", "full")], [*product(tiny.FAMILIES, ("lora", "full"))])
)
def test_new_tokens_take_rows(family, name, kind):
    recipe, plan = asked(family(name), kind, {}, new_tokens=("<one>", "<two>"))
    found = trace.trace(recipe, plan, config_of(family(name)), LENGTHS, passes=2)
    assert found == really(recipe, plan, family(name))


@pytest.mark.parametrize(
    "name", slow_but(["llama3"], [name for name in tiny.FAMILIES if name not in tiny.MOE_FAMILIES])
)
def test_a_base_in_8_bits_takes_the_bytes_of_a_real_one(family, name):
    """Its examples are not packed. The real one also keeps the numbers of its outliers, which no shape tells."""
    recipe, plan = asked(family(name), "lora", {}, "int8", packing=False)
    packed_too = trace.trace(recipe, replace(plan, packing=True), config_of(family(name)), LENGTHS)
    found = trace.trace(recipe, plan, config_of(family(name)), LENGTHS)
    assert packed_too == found
    for stage, parts in really(recipe, plan, family(name)).stages.items():
        outliers = parts["weights"] - found.stages[stage]["weights"]
        assert 0 <= outliers < 500 and parts | {"weights": 0} == found.stages[stage] | {"weights": 0}


STORED = {
    "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "4 bits, plain scales": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4 bits, but one": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "llm_int8_skip_modules": ["lm_head", "layers.0.mlp.up_proj"],
    },
}


@pytest.mark.parametrize(
    ("name", "how"), slow_but([("llama3", "4 bits, but one")], [*product(("llama3", "qwen3", "olmo2"), STORED)])
)
def test_a_base_that_is_stored_quantised_takes_the_bytes_of_a_real_one(family, tmp_path, name, how):
    folder = shutil.copytree(family(name), tmp_path / "stored")
    (folder / "model.safetensors").unlink()
    config = BitsAndBytesConfig(**STORED[how], bnb_4bit_compute_dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(family(name), dtype=torch.bfloat16, quantization_config=config)
    base.save_pretrained(folder)
    recipe, plan = asked(folder, "lora", {})
    assert trace.trace(recipe, plan, config_of(folder), LENGTHS) == really(recipe, plan, folder)


def test_pages_are_in_host_memory(family):
    """On a GPU, which alone has pages; here the moments that would be paged are marked so."""
    recipe, plan = asked(family("llama3"), "full", {"optimizer": "adamw_8bit"})
    paged = recipe.model_copy(update={"train": recipe.train.model_copy(update={"optimizer": "paged_adamw_8bit"})})
    config = config_of(family("llama3"))
    config.vocab_size = 2000
    found, other = (trace.trace(one, plan, config, LENGTHS) for one in (paged, recipe))
    embeddings = 2 * 2000 * 64
    assert found.host == {"moments": 2 * embeddings} and not other.host
    assert other.stages[trace.UPDATE]["optimizer"] - found.stages[trace.UPDATE]["optimizer"] == 2 * embeddings


def deeper(config, periods: int):
    """The config with so many times the layers after which its kinds of layers repeat."""
    _, period = depths.repetition(depths.layer_kinds(config))
    deep = depths.shallow(config, period)
    text = deep.get_text_config()
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == period:
            setattr(text, name, value * periods)
    text.num_hidden_layers = periods * period
    return deep


@pytest.mark.parametrize(
    ("name", "case"), slow_but([("llama3", "LoRA, recomputing")], [*product(tiny.FAMILIES, CASES)])
)
def test_two_depths_give_the_peak_at_all_layers(family, name, case):
    kind, train = CASES[case]
    recipe, plan = asked(family(name), kind, train, "nf4" if case == "nf4" else "none")
    config = config_of(family(name))
    deep = deeper(config, 5)
    whole = trace.trace(recipe, plan, deep, LENGTHS)
    found = depths.trace_step(recipe, plan, deep, LENGTHS)
    assert found.peak_bytes == whole.peak_bytes
    assert (found.pass_work, found.update_work) == (whole.pass_work, whole.update_work)


def test_flex_attention_is_planned_without_scores():
    """A cap and sinks keep the output, a number for each row and head, and the block mask."""
    heads, tokens, width = 8, 4096, 64
    with FakeTensorMode(), plan_for_gpu((8, 9)):
        query, key, value = (torch.empty(n, tokens, width, dtype=torch.bfloat16) for n in (heads, 2, 2))
        ends, sinks = torch.empty(3, dtype=torch.int32), torch.empty(heads, dtype=torch.bfloat16).requires_grad_()
        query.requires_grad_()
        kept = {}
        for name, options in (("cap", {"cap": 50.0}), ("sinks", {"sinks_H": sinks})):
            live = LiveBytes()
            live.begin("here")
            live.count(query, key, value, ends, sinks)
            before = live.now
            with live:
                attention_kernels.block_mask.cache_clear()
                out = attention_kernels.flexible(query, key, value, ends, 0.1, **options)
                kept[name] = live.now - before
                assert out.shape == query.shape and live.peak < heads * tokens**2
                out.sum().backward()
            assert query.grad.shape == query.shape
    blocks = tokens // 128
    mask = 8 * blocks**2 * 4  # lists of blocks by row and by column, of whole and of partial ones
    output, numbers = 2 * heads * tokens * width, 4 * heads * tokens
    assert output + numbers < kept["cap"] < output + numbers + 2 * mask
    assert kept["sinks"] - kept["cap"] >= output  # the factors, and what they give


@pytest.mark.parametrize(("name", "kind"), slow_but([("gemma2", "lora")], [*product(("gemma2", "gpt_oss"), KINDS)]))
def test_models_with_capped_scores_or_sinks_are_traced_for_a_gpu(family, name, kind):
    """Their memory grows with tokens, not with their square."""
    recipe, plan = asked(family(name), kind, {"gradient_checkpointing": "off"})
    plan, config = replace(plan, device="cuda", compute="bfloat16"), config_of(family(name))
    few, more, most = (trace.trace(recipe, plan, config, [n], capability=(8, 9)).peak_bytes for n in (256, 512, 768))
    assert most - more == pytest.approx(more - few, rel=0.01)


def test_a_tensor_that_is_kept_is_counted():
    """The count would not be equal if the real step leaked."""
    live = LiveBytes()
    live.begin("here")
    with live:
        kept = torch.ones(1000)
        view = kept[::2]
        torch.ones(500)
        assert live.now == 4000 and live.peak == 6000 and live.at_peak == {"here": 6000}
        del kept
        assert live.now == 4000
        del view
    assert live.now == 0


def test_a_leak_of_the_real_step_is_seen(family, monkeypatch):
    recipe, plan = asked(family("llama3"), "lora", {})
    forward = trace.method_loss

    def leaking(*given):
        leaked.append(torch.zeros(10_000))
        return forward(*given)

    traced, leaked = trace.trace(recipe, plan, config_of(family("llama3")), LENGTHS, passes=2), []
    assert really(recipe, plan, family("llama3")) == traced
    monkeypatch.setattr(trace, "method_loss", leaking)
    found = really(recipe, plan, family("llama3"))
    assert found != traced and found.peak_bytes > traced.peak_bytes


def test_a_planned_gpu_changes_chunks_not_the_tensors(family):
    recipe, plan = asked(family("llama3"), "lora", {"gradient_checkpointing": "on"})
    plan = replace(plan, device="cuda", compute="bfloat16")
    found = trace.trace(recipe, plan, config_of(family("llama3")), LENGTHS, capability=(8, 9))
    assert found.stages["forward of layer", 0]["weights"] > 0
