"""Which prompts are answered at once."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.generate import PROMPTS_AT_ONCE, TOKENS_AT_ONCE, _together


@given(st.lists(st.integers(1, 40_000), max_size=300), st.integers(1, 50_000))
def test_all_are_answered_and_few_where_they_are_long(lengths, positions):
    """Those that have no room for a whole answer are answered with others of as little room."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    room = [min(500, positions - length) for length in lengths]
    groups = _together(order, lengths, room)
    assert [i for group in groups for i in group] == order
    for group in groups:
        assert len(group) <= PROMPTS_AT_ONCE and len({room[i] for i in group}) == 1
        assert len(group) == 1 or len(group) * max(lengths[i] + room[i] for i in group) <= TOKENS_AT_ONCE
