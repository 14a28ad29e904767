"""What the GPU benchmark counts and searches, and that its models are those whose names they have."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from tests import simulated_gpu
from tests.conftest import slow_but

sys.path.append(str(Path(__file__).parents[1] / "bench"))
import shapes
import shapes_trial
from operations import per_token
from points import SHAPES, Point, points

PUBLISHED = {"Llama-3.1-8B": 8_030_261_248, "Qwen3-8B": 8_190_735_360, "Qwen3-30B-A3B": 30_532_122_624}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_the_published_parameters(shape):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Point(shape, "full").config())
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[shape]


@settings(max_examples=12)
@given(
    kind=st.sampled_from(["llama", "qwen3", "qwen3_moe"]),
    layers=st.integers(1, 3),
    heads=st.sampled_from([2, 4]),
    groups=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([16, 32]),
    experts=st.integers(2, 6),
    length=st.integers(32, 128),
    trained=st.booleans(),
)
def test_operations_are_those_of_a_plain_step(kind, layers, heads, groups, head_dim, experts, length, trained):
    mixture = dict(num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=48) if "moe" in kind else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // groups,
        head_dim=head_dim,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **mixture,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    model.requires_grad_(trained)
    embedded = torch.randn(1, length, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embedded, use_cache=False).logits.sum().backward()
    # It computes every score, so that twice the causal ones are counted: those of rows twice as long.
    assert counter.get_total_flops() == pytest.approx(length * per_token(config, 2 * length, trained), rel=2e-3)


@given(
    fixed=st.integers(10**9, 8 * 10**9),
    slope=st.integers(10**4, 5 * 10**5),
    by_square=st.sampled_from([0, 0.05, 1]),
    lost=st.floats(0, 0.1),
    most=st.sampled_from([10_000, 131_072]),
)
def test_the_longest_row_found_fits_and_no_much_longer_one_would(fixed, slope, by_square, lost, most):
    cap, tried = 24 * 10**9, []

    def peak_of(tokens):
        tried.append(tokens)
        peak = fixed + slope * tokens + by_square * tokens**2
        return int(peak) if peak <= cap * (1 - lost) else None  # fragments are seen only when there is no room

    tokens, _ = shapes_trial.largest_context(peak_of, cap, most, seconds=60)
    assert len(tried) < 20 and max(tried) <= most
    if tokens:
        assert tokens in tried and peak_of(tokens)
        assert tokens == most or not peak_of(int(tokens * 1.1))
    else:
        assert not peak_of(shapes_trial.CONTEXT_PROBES[0])


def test_a_search_without_time_says_so():
    tokens, why = shapes_trial.largest_context(lambda tokens: 10**9 + tokens, 10**12, 10**6, seconds=0)
    assert tokens == shapes_trial.CONTEXT_PROBES[-1] and "no time" in why


@pytest.mark.parametrize(
    "shape,kind,device",
    slow_but(
        [("Qwen3-8B", "lora", "cpu"), ("Llama-3.1-8B", "full", "cuda")],
        [
            ("Qwen3-8B", "lora", "cpu"),
            ("Qwen3-30B-A3B", "qlora", "cpu"),
            ("Llama-3.1-8B", "full", "cuda"),
            ("Qwen3-8B", "lora", "cuda"),
            ("Qwen3-30B-A3B", "lora", "cuda"),
        ],
    ),
)
def test_a_tiny_point_runs_in_the_product_s_loop(monkeypatch, shape, kind, device):
    monkeypatch.setattr(shapes_trial, "SECONDS", 0)
    monkeypatch.setattr(shapes_trial, f"{'CPU' if device == 'cpu' else 'GPU'}_TOKENS", 256)
    threads = torch.get_num_threads()
    point = Point(shape, kind, 64, device=device, tiny=True)
    try:
        if device == "cuda":
            monkeypatch.setattr(shapes_trial, "probe", lambda: simulated_gpu.MACHINE)
        with simulated_gpu.played() if device == "cuda" else nullcontext():
            found = shapes_trial.steps(point)
    finally:
        torch.set_num_threads(threads)
    assert found["steps"] == shapes_trial.FEWEST and found["said"] == []
    assert found["operations_per_token"] == per_token(point.config(), 64, kind == "full")


def test_what_was_not_run_is_in_the_table():
    every = points("cuda", tiny=False)
    results = {point: {"problem": "not run: the time was up"} for point in every}
    results[every[0]] = {
        "tokens_per_second": 9000.0,
        "spread": (8000.0, 10000.0),
        "steps": 5,
        "how": "adafactor",
        "operations_per_token": 5e10,
        "allocated_bytes": 6 * 10**10,
        "reserved_bytes": 7 * 10**10,
    }
    lines = list(shapes.document("cpu", {"bfloat16": 7.5e14}, results))
    assert sum("the time was up" in line for line in lines) == len(every) - 1
    assert "not measured" in lines[-1] and "60%" in lines[-4]
    assert any("9000 (8000 to 10000) | 60% | 60.00 GB | 70.00 GB |" in line for line in lines)
