"""Batches ready ahead are those that were asked for, in order, whatever the thread does."""

import threading

import numpy as np
import pytest
import torch

from tunesmith.data.packing import Sizes
from tunesmith.data.row_order import Schedule
from tunesmith.training.prefetch import step_data, steps_ahead

PATIENCE_SECONDS = 60


def test_each_step_comes_once_and_in_order():
    assert list(steps_ahead(lambda step: step * step, 3, 8)) == [9, 16, 25, 36, 49, 64]
    assert list(steps_ahead(lambda step: 1 / 0, 4, 3)) == []  # a run that is at its end


def test_the_next_is_made_while_one_is_used_and_no_more():
    made, second = [], threading.Event()

    def make(step):
        made.append(step)
        if step == 2:
            second.set()
        return step

    feed = steps_ahead(make, 1, 9)
    assert next(feed) == 1
    assert second.wait(PATIENCE_SECONDS)
    feed.close()
    assert made == [1, 2]


def test_an_error_comes_where_its_step_is_asked_for():
    feed = steps_ahead(lambda step: 1 / (step - 2), 1, 5)
    assert next(feed) == -1
    with pytest.raises(ZeroDivisionError):
        next(feed)


class Tokens(list):
    """Examples with lengths, as a TokenStore has."""

    @property
    def lengths(self):
        return np.array([len(ids) for ids, _ in self])

    @property
    def sizes(self):
        return Sizes.single(self.lengths)


@pytest.mark.parametrize("packing", [True, False])
def test_a_step_has_the_tokens_of_its_rows(packing):
    """Whatever was asked for before: a resumed run begins with any step."""
    random = np.random.default_rng(0)
    tokens = Tokens((random.integers(1, 99, n), np.arange(n) % 2 == 1) for n in random.integers(2, 30, 40))
    schedule = Schedule(np.ones(40), batch=7, epochs=2, seed=5)
    for step in (9, 1, schedule.steps):
        found = step_data(step, schedule, tokens, "row", 64, [1.0], packing, torch.device("cpu"))
        assert found.rows.tolist() == schedule.step_rows(step).tolist()
        assert sorted(row for batch in found.batches for row in batch.rows) == sorted(found.rows)
        assert found.tokens == sum(len(tokens[row][0]) for row in found.rows)
        assert found.units == len(found.rows)
        assert found.supervised_tokens == sum(tokens[row][1][1:].sum() for row in found.rows)
        for batch in found.batches:
            starts = np.cumsum((0, *batch.lengths))
            for number, (row, length) in enumerate(zip(batch.rows, batch.lengths)):
                ids_T = batch.input_ids_BT[0, starts[number] :] if packing else batch.input_ids_BT[number]
                assert ids_T[:length].tolist() == tokens[row][0].tolist()
