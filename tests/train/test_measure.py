"""What is said to fit in memory does, and not much more would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import train
from tunesmith.measure import Measured

@given(fixed=st.integers(10**6, 10**10), slope=st.integers(10**2, 10**6), by_square=st.sampled_from([0, 0.5, 8]),
       first=st.sampled_from([64, 1024]), budget=st.integers(2 * 10**10, 10**11))
def test_the_estimate_is_exact_where_memory_is_a_parabola(fixed, slope, by_square, first, budget):
    def peak(tokens):
        return fixed + slope * tokens + by_square * tokens**2

    points = [(tokens, int(peak(tokens))) for tokens in (first, 2 * first, 4 * first)]
    tokens = Measured(points, budget, 0).tokens
    assert peak(tokens) == pytest.approx(budget, rel=0.02)


def test_one_row_as_long_as_fits(recipe):
    run = train(recipe(data={"sequence_length": "max"}, train={"max_steps": 2}))
    assert run.plan["sequence_length"] == 512  # positions of the model; memory has room for more
    assert run.recipe.data.sequence_length == "max"
    assert "512" not in run.recipe.dump() and "fit in" in run.plan["reasons"]["sequence_length"]


def test_as_many_rows_as_fit(recipe):
    run = train(recipe(train={"micro_batch": "auto", "max_steps": 2}))
    assert run.plan["micro_batch_tokens"] == 8 * 256  # the whole batch
    assert "fit in" in run.plan["reasons"]["micro_batch_tokens"]
