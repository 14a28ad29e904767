"""The curves of a run: its steps as columns, thinned so that a picture of them is right at any zoom.

Each pixel keeps the lowest and the highest value of its steps, so no spike is lost, and each value that is not a number
stays one. Smoothing is computed from all steps before they are thinned, so it does not depend on the zoom.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from tunesmith.run import ENOUGH_STEPS, FIRST_STEPS
from tunesmith.studio.follow import read_from

X = Literal["step", "tokens", "time", "energy"]
# The fields of a `step` event that are drawn, beside a method's metrics. waiting_share: of the step's time, for data.
FIELDS = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes", "watts", "waiting_share")
BLOCK_EXPONENT = 200.0  # e to this power is far from the largest float
BIAS_EXPONENT = 38.0  # e to minus this power does not change 1
NAN = float("nan")
MOST_RUNS = 8  # whose columns stay in memory: about 90 MB for a million steps, and 56 MB for the smoothed ones


class Curve(BaseModel):
    """One curve: x and y of its points. A y of None is not a number."""

    name: str
    x: list[float]
    y: list[float | None]
    smooth: list[float | None] = []
    """The smoothed values at the same x."""
    low: list[float | None] = []
    """The lower end of the 95 % interval, for held-out loss."""
    high: list[float | None] = []
    count: int
    """The values in this range, before thinning."""


class Curves(BaseModel):
    """Curves of a run."""

    x: X
    curves: list[Curve]
    offset: int
    """Events from this offset in bytes on are not in the curves."""
    step: int
    """The last step."""
    resumed: list[float]
    """The x at which the run was resumed."""


class History:
    """The steps of one run as columns, and its other events. It grows with the run's file. Requests run in several
    threads, so each uses it while it holds `lock`."""

    def __init__(self, file: Path):
        self._file, self.offset = file, 0
        self.lock = Lock()
        self._smoothing = 0.0
        self._clear()

    def _clear(self) -> None:
        self.axes: dict[str, array] = {name: array("d") for name in ("step", "tokens", "time", "energy")}
        self.columns: dict[str, array] = {name: array("d") for name in FIELDS}
        self.others: list[dict[str, Any]] = []
        self.resumed: list[int] = []
        self._smooth: dict[
            str, np.ndarray
        ] = {}  # columns smoothed by `_smoothing`, so that a zoom need not do it again

    def update(self) -> None:
        """Reads the events that were written since."""
        while True:
            events, offset = read_from(self._file, self.offset)
            if offset < self.offset:  # another file
                self._clear()
            if offset == self.offset:
                return
            self.offset = offset
            for event in events:
                self._add(event)

    def _add(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            self._add_step(event)
            return
        if kind == "resume":
            self._forget_after(event["step"])
            self.resumed.append(event["step"])
        self.others.append(event)

    def _add_step(self, event: dict[str, Any]) -> None:
        seconds, joules = event.get("seconds") or 0.0, event.get("joules")
        axes, count = self.axes, len(self.axes["step"])
        for name, value in (("tokens", event.get("tokens") or 0), ("time", seconds), ("energy", joules or 0.0)):
            axis = axes[name]
            axis.append((axis[-1] if count else 0.0) + value)
        axes["step"].append(event["step"])
        if seconds:
            event["watts"] = joules / seconds if joules is not None else None
            event["waiting_share"] = event["waiting_seconds"] / seconds if "waiting_seconds" in event else None
        for metric, value in (event.get("metrics") or {}).items():
            event[name := f"metrics.{metric}"] = value
            if name not in self.columns:
                self.columns[name] = array("d", [NAN] * count)
        for name, column in self.columns.items():
            value = event.get(name)
            column.append(NAN if value is None else value)

    def _forget_after(self, step: int) -> None:
        """Removes the steps that a resume undid."""
        keep = int(np.searchsorted(np.frombuffer(self.axes["step"]) if self.axes["step"] else [], step, "right"))
        for column in (*self.axes.values(), *self.columns.values()):
            del column[keep:]
        self.others = [event for event in self.others if event.get("step", 0) <= step]
        self.resumed = [one for one in self.resumed if one <= step]
        self._smooth = {}

    def settled_speed(self) -> float | None:
        """As `run.settled_speed`."""
        tokens, time = self.axes["tokens"], self.axes["time"]
        if len(time) < FIRST_STEPS + ENOUGH_STEPS:
            return None
        return (tokens[-1] - tokens[FIRST_STEPS - 1]) / (time[-1] - time[FIRST_STEPS - 1])

    def peak_bytes(self) -> float | None:
        """The most memory that a step took."""
        values = np.array(self.columns["memory_bytes"])
        return float(np.nanmax(values)) if np.isfinite(values).any() else None

    def curves(self, x: X, pixels: int, low: float | None, high: float | None, smoothing: float) -> Curves:
        """Returns all curves that have a value, thinned to two points a pixel between `low` and `high` of x."""
        # Copies, since an array whose memory is seen from outside cannot grow.
        axis, steps = np.array(self.axes[x]), np.array(self.axes["step"])
        first = int(np.searchsorted(axis, low)) if low is not None else 0
        last = int(np.searchsorted(axis, high, "right")) if high is not None else len(axis)
        found = []
        for name, column in self.columns.items():
            values = np.array(column)
            if not np.isfinite(values).any() and not (name == "loss" and len(values)):
                continue
            smooth = self._smoothed(name, values, smoothing) if smoothing else None
            kept = first + thinned(values[first:last], pixels)
            found.append(
                Curve(
                    name=name,
                    x=axis[kept].tolist(),
                    y=_numbers(values[kept]),
                    smooth=[] if smooth is None else _numbers(smooth[kept]),
                    count=last - first,
                )
            )
        if evals := [event for event in self.others if event["event"] == "eval"]:
            found.append(_held_out(evals, axis, steps))
        at = np.searchsorted(steps, self.resumed, "right") - 1
        return Curves(
            x=x,
            curves=found,
            offset=self.offset,
            step=int(steps[-1]) if len(steps) else 0,
            resumed=[float(axis[i]) if i >= 0 else 0.0 for i in at],
        )

    def _smoothed(self, name: str, values: np.ndarray, weight: float) -> np.ndarray:
        if weight != self._smoothing:
            self._smoothing, self._smooth = weight, {}
        kept = self._smooth.get(name)
        if kept is None or len(kept) != len(values):
            kept = self._smooth[name] = smoothed(values, weight)
        return kept


class Histories:
    """The columns of the runs that are looked at."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Path, History] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def of(self, file: Path) -> Iterator[History]:
        """The columns of a run's events, up to date, for this thread alone until the block ends."""
        with self._lock:
            history = self._kept.pop(file, None) or History(file)
            self._kept[file] = history
            while len(self._kept) > MOST_RUNS:
                self._kept.popitem(last=False)
        with history.lock:
            history.update()
            yield history


