"""The live line and the charts on a terminal of a given width."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tunesmith.cli.terminal import LiveLine, bar, fitting, line_chart
from tunesmith.units import size

PARTS = [
    (0, "step 7/200"),
    (1, "loss 1.2345"),
    (3, "27,371 tokens/s"),
    (5, "520.3 MB"),
    (4, "0:04 elapsed"),
    (2, "1:26 left"),
]


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (120, ["step 7/200", "loss 1.2345", "27,371 tokens/s", "520.3 MB", "0:04 elapsed", "1:26 left", "░"], []),
        (79, ["step 7/200", "loss 1.2345", "27,371 tokens/s", "0:04 elapsed", "1:26 left", "░"], ["MB"]),
        (59, ["step 7/200", "loss 1.2345", "27,371 tokens/s", "1:26 left"], ["elapsed", "MB"]),
        (35, ["step 7/200", "loss 1.2345", "1:26 left"], ["tokens/s", "░"]),
    ],
)
def test_the_most_useful_parts_stay_whole(width, shown, left_out):
    line = fitting(PARTS, 0.5, width)
    assert len(line) <= width and [part for part in shown if part not in line] == []
    assert [part for part in left_out if part in line] == []


@given(
    parts=st.lists(st.tuples(st.integers(0, 5), st.text("ab ", min_size=1, max_size=30)), min_size=1, max_size=6),
    share=st.floats(0, 1),
    width=st.integers(1, 200),
)
def test_the_line_is_never_wider_than_the_terminal(parts, share, width):
    assert len(fitting(parts, share, width)) <= width


@given(st.floats(0, 1), st.integers(1, 50))
def test_a_bar_is_as_long_as_its_share(share, width):
    drawn = bar(share, width)
    assert len(drawn) <= width and abs(len(drawn) - share * width) <= 1 and (drawn == "") == (share == 0)


class Screen:
    """A terminal that wraps what is too long and knows the few controls that the live line uses."""

    def __init__(self, width: int):
        self.rows, self.row, self.column, self.width = [""], 0, 0, width

    def narrow(self, width: int) -> None:
        """Re-wraps the text; the cursor stays after its character."""
        text, self.width = self.rows[self.row], width
        pieces = [text[i : i + width] for i in range(0, len(text), width)] or [""]
        self.rows[self.row :] = pieces
        self.row += len(pieces) - 1
        self.column = len(pieces[-1])

    def write(self, text: str) -> None:
        while text:
            if text.startswith("\x1b["):
                end = next(i for i, c in enumerate(text) if c.isalpha())
                number, text, kind = text[2:end], text[end + 1 :], text[end]
                if kind == "A":
                    self.row -= int(number)
                elif kind == "J":
                    self.rows[self.row :] = [self.rows[self.row][: self.column]]
            elif text[0] == "\r":
                self.column, text = 0, text[1:]
            elif text[0] == "\n":
                self.rows.append("")
                self.row, self.column, text = self.row + 1, 0, text[1:]
            else:
                line = self.rows[self.row]
                self.rows[self.row] = line[: self.column] + text[0] + line[self.column + 1 :]
                self.column, text = self.column + 1, text[1:]

    def flush(self) -> None:
        pass


def test_a_terminal_that_becomes_narrower_keeps_no_piece_of_the_old_line():
    screen = Screen(80)
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    live = LiveLine(console)
    console.print("first")
    live.show(lambda width: fitting(PARTS, 0.3, width), force=True)
    for width in (60, 30, 100):
        screen.narrow(width) if width < screen.width else setattr(screen, "width", width)
        console.width = width
        live.show(lambda width: fitting(PARTS, 0.3, width), force=True)
        assert screen.rows == ["first", fitting(PARTS, 0.3, width - 1)]
    live.clear()
    console.print("last")
    assert screen.rows == ["first", "last", ""]


def test_nothing_is_drawn_where_there_is_no_terminal():
    file = io.StringIO()
    live = LiveLine(Console(file=file))
    live.show(lambda width: "x", force=True)
    live.clear()
    assert file.getvalue() == "" and not live.is_shown


def test_a_chart_draws_each_point_of_each_series():
    drawn = line_chart([[(0, 4.0), (10, 2.0)], [(0, 3.0), (5, math.inf)]], 40, 5, lambda y: f"{y:.1f}").plain
    lines = drawn.splitlines()
    assert lines[0].startswith("4.0 ┤●") and lines[4].rstrip().endswith("●") and lines[2].startswith("3.0 ┤▲")
    assert drawn.count("●") == 2 and drawn.count("▲") == 1 and max(map(len, lines)) <= 40
    assert lines[-1].split() == ["0", "step", "10"]
    assert line_chart([[(1, math.nan)]], 40, 5, str).plain == "no finite values to draw"


@pytest.mark.parametrize(
    ("bytes_", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (329_700, "329.7 kB"), (24e9, "24.0 GB")]
)
def test_sizes_are_decimal(bytes_, text):
    assert size(bytes_) == text
