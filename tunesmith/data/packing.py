"""Rows into steps, steps into micro-batches.

A step learns from `batch` rows whatever the packing, so packed and unpacked training are the same optimisation.
Everything here is a function of (seed, epoch, step): a resumed run asks for the next step and gets it.
"""

import numpy as np


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