def thinned(values: np.ndarray, pixels: int) -> np.ndarray:
    """Returns the positions to draw: all if they are few, else the lowest, the highest and one that is not a number of
    each of so many equal parts, and the ends."""
    count = len(values)
    if count <= 2 * pixels:
        return np.arange(count)
    edges = np.linspace(0, count, pixels + 1).astype(int)
    kept = {0, count - 1}
    broken = ~np.isfinite(values)
    lowest, highest = np.where(broken, np.inf, values), np.where(broken, -np.inf, values)
    for start, end in pairwise(edges):
        kept.add(start + int(lowest[start:end].argmin()))
        kept.add(start + int(highest[start:end].argmax()))
        if broken[start:end].any():
            kept.add(start + int(broken[start:end].argmax()))
    return np.array(sorted(kept))


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """Returns the exponential moving average without the bias of its start (Kingma and Ba 2015, section 3). Values that
    are not numbers do not enter it. `weight`: of the past, between 0 and 1."""
    is_number = np.isfinite(values)
    numbers = values[is_number]
    # In a block the average is a cumulative sum of values over powers of the weight, which must not overflow.
    block = max(1, min(len(numbers), int(BLOCK_EXPONENT / -np.log(weight))))
    powers = weight ** np.arange(1, block + 1)
    blocks = np.zeros((-(-len(numbers) // block), block))
    blocks.reshape(-1)[: len(numbers)] = numbers
    sums = np.cumsum((1 - weight) * blocks / powers, axis=1)
    before = np.zeros((len(blocks), 1))  # the average before each block
    for at in range(1, len(blocks)):
        before[at] = powers[-1] * (before[at - 1] + sums[at - 1, -1])
    averages = (powers * (before + sums)).ravel()[: len(numbers)]
    biased = int(BIAS_EXPONENT / -np.log(weight)) + 1  # the others have no bias that a float can hold
    averages[:biased] /= 1 - weight ** np.arange(1, len(averages[:biased]) + 1)
    seen = np.cumsum(is_number) - 1  # the number that each value has, or the last one before it
    return np.where(seen >= 0, np.append(averages, np.nan)[seen], np.nan)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]


def _held_out(evals: list[dict[str, Any]], axis: np.ndarray, steps: np.ndarray) -> Curve:
    at = np.searchsorted(steps, [event["step"] for event in evals], "right") - 1
    return Curve(
        name="held_out_loss",
        x=[float(axis[i]) if i >= 0 else 0.0 for i in at],
        y=[event["loss"] for event in evals],
        low=[event.get("low") for event in evals],
        high=[event.get("high") for event in evals],
        count=len(evals),
    )
