"""Which prompts are answered at once."""

from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.generate import PROMPTS_AT_ONCE, TOKENS_AT_ONCE, _together


@given(st.lists(st.integers(1, 40_000), max_size=300))
def test_all_are_answered_and_few_where_they_are_long(tokens):
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    groups = _together(order, tokens)
    assert [i for group in groups for i in group] == order
    for group in groups:
        assert len(group) <= PROMPTS_AT_ONCE
        assert len(group) == 1 or len(group) * max(tokens[i] for i in group) <= TOKENS_AT_ONCE
