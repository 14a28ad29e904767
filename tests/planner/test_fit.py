"""What is said to fit in memory does, and not much more would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.machine import Machine
from tunesmith.planner import fit
from tunesmith.planner.decide import choose
from tunesmith.planner.fit import Measured, fitted
from tunesmith.run import Run


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
    tokens = Measured(points, budget, 0).tokens
    assert peak(tokens) == pytest.approx(budget, rel=0.02)


def test_rows_as_long_as_fit(recipe):
    run = train(recipe(data={"sequence_length": "max"}, train={"max_steps": 2, "micro_batch": 2}))
    plan = run.plan
    assert plan.sequence_length == 512  # positions of the model; memory has room for more
    assert plan.micro_batch_tokens == 2 * 512
    assert run.recipe.data.sequence_length == "max" and "512" not in run.recipe.dump()
    assert plan.reasons["sequence_length"].startswith("2 rows of 512 tokens in a forward pass, as fits in")
    assert plan.gradient_checkpointing == "off"
    assert plan.reasons["gradient_checkpointing"] == "examples of up to 512 tokens"


def test_as_many_rows_as_fit(recipe):
    run = train(recipe(train={"micro_batch": "auto", "max_steps": 2}))
    assert run.plan.micro_batch_tokens == 8 * 256  # the whole batch
    assert "fits in" in run.plan.reasons["micro_batch_tokens"]
    assert run.plan.reasons["tiled_mlp"] == "2,048 tokens in a forward pass"


BYTES = {"off": 300, "on": 100}  # per token of a pass, with and without checkpointing
TILED_BYTES = 50


class Here:
    """As an executor, but at once."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        self.result = lambda: function(*arguments)
        return self


@pytest.fixture
def planned(recipe, monkeypatch):
    """Gives the plan for a budget, and what was measured: (plan, shapes) of each time."""

    def plan(budget: int, longest: int = 2**17, **sections):
        def passes(folder, plan, base, shapes):
            seen.append((plan, shapes))
            by_token = BYTES[plan.gradient_checkpointing] - TILED_BYTES * plan.tiled_mlp
            sizes = [rows * length for rows, length in shapes if rows * length * by_token <= budget]
            return Measured([(tokens, tokens * by_token) for tokens in sizes], budget, 0.0)

        seen = []
        monkeypatch.setattr(fit, "ProcessPoolExecutor", Here)
        monkeypatch.setattr(fit, "measure", passes)
        asked = recipe(name=f"run-{budget}", **sections)
        machine = Machine("", "", 2, 2**34, 2**34, 2**34, False, compiles_cpp=True, gpus=[])
        return fitted(Run.create(asked), choose(asked, machine), None, longest)[0], seen

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
