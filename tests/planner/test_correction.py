"""The next plan is corrected by the speed that a run reached."""

from dataclasses import replace

import pytest

from tunesmith.machine import Machine
from tunesmith.planner import correction
from tunesmith.planner.decide import choose
from tunesmith.recipe import Recipe


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(correction, "cache_folder", lambda: tmp_path)
    recipe = Recipe.build({"model": {"path": "m"}, "data": "d"})
    return choose(recipe, Machine("", "", 2, 10**10, 10**10, 10**12, True))


def steps(count: int, rate: float) -> list[dict]:
    """The first two are slow."""
    return [{"tokens": 100, "seconds": 100 / rate * (9 if n < 2 else 1)} for n in range(count)]


def test_a_run_keeps_the_ratio_that_it_reached(plan):
    predicted = replace(plan, predicted={"kind": "GPU", "tokens_per_second": 200.0, "correction": 1.0})
    assert correction.ratio_of("GPU") is None
    correction.keep(predicted, steps(10, 150.0))
    assert correction.ratio_of("GPU") == pytest.approx(0.75)
    again = replace(plan, predicted={"kind": "GPU", "tokens_per_second": 150.0, "correction": 0.75})
    correction.keep(again, steps(10, 150.0))
    assert correction.ratio_of("GPU") == pytest.approx(0.75)
    assert correction.ratio_of("another") is None


def test_too_few_steps_and_odd_numbers_correct_nothing(plan):
    predicted = replace(plan, predicted={"kind": "GPU", "tokens_per_second": 200.0})
    correction.keep(predicted, steps(4, 150.0))
    correction.keep(plan, steps(10, 150.0))  # nothing was predicted
    assert not correction.speeds_file().exists()
    correction.keep(predicted, steps(10, 1.0))  # the machine did other work
    assert correction.ratio_of("GPU") is None
    correction.speeds_file().write_text("[]")
    assert correction.ratio_of("GPU") is None
