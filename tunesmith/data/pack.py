"""Rows into steps, steps into micro-batches.

A step learns from `batch` rows whatever the packing, so packed and unpacked training are the same optimisation.
Everything here is a function of (seed, epoch, step): a resumed run asks for the next step and gets it.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """Which rows each optimizer step learns from. `weights`: how often each row is seen per epoch."""

    weights: np.ndarray
    batch: int
    epochs: float
    seed: int
    max_steps: int | None = None

    @cached_property
    def rows_per_epoch(self) -> int:
        whole = np.floor(self.weights)
        return int(whole.sum() + round((self.weights - whole).sum()))

    @property
    def steps(self) -> int:
        steps = -(-round(self.rows_per_epoch * self.epochs) // self.batch)
        return max(1, min(steps, self.max_steps or steps))

    def epoch(self, number: int) -> np.ndarray:
        """Row numbers in the order of one epoch. A weight's fraction is drawn anew each epoch."""
        if number not in self._orders:
            for old in [n for n in self._orders if n < number - 1]:
                del self._orders[old]
            self._orders[number] = self._draw(number)
        return self._orders[number]

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        """Of the epochs last asked for: a step needs one, or two where one ends."""
        return {}

    def _draw(self, number: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, number])
        whole = np.floor(self.weights)
        # The draw keeps the count per epoch constant: the rows with the largest (fraction - uniform) win.
        fraction = self.weights - whole
        drawn = np.where(fraction > 0, random.random(len(fraction)) - fraction, np.inf)
        extra = np.argsort(drawn, kind="stable")[: round(fraction.sum())]
        copies = whole.astype(np.int64)
        copies[extra] += 1
        return random.permutation(np.repeat(np.arange(len(copies)), copies))

    def step_rows(self, step: int) -> np.ndarray:
        """Row numbers of step 1, 2, …; the last step may be short."""
        first, size = (step - 1) * self.batch, self.rows_per_epoch
        last = min(step * self.batch, max(round(size * self.epochs), 1))
        parts = []
        for number in range(first // size, -(-last // size)):
            start = number * size
            parts.append(self.epoch(number)[max(first - start, 0) : last - start])
        return np.concatenate(parts)


def share_of(rows: np.ndarray, lengths: np.ndarray, rank: int, world: int) -> np.ndarray:
    """The rows of one process: dealt out by length, so that all have about as many tokens."""
    longest_first = rows[np.argsort(-lengths[rows], kind="stable")]
    return longest_first[rank::world]


def micro_batches(rows: np.ndarray, lengths: np.ndarray, capacity: int, packing: bool) -> list[np.ndarray]:
    """Splits rows into micro-batches.

    Packed, a micro-batch holds at most `capacity` tokens (best fit, longest row first). Unpacked, rows of like length
    are padded together so that rows times longest is at most `capacity`. A row longer than that stands alone.
    """
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    bins: list[list[int]] = []
    room: list[int] = []
    for row in ordered:
        length = int(lengths[row])
        if packing:
            fitting = [b for b in range(len(bins)) if room[b] >= length]
            chosen = min(fitting, key=room.__getitem__, default=None)
        else:  # the first row of a bin is its longest
            last = len(bins) - 1
            fits = bins and (len(bins[last]) + 1) * int(lengths[bins[last][0]]) <= capacity
            chosen = last if fits else None
        if chosen is None:
            bins.append([row])
            room.append(capacity - length)
        else:
            bins[chosen].append(row)
            room[chosen] -= length
    return [np.array(b) for b in bins]
