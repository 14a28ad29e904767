"""What is said to fit in memory does, and not much more would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.machine import Machine
from tunesmith.planner import fit
from tunesmith.planner.decide import choose
from tunesmith.planner.fit import Measured, climb, fitted


@given(
    fixed=st.integers(10**6, 10**10),
    slope=st.integers(10**2, 10**6),
    by_square=st.sampled_from([0, 0.5, 8]),
    first=st.sampled_from([64, 1024]),
    budget=st.integers(2 * 10**10, 10**11),
)
def test_the_estimate_is_exact_where_memory_is_a_parabola(fixed, slope, by_square, first, budget):
    def peak(tokens):
        return fixed + slope * tokens + by_square * tokens**2

    points = [(tokens, int(peak(tokens))) for tokens in (first, 2 * first, 4 * first)]
    tokens = Measured(points, budget).tokens
    assert peak(tokens) == pytest.approx(budget, rel=0.02)


@pytest.mark.slow
def test_rows_as_long_as_fit(recipe):
    run = train(recipe(data={"sequence_length": "max"}, train={"max_steps": 2, "micro_batch": 2}))
    plan = run.plan
    assert plan.sequence_length == 512  # positions of the model; memory has room for more
    assert plan.micro_batch_tokens == 2 * 512
    assert run.recipe.data.sequence_length == "max" and "512" not in run.recipe.dump()
    assert plan.reasons["sequence_length"].startswith("2 rows of 512 tokens in a forward pass, as fits in")
    assert plan.gradient_checkpointing == "off"
    assert plan.reasons["gradient_checkpointing"] == "examples of up to 512 tokens"


@pytest.mark.slow
def test_as_many_rows_as_fit(recipe):
    run = train(recipe(train={"micro_batch": "auto", "max_steps": 2}))
    assert run.plan.micro_batch_tokens == 8 * 256  # the whole batch
    assert "fits in" in run.plan.reasons["micro_batch_tokens"]
    assert run.plan.reasons["tiled_mlp"] == "2,048 tokens in a forward pass"


BYTES = {"off": 300, "on": 100}  # per token of a pass, with and without checkpointing
TILED_BYTES = 50


@pytest.fixture
def planned(recipe):
    """Gives the plan for a budget, and what was measured: (plan, shapes) of each time."""

    def plan(budget: int, longest: int = 2**17, **sections):
        def passes(plan, shapes):
            seen.append((plan, shapes))
            by_token = BYTES[plan.gradient_checkpointing] - TILED_BYTES * plan.tiled_mlp
            sizes = [rows * length for rows, length in shapes if rows * length * by_token <= budget]
            return Measured([(tokens, tokens * by_token) for tokens in sizes], budget)

        seen = []
        asked = recipe(**sections)
        machine = Machine("", "", 2, 2**34, 2**34, 2**34, False, compiles_cpp=True, gpus=[])
        return fitted(asked, choose(asked, machine), longest, passes)[0], seen

    return plan


@pytest.mark.parametrize(
    "budget, longest, rows, length, checkpointing, tiled",
    [
        (10**6, 512, 1, 512, "off", False),  # all the positions there are, without recomputing
        (10**6, 2**17, 1, 10_000, "on", False),
        (300_000, 2**17, 1, 3000, "on", False),  # short enough for none, but then fewer fit
        (4 * 10**6, 2**17, 1, 80_000, "on", True),  # 40,000 without tiles, which so many tokens ask for
        (4 * 10**6, 2**17, 4, 20_000, "on", True),
        (10**6, 2**17, 16, 1250, "on", True),  # 16 placeholder rows ask for tiles, and with them more fit
    ],
)
def test_what_was_measured_is_what_runs(planned, budget, longest, rows, length, checkpointing, tiled):
    plan, seen = planned(budget, longest, data={"sequence_length": "max"}, train={"micro_batch": rows})
    assert length - fit.MULTIPLE <= plan.sequence_length <= length
    assert plan.micro_batch_tokens == rows * plan.sequence_length
    assert (plan.gradient_checkpointing, plan.tiled_mlp) == (checkpointing, tiled)
    assert any((m.gradient_checkpointing, m.tiled_mlp) == (checkpointing, tiled) for m, _ in seen) and len(seen) <= 2
    assert all(count == rows for _, shapes in seen for count, _ in shapes)
    assert f" of {plan.sequence_length:,} tokens" in plan.reasons["sequence_length"]
    assert "4,096" not in plan.reasons["gradient_checkpointing"] + plan.reasons["tiled_mlp"]


def test_where_not_one_row_fits_activations_are_recomputed(planned):
    plan, seen = planned(100 * 256, train={"micro_batch": "auto"})
    assert (plan.gradient_checkpointing, plan.micro_batch_tokens) == ("on", 256) and len(seen) == 2
    assert plan.reasons["gradient_checkpointing"] == "otherwise not one row fits"


def test_no_room_for_a_row_is_said(planned):
    for budget, sections in ((700, {"data": {"sequence_length": "max"}}), (800, {"train": {"micro_batch": "auto"}})):
        with pytest.raises(UserError, match="data.sequence_length: no room for 1 row of"):
            planned(budget, **sections)


class Device:
    """A device whose memory is a parabola; a pass of more than all of it fails."""

    def __init__(self, rest: float, by_token: float, by_square: float, total: float):
        self.rest, self.by_token, self.by_square, self.total = rest, by_token, by_square, total
        self.tried: list[int] = []

    def bytes_of(self, tokens: int) -> int:
        return int(self.rest + self.by_token * tokens + self.by_square * tokens**2)

    def peak_of(self, shape) -> int:
        tokens = shape[0] * shape[1] if shape else 0
        if shape:
            self.tried.append(tokens)
        if self.bytes_of(tokens) > self.total:
            raise RuntimeError("no memory")
        return self.bytes_of(tokens)

    def climb(self, shapes, traced=None) -> Measured:
        self.tried = []
        return climb(shapes, self.peak_of, int(0.9 * self.total), lambda error: True, traced)


ROWS = [(2**n, 512) for n in range(8)]
LENGTHS = [(2, 512 * 2**n) for n in range(9)]


@pytest.mark.parametrize("shapes", [ROWS, LENGTHS])
@pytest.mark.parametrize("by_square", [0, 0.5])
@pytest.mark.parametrize("factor", [1.0, 0.85, 1.2])
def test_with_a_trace_one_large_pass_gives_what_many_give(shapes, by_square, factor):
    """The device needs more than the trace says: a fixed part, and a factor."""
    traced = Device(10**8, 10**4, by_square, 10**12)
    real = Device(3 * 10**8, factor * 10**4, factor * by_square, 10**9)
    tokens = [rows * length for rows, length in shapes]
    points = [(n, traced.bytes_of(n)) for n in (0, *tokens)]
    passes = Measured(points, 10**9, flops=[n + n**2 for n, _ in points])
    without = real.climb(shapes)
    assert len(real.tried) >= 4
    found = real.climb(shapes, passes)
    assert found.tokens == pytest.approx(without.tokens, rel=0.01)
    assert real.bytes_of(found.tokens) == pytest.approx(found.budget_bytes, rel=0.01)
    assert real.tried[:2] == [tokens[0]] * 2 and len(real.tried) == 3  # the smallest twice, for the optimizer's states


def test_a_trace_that_says_too_little_changes_nothing():
    """The pass that it says fits does not; then passes grow as without it."""
    traced, real = Device(0, 10**3, 0, 10**12), Device(10**8, 10**4, 0, 5 * 10**8)
    points = [(n, traced.bytes_of(n)) for n in (0, 512, 2**16)]
    assert real.climb(ROWS, Measured(points, 10**9, flops=[0, 1, 2])).tokens == real.climb(ROWS).tokens


def test_a_trace_that_says_too_much_is_left_behind():
    """The pass that it says just fits needs little; then passes grow on."""
    traced, real = Device(0, 10**5, 0, 10**12), Device(10**8, 10**3, 0, 5 * 10**8)
    points = [(n, traced.bytes_of(n)) for n in (0, 512, 2**14)]
    found = real.climb(ROWS, Measured(points, 10**9, flops=[0, 1, 2]))
    assert found.tokens == pytest.approx(real.climb(ROWS).tokens, rel=0.01)


def test_a_pass_that_would_take_too_long_is_not_tried(monkeypatch):
    """The largest that fits has a million times the arithmetic of the first."""
    device = Device(10**8, 10**4, 0, 5 * 10**8)
    points = [(n, device.bytes_of(n)) for n in (0, 512, 2**16)]
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(fit.time, "monotonic", lambda: next(clock))
    found = device.climb(ROWS, Measured(points, 10**9, flops=[0, 1, 10**6]))
    assert device.tried == [512, 512]
    assert found.tokens == pytest.approx(35_000, rel=0.01)  # as if it was tried
