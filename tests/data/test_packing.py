"""Every row is used as often as its weight says, and every micro-batch stays within its capacity."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.packing import Sizes, micro_batches, share_of
from tunesmith.data.row_order import Schedule

weights = st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0]), min_size=1, max_size=60).filter(lambda w: sum(w) >= 1)


@given(weights, st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_steps_are_the_epochs_in_order(weights, batch, epochs, seed):
    schedule = Schedule(np.array(weights), batch, epochs, seed)
    seen = np.concatenate([schedule.step_rows(step) for step in range(1, schedule.steps + 1)])
    assert seen.tolist() == np.concatenate([schedule.epoch(n) for n in range(epochs)]).tolist()
    for number in range(epochs):
        counts = np.bincount(schedule.epoch(number), minlength=len(weights))
        assert (abs(counts - weights) < 1).all()
        assert abs(counts.sum() - sum(weights)) <= 0.5


@given(weights, st.integers(1, 9), st.integers(0, 5))
def test_a_step_does_not_depend_on_earlier_calls(weights, batch, seed):
    schedule = Schedule(np.array(weights), batch, 3, seed)
    steps = [schedule.step_rows(step).tolist() for step in range(1, schedule.steps + 1)]
    for step in reversed(range(1, schedule.steps + 1)):
        fresh = Schedule(np.array(weights), batch, 3, seed)
        assert fresh.step_rows(step).tolist() == steps[step - 1]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=50), st.integers(20, 200), st.integers(1, 4), st.booleans())
def test_micro_batches_hold_every_row_once_within_capacity(lengths, capacity, world, packing):
    lengths, rows = np.array(lengths), np.arange(len(lengths))
    dealt = [share_of(rows, lengths, rank, [1] * world) for rank in range(world)]
    batches = [b for share in dealt for b in micro_batches(share, Sizes.single(lengths), capacity, packing)]
    assert sorted(np.concatenate(batches).tolist()) == rows.tolist()
    for batch in batches:
        used = lengths[batch].sum() if packing else lengths[batch].max() * len(batch)
        assert used <= capacity or len(batch) == 1


@given(
    st.lists(st.integers(1, 100), max_size=60),
    st.lists(st.floats(0.05, 1.0), min_size=1, max_size=5),
)
def test_each_process_gets_its_share_of_the_tokens(lengths, shares):
    """Each row went where it was finished soonest: with any other process it would have been finished later."""
    lengths, rows = np.array(lengths, int), np.arange(len(lengths))
    dealt = [share_of(rows, lengths, rank, shares) for rank in range(len(shares))]
    assert sorted(np.concatenate(dealt).tolist()) == rows.tolist()
    for mine, share in zip(dealt, shares):
        if len(set(shares)) > 1 and len(mine):
            last = lengths[mine[-1]]
            others = [(lengths[own].sum() + last) / other for own, other in zip(dealt, shares) if own is not mine]
            assert lengths[mine].sum() / share <= min(others) + 1e-9


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=4), min_size=1, max_size=30),
    st.integers(20, 300),
    st.booleans(),
)
def test_the_sequences_of_a_row_stay_together_within_capacity(groups, capacity, packing):
    sizes = Sizes(*(np.array([count(group) for group in groups]) for count in (sum, len, max)))
    batches = micro_batches(np.arange(len(groups)), sizes, capacity, packing)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(groups)))
    for batch in batches:
        lengths = [length for row in batch for length in groups[row]]
        used = sum(lengths) if packing else max(lengths) * len(lengths)
        assert used <= capacity or len(batch) == 1
