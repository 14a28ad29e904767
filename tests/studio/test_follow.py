"""Events are read on from any offset, also past lines that are too long to be one."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.studio.conftest import steps, written
from tunesmith.studio.curves import History
from tunesmith.studio.follow import read_from

WINDOW = 64
NESTED = {"event": "samples", "samples": [{"event": "step", "step": 7, "text": "x" * 100}]}
LINES = st.one_of(
    st.builds(lambda step: {"event": "step", "step": step}, st.integers(0, 9)),
    st.just(NESTED),  # longer than the window, with what looks like an event within
    st.builds(lambda length: {"event": "warning", "message": "y" * length}, st.integers(0, 200)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, max_size=8), st.integers(0, 30))
def test_each_line_that_fits_is_read_once_and_longer_ones_are_passed_over(tmp_path, lines, half):
    """`half`: bytes of a last line that is not complete."""
    file, texts = tmp_path / "events.jsonl", [json.dumps(line).encode() + b"\n" for line in lines]
    file.write_bytes(b"".join(texts) + b"z" * half)
    found, offset = [], 0
    while True:
        events, following = read_from(file, offset, WINDOW)
        if following == offset:
            break
        found, offset = found + events, following
    whole = sum(map(len, texts))
    assert whole <= offset <= whole + half
    kept = [line for line, text in zip(lines, texts) if len(text) <= WINDOW]
    assert [event for event in found if event in kept] == kept
    assert all(event in lines for event in found)  # of a longer one all or nothing


@pytest.mark.parametrize("ended", [True, False])
def test_a_curve_goes_on_after_a_line_longer_than_what_is_read_at_once(tmp_path, monkeypatch, ended):
    file = tmp_path / "events.jsonl"
    monkeypatch.setattr("tunesmith.studio.follow.read_from.__defaults__", (WINDOW * 8,))
    file.write_bytes(written(steps(2)) + b"x" * 5000)
    history = History(file)
    history.update()
    assert list(history.axes["step"]) == [1, 2]
    with file.open("ab") as lines:
        lines.write((b"\n" if ended else b"") + b"\n" + written(steps(2, 3)))
    history.update()
    assert list(history.axes["step"]) == [1, 2, 3, 4] and history.offset == file.stat().st_size
