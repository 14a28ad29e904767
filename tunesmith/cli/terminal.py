"""Terminal output: a live status line, bars, and charts made of characters."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from rich.console import Console
from rich.text import Text

EIGHTHS = " ▏▎▍▌▋▊▉"
MARKS = "●▲■◆○△□◇"
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "white", "bright_black")
SECONDS_BETWEEN_REDRAWS = 0.1
SHORTEST_BAR, LONGEST_BAR = 8, 24
BEFORE_BAR = 3  # parts up to this priority come before the bar
CLEAR = "\r\x1b[J"  # moves to the start of the line and clears everything after it


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows `what` on a terminal during the block. Elsewhere it writes nothing."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"{what} …", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print(CLEAR, end="", file=sys.stderr, flush=True)


def fitting(parts: Sequence[tuple[int, str]], share: float, width: int) -> str:
    """Returns one line of at most `width` characters, made of (priority, text) parts, with a bar for `share` after the
    first part. Parts that do not fit are dropped, the highest priority number first."""
    kept = sorted(range(len(parts)), key=lambda place: parts[place][0])

    def missing() -> int:
        bar_needs = SHORTEST_BAR + 2 if parts[kept[-1]][0] > BEFORE_BAR else 0
        return len("  ".join(parts[place][1] for place in kept)) + bar_needs - width

    while len(kept) > 1 and missing() > 0:
        kept.pop()
    texts = [parts[place][1] for place in sorted(kept)]
    room = width - len("  ".join(texts)) - 2
    if room >= SHORTEST_BAR:
        length = min(LONGEST_BAR, room)
        texts.insert(1, bar(share, length).ljust(length, "░"))
    return "  ".join(texts)[:width]


class LiveLine:
    """A status line at the bottom of a terminal that is redrawn in place. Elsewhere it shows nothing."""

    def __init__(self, console: Console):
        self._console = console
        self._length = 0
        self._shown_at = 0.0

    @property
    def is_shown(self) -> bool:
        return self._console.is_terminal

    def show(self, line: Callable[[int], str], force: bool = False) -> None:
        """Draws the line that `line` returns for a width, unless the last redraw was too recent."""
        if not self.is_shown or (not force and time.monotonic() - self._shown_at < SECONDS_BETWEEN_REDRAWS):
            return
        text = line(self._console.width - 1)  # some terminals wrap after a full line
        self._console.file.write(self._cleared() + text)
        self._console.file.flush()
        self._length, self._shown_at = len(text), time.monotonic()

    def clear(self) -> None:
        """Clears the line, so that other lines can be printed."""
        if self._length:
            self._console.file.write(self._cleared())
            self._console.file.flush()
            self._length = 0

    def _cleared(self) -> str:
        """Returns the codes that clear the line, also where a terminal that became narrower has wrapped it."""
        rows = max(0, self._length - 1) // max(1, self._console.width)
        return (f"\x1b[{rows}A" if rows else "") + CLEAR


def bar(share: float, width: int) -> str:
    """Returns a bar of up to `width` characters in steps of an eighth. Any share above 0 is visible."""
    eighths = max(round(share * width * 8), share > 0)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def line_chart(
    series: Sequence[Sequence[tuple[float, float]]], width: int, height: int, show: Callable[[float], str]
) -> Text:
    """Draws series of points (x, y), each with its own mark and colour. `show` formats a y value. Points that are not
    finite are skipped."""
    finite = [[(x, y) for x, y in points if math.isfinite(y)] for points in series]
    xs, ys = ([point[axis] for points in finite for point in points] for axis in (0, 1))
    if not xs:
        return Text("no finite values to draw")
    low, high = min(ys), max(ys)
    labels = [show(high), show((low + high) / 2), show(low)]
    margin = max(map(len, labels))
    columns, rows = max(10, width - margin - 2), max(3, height)
    cells: dict[tuple[int, int], tuple[str, str]] = {}

    def place(x: float, y: float) -> tuple[int, int]:
        """Returns the (row, column) of a point."""
        return (
            round((high - y) / ((high - low) or 1) * (rows - 1)),
            round((x - min(xs)) / ((max(xs) - min(xs)) or 1) * (columns - 1)),
        )

    for number, points in enumerate(finite):
        for (x, y), (next_x, next_y) in pairwise(points):
            width_between = place(next_x, next_y)[1] - place(x, y)[1]
            for part in range(1, width_between):
                share = part / width_between
                cells.setdefault(place(x + share * (next_x - x), y + share * (next_y - y)), ("·", mark(number)[1]))
    for number, points in enumerate(finite):
        cells |= {place(x, y): mark(number) for x, y in points}
    labelled = dict(zip((0, (rows - 1) // 2, rows - 1), labels))
    chart = Text(no_wrap=True)
    for row in range(rows):
        chart.append(f"{labelled.get(row, ''):>{margin}} ┤", "dim")
        for column in range(columns):
            chart.append(*cells.get((row, column), (" ", "")))
        chart.append("\n")
    ends = f"{min(xs):,.0f}", f"{max(xs):,.0f}"
    chart.append(" " * margin + f" └{'─' * columns}\n" + " " * (margin + 2), "dim")
    chart.append(f"{ends[0]}{'step':^{columns - len(ends[0]) - len(ends[1])}}{ends[1]}", "dim")
    return chart


def mark(number: int) -> tuple[str, str]:
    """Returns the mark and the colour of a series."""
    return MARKS[number % len(MARKS)], COLOURS[number % len(COLOURS)]
