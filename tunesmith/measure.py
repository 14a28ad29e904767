"""The largest forward and backward pass that fits in memory, found by measuring, in a process of its own."""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from tunesmith.errors import UserError
from tunesmith.plan.choose import Plan
from tunesmith.run import Run

SECONDS = 40  # after which no larger pass is begun
FIRST_TOKENS = 1024
USED_SHARE = 0.9  # of the memory that is free: fragments, and rows that are routed otherwise, need some
MULTIPLE = 8  # a length is a multiple of


@dataclass(frozen=True)
class Measured:
    """(tokens, peak bytes) of each pass, and the bytes there are."""

    points: list[tuple[int, int]]
    budget_bytes: int
    seconds: float

    @property
    def tokens(self) -> int:
        """The most that fit: by a parabola through the last three points, as attention may grow faster than tokens."""
        sizes, peaks = np.array(self.points[-3:], float).T
        if len(sizes) == 1:
            return int(sizes[0] * self.budget_bytes / peaks[0])
        by_square, slope, fixed = np.polyfit(sizes, peaks, 2) if len(sizes) == 3 else (0, *np.polyfit(sizes, peaks, 1))
        if by_square <= 0:
            slope, fixed = np.polyfit(sizes[-2:], peaks[-2:], 1)
            return int((self.budget_bytes - fixed) / slope) if slope > 0 else 2**31
        return int(max(np.roots([by_square, slope, fixed - self.budget_bytes]).real))


def fitted(run: Run, plan: Plan, base: Path, longest: int) -> tuple[Plan, Measured | None]:
    """The plan with what the recipe leaves to measuring; `longest`: tokens that the model has positions for.

    Raises UserError where nothing fits.
    """
    data, train = run.recipe.data, run.recipe.train
    if data.sequence_length != "max" and train.micro_batch != "auto":
        return plan, None
    if data.sequence_length == "max":
        most, row = longest, None
    else:
        most, row = max(1, train.batch // plan.processes) * plan.sequence_length, plan.sequence_length
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(measure, run.folder, plan, base, most, row).result()
    tokens = min(most, found.tokens) // MULTIPLE * MULTIPLE
    if tokens < (row or MULTIPLE):
        raise UserError(f"data.sequence_length: a row of {row or MULTIPLE} tokens does not fit in "
                        f"{found.budget_bytes / 1e9:.1f} GB; train an adapter (adapter.kind: lora), or a smaller model")
    why = f"{tokens:,} tokens fit in {found.budget_bytes / 1e9:.1f} GB, measured up to {found.points[-1][0]:,}"
    if row:
        return replace(plan, micro_batch_tokens=tokens, reasons=plan.reasons | {"micro_batch_tokens": why}), found
    micro = tokens if train.micro_batch in ("auto", None) else train.micro_batch * tokens
    return replace(plan, sequence_length=tokens, micro_batch_tokens=micro,
                   reasons=plan.reasons | {"sequence_length": why}), found


def measure(folder: Path, plan: Plan, base: Path, most: int, row: int | None) -> Measured:
    """Passes of ever more tokens, as one row or in rows of `row`, until the next would take too long or not fit."""
    import torch

    from tunesmith.training import parallel
    from tunesmith.training.ladder import is_out_of_memory
    from tunesmith.training.memory import free_bytes, peak_bytes, reset_peak
    from tunesmith.worker import build

    began, device = time.monotonic(), parallel.join(plan.device)
    torch.set_num_threads(plan.threads)
    trial = build(Run(folder), plan, base, device, log=lambda *_, **__: None)
    trial.model.train()
    reset_peak(device)
    sharing = 1 if device.type == "cuda" else plan.processes
    budget = int((peak_bytes(device) + free_bytes(device) / sharing) * USED_SHARE)
    points: list[tuple[int, int]] = []
    for tokens in _sizes(most, row):
        reset_peak(device)
        pass_began = time.monotonic()
        try:
            learn(trial, tokens, row, device)
        except RuntimeError as error:
            if not (points and is_out_of_memory(error)):
                raise
            budget = min(budget, points[-1][1])
            break
        points.append((tokens, peak_bytes(device)))
        now = time.monotonic()
        if now - began + 3 * (now - pass_began) > SECONDS or 2 * tokens > Measured(points, budget, 0).tokens:
            break
    return Measured(points, budget, time.monotonic() - began)


def learn(trial, tokens: int, row: int | None, device) -> None:
    """One step from random tokens, all of them supervised."""
    from tunesmith.training.batch import collate
    from tunesmith.training.loss import autocast, token_losses

    length = row or tokens
    ids = np.random.default_rng(0).integers(0, trial.model.config.get_text_config().vocab_size, length)
    rows = [(ids, np.ones(length, bool))] * (tokens // length)
    batch = collate(rows, np.arange(len(rows)), trial.plan.packing).to(device)
    with autocast(trial.plan):
        total, _, _ = token_losses(trial.model, batch, trial.head)
    (total / len(ids)).backward()
    trial.optimizer.step()
    trial.optimizer.zero_grad(set_to_none=True)


def _sizes(most: int, row: int | None) -> Iterator[int]:
    tokens = row or min(FIRST_TOKENS, most)
    while tokens <= most:
        yield tokens
        tokens *= 2
