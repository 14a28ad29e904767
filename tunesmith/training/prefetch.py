"""Prepares the data of each step while the previous step is computed."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from tunesmith.data.dataset import TokenStore
from tunesmith.data.packing import micro_batches, share_of
from tunesmith.data.row_order import Schedule
from tunesmith.training import distributed
from tunesmith.training.batch import Batch, collate


@dataclass(frozen=True)
class StepData:
    """`rows` are those of all processes; the rest is this one's. `units`: learned tokens or rows, as the method counts
    them."""

    rows: np.ndarray
    batches: list[Batch]
    units: int
    supervised_tokens: int
    tokens: int


def steps_ahead(make: Callable[[int], StepData], first: int, last: int) -> Iterator[StepData]:
    """make(first), …, make(last); a thread makes each while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, first)
        for step in range(first, last + 1):
            data = ahead.result()
            if step < last:
                ahead = pool.submit(make, step + 1)
            yield data


def step_data(
    step: int,
    schedule: Schedule,
    tokens: TokenStore,
    unit: str,
    micro_batch_tokens: int,
    shares: Sequence[float],
    packing: bool,
    device: torch.device,
) -> StepData:
    """The micro-batches of one step, of at most so many tokens each, on the device. `shares`: of the step's tokens, by
    process."""
    rows = schedule.step_rows(step)
    mine = share_of(rows, tokens.lengths, distributed.rank(), shares)
    micro = micro_batches(mine, tokens.sizes, micro_batch_tokens, packing)
    batches = [collate(tokens, m, packing) for m in micro]
    supervised = sum(b.supervised_tokens for b in batches)
    return StepData(
        rows,
        [b.to(device) for b in batches],
        supervised if unit == "token" else len(mine),
        supervised,
        sum(sum(b.lengths) for b in batches),
    )
