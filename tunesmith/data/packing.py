"""Rows into steps, steps into micro-batches.

A step learns from `batch` rows whatever the packing, so packed and unpacked training are the same optimisation.
Everything here is a function of (seed, epoch, step): a resumed run asks for the next step and gets it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """By row: `tokens` in all, how many `sequences`, and the tokens of the `longest` of them."""

    tokens: np.ndarray
    sequences: np.ndarray
    longest: np.ndarray

    @classmethod
    def single(cls, lengths: np.ndarray) -> "Sizes":
        """Returns the sizes of rows that have one sequence each."""
        return cls(lengths, np.ones_like(lengths), lengths)


def share_of(rows: np.ndarray, lengths: np.ndarray, rank: int, shares: Sequence[float]) -> np.ndarray:
    """Returns the rows of one process. They are dealt out longest first, each to the process that has the fewest tokens
    for its share with it, so that each has about its share of the tokens."""
    longest_first = rows[np.argsort(-lengths[rows], kind="stable")]
    if len(set(shares)) == 1:
        return longest_first[rank :: len(shares)]
    tokens, mine = np.zeros(len(shares)), []
    for place, row in enumerate(longest_first):
        chosen = int(np.argmin((tokens + lengths[row]) / np.maximum(shares, 1e-9)))
        tokens[chosen] += lengths[row]
        mine += [place] if chosen == rank else []
    return longest_first[mine]


def micro_batches(rows: np.ndarray, sizes: Sizes, capacity: int, packing: bool) -> list[np.ndarray]:
    """Splits rows into micro-batches.

    Packed, a micro-batch holds at most `capacity` tokens (best fit, longest row first). Unpacked, rows of like length
    are padded together so that sequences times longest is at most `capacity`. A larger row stands alone.
    """
    lengths = sizes.tokens if packing else sizes.longest
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    bins: list[list[int]] = []
    room: list[int] = []  # tokens packed, or sequences unpacked
    for row in ordered:
        needed = int(sizes.tokens[row] if packing else sizes.sequences[row])
        if packing:
            fitting = [b for b in range(len(bins)) if room[b] >= needed]
            chosen = min(fitting, key=room.__getitem__, default=None)
        else:
            last = len(bins) - 1
            chosen = last if bins and room[last] >= needed else None
        if chosen is None:
            bins.append([row])  # the first row of a micro-batch is its longest
            room.append((capacity if packing else capacity // int(sizes.longest[row])) - needed)
        else:
            bins[chosen].append(row)
            room[chosen] -= needed
    return [np.array(b) for b in bins]
