"""The order of the rows: the rows of each optimizer step."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """Assigns rows to optimizer steps. `weights`: how often each row is seen per epoch."""

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
        """Returns the row numbers (int64) of one epoch, in order. Fractions of weights are drawn for each epoch."""
        if number not in self._orders:
            for old in [n for n in self._orders if n < number - 1]:
                del self._orders[old]
            self._orders[number] = self._draw(number)
        return self._orders[number]

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        """The orders of the epochs used last: a step needs one, or two if an epoch ends in it."""
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
