"""Line charts as inline SVG, without script. They stretch with the page, while text and strokes keep their size.

The outer SVG has no viewBox. It places ticks in percent, and their text in the page's margin. The lines are in an inner
SVG, 1000 units wide, that is stretched without scaling the strokes. Colours come from the page's CSS by class, for
light, dark and print.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

Point = tuple[float, float]

WIDTH = 1000
FEW = 12  # a line of at most this many points also gets dots

FIGURE = Markup('<figure class="chart"><figcaption><b>{}</b>{}</figcaption>{}</figure>')
LEGEND = Markup('<span class="key {}">{}</span>')
PLOT = Markup(
    '<div class="plot"><svg width="100%" height="{0}" overflow="visible" role="img" aria-label="{1}">{2}'
    '<svg width="100%" height="{0}" viewBox="0 0 {3} {0}" preserveAspectRatio="none" overflow="visible">{4}</svg>'
    "</svg></div>"
)
Y_TICK = Markup(
    '<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/><text class="y" x="-9" y="{0:.1f}" '
    'dy=".32em">{1}</text>'
)
X_TICK = Markup('<text class="x" x="{:.2f}%" y="{}">{}</text>')
LINE = Markup('<path class="line {}" d="{}"/>')
DOTS = Markup('<path class="dots {}" d="{}"/>')
HIT = Markup('<rect class="hit" x="{:.1f}" y="0" width="{:.1f}" height="{}"><title>{}</title></rect>')


@dataclass(frozen=True)
class Series:
    """Points (x, y) in order of x. A y that is not finite leaves a gap. `style` is a CSS class."""

    name: str
    points: list[Point]
    style: str


@dataclass(frozen=True)
class Axes:
    """Maps values to the plot: x to 0..WIDTH, y to height..0."""

    x_high: float
    y_low: float
    y_high: float
    height: int

    def x(self, value: float) -> float:
        return WIDTH * value / self.x_high

    def y(self, value: float) -> float:
        return self.height * (self.y_high - value) / (self.y_high - self.y_low)


def line_chart(
    title: str, series: list[Series], show: Callable[[float], str], height: int = 150, from_zero: bool = True
) -> Markup:
    """Returns a figure of `series` over training steps. `show` formats a y value; `title` names the y axis and its
    unit."""
    axes, y_ticks = _axes(series, height, from_zero)
    legend = Markup().join(LEGEND.format(s.style, s.name) for s in series) if len(series) > 1 else ""
    ticks_drawn = Markup().join([*_y_ticks(axes, y_ticks, show), *_x_ticks(axes)])
    lines_drawn = Markup().join([*_lines(axes, series), *_hits(axes, series, show)])
    return FIGURE.format(title, legend, PLOT.format(height, f"{title} over steps", ticks_drawn, WIDTH, lines_drawn))


def thin(points: list[Point], most: int = 400) -> tuple[list[Point], int]:
    """Returns at most `most` points, each the last x and the mean y of a group of consecutive points, and the group
    size."""
    size = max(1, math.ceil(len(points) / most))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups], size


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Returns about `about` round, evenly spaced numbers that enclose low..high."""
    span = max(high - low, abs(high) / 1000)
    rough = (span if span > 1e-12 else 1) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    step = max(1, math.ceil(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def _axes(series: list[Series], height: int, from_zero: bool) -> tuple[Axes, list[float]]:
    values = [y for s in series for _, y in s.points if math.isfinite(y)] or [0.0, 1.0]
    y_ticks = ticks(min(0.0, *values) if from_zero else min(values), max(values), max(3, height // 45))
    x_high = max((x for s in series for x, _ in s.points), default=1)
    return Axes(max(1, x_high), y_ticks[0], y_ticks[-1], height), y_ticks


def _y_ticks(axes: Axes, values: list[float], show: Callable[[float], str]) -> Iterator[Markup]:
    return (Y_TICK.format(axes.y(value), show(value)) for value in values)


def _x_ticks(axes: Axes) -> Iterator[Markup]:
    """Yields the labels of the x axis; the first is "step 0"."""
    for value in ticks(0, axes.x_high, 4, whole=True):
        if value <= axes.x_high:
            text = f"{value:,.0f}" if value else "step 0"
            yield X_TICK.format(axes.x(value) / WIDTH * 100, axes.height + 20, text)


def _lines(axes: Axes, series: list[Series]) -> Iterator[Markup]:
    for s in series:
        pen, line = "M", []
        for x, y in s.points:
            if math.isfinite(y):
                line.append(f"{pen}{axes.x(x):.1f} {axes.y(y):.1f}")
            pen = "L" if math.isfinite(y) else "M"
        yield LINE.format(s.style, "".join(line))
        if len(s.points) <= FEW:  # strokes of length 0 with round ends stay round when stretched
            yield DOTS.format(
                s.style, "".join(f"M{axes.x(x):.1f} {axes.y(y):.1f}h.01" for x, y in s.points if math.isfinite(y))
            )


def _hits(axes: Axes, series: list[Series], show: Callable[[float], str]) -> Iterator[Markup]:
    """Yields one invisible column for each step that has a point, with a tooltip that shows its values."""
    at: dict[float, list[str]] = {}
    for s in series:
        for x, y in s.points:
            at.setdefault(x, []).append(f"{s.name}: {show(y)}" if math.isfinite(y) else f"{s.name}: not finite")
    xs = sorted(at)
    middles = [(a + b) / 2 for a, b in pairwise(xs)]
    for x, left, right in zip(xs, [0, *middles], [*middles, axes.x_high]):
        title = "\n".join([f"step {x:,.0f}", *at[x]])
        yield HIT.format(axes.x(left), axes.x(right) - axes.x(left), axes.height, title)
