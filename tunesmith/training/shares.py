"""The share of each step's tokens that each process gets, so that all finish at the same time.

Equal shares make unlike GPUs wait for the slowest. Measured shares are in proportion to the tokens a second that each
process computes. Which rows a step learns from never depends on the shares, nor does the weight of a token in its loss.
"""

from collections.abc import Sequence

from tunesmith.training import distributed
from tunesmith.training.checkpoint import State

WARM_UP = 2  # steps after the start that say little about the speed: kernels are loaded, memory is allocated
GAIN = 0.05  # shares change where a step would be so much shorter; sums are rounded in another order then
WEIGHT = 0.5  # of the last step in the mean speed
RECOVERY = 1.02  # a process without tokens counts as so much faster with each step, until it is tried again


class Shares:
    """Keeps `state.shares`: for each process its part of the tokens, which together are 1."""

    def __init__(self, state: State, processes: int, measured: bool):
        """`measured`: else the shares stay equal. A resumed run continues with its shares if it has as many
        processes."""
        self._state, self.measured = state, measured and processes > 1
        self._rates: list[float | None] = [None] * processes
        self._left = WARM_UP
        if not (self.measured and len(state.shares) == processes):
            state.shares = [1 / processes] * processes

    def change(self, tokens: int, seconds: float) -> bool:
        """Measures a step: how long this process computed its tokens, without waiting for others. Returns whether the
        shares have changed, which all processes decide alike."""
        return self.measured and self.follow(*zip(*distributed.gather((tokens, seconds))))

    def follow(self, tokens: Sequence[int], seconds: Sequence[float]) -> bool:
        """The same with the numbers of all processes."""
        if self._left:
            self._left -= 1
            return False
        for process, (count, took) in enumerate(zip(tokens, seconds)):
            rate = self._rates[process]
            if count:
                now = count / max(took, 1e-6)
                self._rates[process] = now if rate is None else WEIGHT * now + (1 - WEIGHT) * rate
            elif rate is not None:
                self._rates[process] = rate * RECOVERY
        known = [rate for rate in self._rates if rate is not None]
        if not known:
            return False
        rates = [rate or sum(known) / len(known) for rate in self._rates]
        slowest = max(share / rate for share, rate in zip(self._state.shares, rates))
        if slowest * sum(rates) <= 1 + GAIN:
            return False
        self._state.shares = [rate / sum(rates) for rate in rates]
        return True
