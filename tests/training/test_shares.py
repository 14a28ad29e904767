"""Shares follow the speed of unlike processes: on simulated ones, and in a run with a process that is made slow."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import slow_but
from tunesmith import train
from tunesmith.data.packing import share_of
from tunesmith.finetune import launch, worker
from tunesmith.training import distributed, loop
from tunesmith.training.checkpoint import State
from tunesmith.training.shares import GAIN, WARM_UP, Shares

FAIR = 1 + 2 * GAIN  # of the shortest time: shares change where they gain GAIN, and rows cannot be divided


def simulated(shares: Shares, state: State, speeds: list[float], steps: int, tokens: int = 100_000) -> list[float]:
    """Lets steps be computed at these speeds; returns how long each takes."""
    took = []
    for _ in range(steps):
        given = [round(share * tokens) for share in state.shares]
        seconds = [count / speed for count, speed in zip(given, speeds)]
        took.append(max(seconds))
        shares.follow(given, seconds)
    return took


speeds = st.lists(st.floats(1e3, 1e5), min_size=2, max_size=8)


@given(speeds)
def test_unlike_processes_finish_together_after_the_warm_up(speeds):
    state = State()
    took = simulated(Shares(state, len(speeds), True), state, speeds, WARM_UP + 2)
    assert took[0] == pytest.approx(100_000 / len(speeds) / min(speeds), rel=1e-3)
    assert took[-1] <= FAIR * 100_000 / sum(speeds)
    assert sum(state.shares) == pytest.approx(1)


@given(speeds, st.data())
def test_one_that_turns_slow_loses_tokens_within_five_steps(speeds, data):
    state = State()
    shares = Shares(state, len(speeds), True)
    simulated(shares, state, speeds, WARM_UP + 2)
    hot, before = data.draw(st.integers(0, len(speeds) - 1)), list(state.shares)
    later = [speed / 3 if process == hot else speed for process, speed in enumerate(speeds)]
    took = simulated(shares, state, later, 6)
    assert took[5] <= FAIR * 100_000 / sum(later) * 1.05
    if max(share / speed for share, speed in zip(before, later)) > FAIR / sum(later):
        assert state.shares[hot] < before[hot]


def test_like_processes_keep_equal_shares_though_their_speed_wavers():
    state = State()
    shares = Shares(state, 4, True)
    draw = np.random.default_rng(0)
    for _ in range(100):
        shares.follow([1000] * 4, list(1 + 0.02 * draw.random(4)))
    assert state.shares == [0.25] * 4


def test_one_without_a_row_is_tried_again():
    state = State()
    shares = Shares(state, 2, True)
    rows, lengths, tried = np.arange(2), np.array([100, 100]), []
    for step in range(200):
        tokens = [int(lengths[share_of(rows, lengths, rank, state.shares)].sum()) for rank in range(2)]
        speeds = [100.0, 100.0 if step > 20 else 20.0]
        shares.follow(tokens, [count / speed for count, speed in zip(tokens, speeds)])
        tried.append(tokens[1] > 0)
    assert not all(tried[5:20]) and all(tried[-50:])


def test_a_resumed_run_keeps_its_shares_unless_its_processes_are_others():
    state = State(shares=[0.75, 0.25])
    Shares(state, 2, True)
    assert state.shares == [0.75, 0.25]
    Shares(state, 4, True)
    assert state.shares == [0.25] * 4
    state = State(shares=[0.75, 0.25])
    Shares(state, 2, False)
    assert state.shares == [0.5, 0.5]


def slow_second(folder):
    """A training process whose passes take as long as its tokens say, three times as long in the second one."""
    gradients = loop._gradients

    def sleeping(job, state, data, units, tokens):
        time.sleep(data.tokens * (1.5e-3 if distributed.rank() else 0.5e-3))
        return gradients(job, state, data, units, tokens)

    loop._gradients = sleeping
    worker.work(folder)


@pytest.mark.parametrize("kind", slow_but(["lora"], ["lora", "full"]))
def test_a_run_with_a_slow_process_learns_the_same_from_fewer_of_its_tokens(recipe, monkeypatch, kind):
    """Also where processes wait for each other at each layer, with gradients in host memory."""
    start = launch.launch
    monkeypatch.setattr(launch, "launch", lambda entry, processes, folder: start(slow_second, processes, folder))
    options = {"max_steps": 7, "batch": 16, "learning_rate": 1e-2}
    options |= {"kept_layers": 0} if kind == "full" else {}
    one = train(recipe(name="one", train=options, adapter={"kind": kind})).events("step")
    options |= {"processes": 2, "shares": "measured"}
    two = train(recipe(name="two", train=options, adapter={"kind": kind})).events("step")
    assert "shares" not in one[-1] and two[0]["shares"] == [0.5, 0.5]
    assert two[-1]["shares"][0] == pytest.approx(0.75, abs=0.1)
    assert [step["tokens"] for step in two] == [step["tokens"] for step in one]
    assert [step["loss"] for step in two] == pytest.approx([step["loss"] for step in one], rel=1e-4)
