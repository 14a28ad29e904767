"""Stochastic rounding: right on average, never further than a neighbour, and what is learned with it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.finetune import job
from tunesmith.recipe import Train
from tunesmith.training import stochastic_rounding
from tunesmith.training.optimizer import build_optimizer
from tunesmith.training.optimizer_parts import CHUNK_ELEMENTS, chunks
from tunesmith.training.stochastic_rounding import convert, round_stochastically

DRAWS = 4096
DEVIATIONS = 6  # of the mean of so many draws: one in 10^9 lies outside


@settings(max_examples=100)
@given(upper=st.integers(0x0080, 0x7F00), lower=st.integers(0, 0xFFFF), sign=st.sampled_from([1, -1]))
def test_rounding_is_right_on_average(upper, lower, sign):
    """Of a float32 number, given by its halves; the upper half is a bfloat16 number, and so is the next."""
    torch.manual_seed(0)
    value, below, above = sign * torch.tensor(
        [upper << 16 | lower, upper << 16, upper + 1 << 16], dtype=torch.int32
    ).view(torch.float32)
    rounded = round_stochastically(value.repeat(DRAWS))
    assert rounded.dtype == torch.bfloat16
    assert ((rounded == below) | (rounded == above)).all()
    gap = (above.double() - below.double()).abs()
    assert (rounded.double().mean() - value.double()).abs() <= DEVIATIONS * gap / 2 / DRAWS**0.5


def test_what_bfloat16_holds_stays():
    held = torch.randn(1000).bfloat16()
    extremes = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 2.0**-130]).bfloat16()
    for exact in (held, extremes):
        assert torch.equal(round_stochastically(exact.float()), exact)


def test_a_saved_model_keeps_what_few_steps_have_taught(monkeypatch):
    """An update of a fifth of the gap to the next value, which the nearest value loses altogether."""
    monkeypatch.setattr(stochastic_rounding, "CHUNK_ELEMENTS", 1000)
    torch.manual_seed(0)
    gap, update = 2.0**-8, 2.0**-8 / 5
    saved = torch.nn.Parameter(torch.full((300, 200), 0.5 + update).T)
    assert (saved.bfloat16() == 0.5).all() and not saved.is_contiguous()
    convert([saved], torch.bfloat16)
    assert saved.dtype == torch.bfloat16 and saved.shape == (200, 300)
    assert abs(float(saved.detach().double().mean()) - 0.5 - update) <= DEVIATIONS * gap / 2 / saved.numel() ** 0.5
    other = torch.nn.Parameter(torch.tensor([0.1]))
    convert([other], torch.float16)
    assert other.dtype == torch.float16 and float(other) == pytest.approx(0.1, rel=1e-3)


def test_small_updates_are_learned():
    """100 steps of 1e-4 from 1: plain bfloat16 weights do not move, as half the gap to the next is 2e-3."""
    plain = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    plainly = torch.optim.AdamW([plain], lr=1e-4, weight_decay=0.0)
    layer = torch.nn.Linear(64, 64, bias=False).bfloat16()
    torch.nn.init.ones_(layer.weight)
    rounded = build_optimizer(layer, Train(learning_rate=1e-4, weight_decay=0.0))
    torch.manual_seed(0)
    for _ in range(100):
        for parameter, optimizer in ((plain, plainly), (layer.weight, rounded)):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert torch.equal(plain, torch.ones_like(plain))
    # Each of 4096 weights takes about 2.6 of 100 chances of a step of 2^-8: a deviation of 1.6 * 2^-8.
    assert layer.weight.double().mean().item() == pytest.approx(0.99, abs=DEVIATIONS * 1.6 * 2**-8 / 64)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_losses_follow_those_of_float32_weights(recipe, optimizer):
    """Over 20 steps, in which the loss falls by more than 20 times the bound."""
    losses = []
    for weights in ("float32", "bfloat16"):
        run = job.train(
            recipe(
                name=weights,
                model={"dtype": "bfloat16"},
                adapter={"kind": "full"},
                train={"optimizer": optimizer, "weights": weights},
            )
        )
        losses.append([event["loss"] for event in run.events("step")])
    assert len(losses[0]) == 20
    assert losses[1] == pytest.approx(losses[0], abs=0.1)
    assert losses[0][0] - losses[0][-1] > 2


def test_memory_holds_float32_only_during_the_step():
    layer = torch.nn.Linear(64, 64).bfloat16()
    optimizer = build_optimizer(layer, Train())
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    stand_ins = [p for group in optimizer.param_groups for p in group["params"]]
    assert sum(p.numel() for p in stand_ins) == 0
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}


def test_chunks_are_bounded():
    sizes = [3, CHUNK_ELEMENTS - 3, 1, 2 * CHUNK_ELEMENTS, 5]
    named = [(str(n), torch.empty(size, device="meta")) for n, size in enumerate(sizes)]
    assert [[int(name) for name, _ in chunk] for chunk in chunks(named)] == [[0, 1], [2], [3], [4]]


@pytest.mark.parametrize("others", [0, 3])
def test_noise_depends_on_the_parameter_alone(others):
    """Not on the process, nor on which parameters are updated before."""
    torch.manual_seed(others)
    model = torch.nn.ModuleDict({f"other{n}": torch.nn.Linear(8, 8) for n in range(others)})
    model["last"] = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.ones_(model["last"].weight)
    optimizer = build_optimizer(model.bfloat16(), Train(learning_rate=1e-3))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step((7, 3))
    layer = torch.nn.ModuleDict({"last": torch.nn.Linear(64, 64, bias=False)}).bfloat16()
    torch.nn.init.ones_(layer["last"].weight)
    alone = build_optimizer(layer, Train(learning_rate=1e-3))
    for seed, same in (((7, 3), True), ((7, 4), False)):
        layer["last"].weight.data.fill_(1)
        layer["last"].weight.grad = torch.ones_like(layer["last"].weight)
        alone.step(seed)
        assert torch.equal(layer["last"].weight, model["last"].weight) == same
