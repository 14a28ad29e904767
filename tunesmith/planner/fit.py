"""The largest forward and backward pass that fits in memory, found by measuring, in a process of its own."""

import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import CHILD_DIED, UserError
from tunesmith.plan import Plan
from tunesmith.planner.decide import layers_for
from tunesmith.run import Run
from tunesmith.units import size

SECONDS = 40  # after which no larger pass is begun
FIRST_TOKENS = 1024
USED_SHARE = 0.9  # of the memory that is free: fragments, and rows that are routed otherwise, need some
MULTIPLE = 8  # a length is a multiple of


@dataclass(frozen=True)
class Measured:
    """(tokens, peak bytes): of none, between two passes, and of each pass; and the bytes there are."""

    points: list[tuple[int, int]]
    budget_bytes: int
    seconds: float

    @property
    def tokens(self) -> int:
        """The most that fit: by a parabola through the last three points, as attention may grow faster than tokens."""
        if not self.points:
            return 0
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

    Layers are as they were measured. Where what fits asks for others, these are measured too, and what fits more is
    taken. Raises UserError where nothing fits.
    """
    data, train = run.recipe.data, run.recipe.train
    if data.sequence_length != "max" and train.micro_batch != "auto":
        return plan, None
    asked, (plan, found) = plan, _largest(run, plan, base, longest)
    if not plan.micro_batch_tokens and train.gradient_checkpointing == "auto" and plan.gradient_checkpointing == "off":
        plan, found = _largest(run, replace(asked, gradient_checkpointing="on"), base, longest)
        reasons, others = {"gradient_checkpointing": "otherwise not one row fits"}, []
    else:
        layers, reasons = layers_for(train, plan.sequence_length, plan.micro_batch_tokens)
        others = [name for name, value in layers.items() if value != getattr(plan, name)]
    if others:
        second, found_second = _largest(run, replace(plan, **layers), base, longest)
        if second.micro_batch_tokens >= plan.micro_batch_tokens:
            plan, found = second, found_second
        else:
            why = f"otherwise only {second.micro_batch_tokens:,} tokens fit, not {plan.micro_batch_tokens:,}"
            reasons |= dict.fromkeys(others, why)
    if not plan.micro_batch_tokens:
        raise UserError(
            f"data.sequence_length: no room for {_rows(*_shapes(run, plan, longest)[0])} in "
            f"{size(found.budget_bytes)}; train an adapter (adapter.kind: lora), or a smaller model"
        )
    return replace(plan, reasons=plan.reasons | reasons), found


def _largest(run: Run, plan: Plan, base: Path, longest: int) -> tuple[Plan, Measured]:
    """The plan with as long or as many rows as fit, 0 tokens if none."""
    shapes = _shapes(run, plan, longest)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            found = pool.submit(measure, run.folder, plan, base, shapes).result()
        except BrokenProcessPool:
            raise UserError(
                f"what fits cannot be measured: {CHILD_DIED}; or give data.sequence_length and "
                "train.micro_batch as numbers"
            ) from None
    why = f"as fits in {size(found.budget_bytes)}, measured up to {max(found.points, default=(0,))[0]:,} tokens"
    most = min(found.tokens, plan.walk_tokens or found.tokens)
    if run.recipe.data.sequence_length == "max":
        rows = shapes[0][0]
        length = max(0, min(longest, most // rows) // MULTIPLE * MULTIPLE)
        return replace(
            plan,
            sequence_length=length,
            micro_batch_tokens=rows * length,
            reasons=plan.reasons | {"sequence_length": f"{_rows(rows, length)} in a forward pass, {why}"},
        ), found
    length = plan.sequence_length
    tokens = min(_most_rows(run, plan) * length, most) // MULTIPLE * MULTIPLE
    return replace(
        plan,
        micro_batch_tokens=tokens if tokens >= length else 0,
        reasons=plan.reasons | {"micro_batch_tokens": f"{tokens:,} tokens in a forward pass, {why}"},
    ), found


def _shapes(run: Run, plan: Plan, longest: int) -> list[tuple[int, int]]:
    """(rows, tokens of each) of the passes to try: ever longer rows, or ever more of them."""
    if run.recipe.data.sequence_length != "max":
        return [(rows, plan.sequence_length) for rows in _doubled(1, _most_rows(run, plan))]
    asked = run.recipe.train.micro_batch
    rows = asked if isinstance(asked, int) else 1
    return [(rows, length) for length in _doubled(min(longest, max(MULTIPLE, FIRST_TOKENS // rows)), longest)]


def _most_rows(run: Run, plan: Plan) -> int:
    return max(1, run.recipe.train.batch // plan.processes)


def _doubled(first: int, most: int) -> list[int]:
    return [first * 2**n for n in range((most // first).bit_length())]


def _rows(rows: int, length: int) -> str:
    return f"{rows} row{'s' * (rows > 1)} of {length:,} tokens"


def measure(folder: Path, plan: Plan, base: Path, shapes: list[tuple[int, int]]) -> Measured:
    """Passes of (rows, tokens of each), from small to large, until the next would take too long or not fit."""
    import torch

    from tunesmith.model.memory import free_bytes, is_out_of_memory, peak_bytes, reset_peak
    from tunesmith.training import distributed
    from tunesmith.training.build import build

    started, device = time.monotonic(), distributed.join(plan.device)
    torch.set_num_threads(plan.threads)
    there = free_bytes(device)
    try:
        trial = build(Run(folder), plan, base, device, log=lambda *_, **__: None)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return Measured([], int(there * USED_SHARE), time.monotonic() - started)
    trial.model.train()
    reset_peak(device)
    sharing = 1 if device.type == "cuda" else plan.processes
    budget = int((peak_bytes(device) + free_bytes(device) / sharing) * USED_SHARE)
    points: list[tuple[int, int]] = []
    began = time.monotonic()  # a second clock, because loading a large model may take longer than SECONDS
    for rows, length in shapes:
        tokens = rows * length
        reset_peak(device)
        pass_began = time.monotonic()
        try:
            learn(trial, rows, length, device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            budget = min(budget, points[-1][1]) if points else budget
            break
        points.append((tokens, peak_bytes(device)))
        if not points[1:]:  # what stays after a step, the optimizer's moments among it
            reset_peak(device)
            points.insert(0, (0, peak_bytes(device)))
        now = time.monotonic()
        if now - began + 3 * (now - pass_began) > SECONDS or 2 * tokens > Measured(points, budget, 0).tokens:
            break
    return Measured(points, budget, time.monotonic() - started)


def learn(trial: Any, rows: int, length: int, device: Any) -> None:
    """One step from random tokens, all of them supervised."""
    import torch

    from tunesmith.training.batch import Batch, collate
    from tunesmith.training.loss import autocast, total_loss
    from tunesmith.training.walk import backward

    ids = np.random.default_rng(0).integers(0, trial.model.config.get_text_config().vocab_size, length)
    batch = collate([(ids, np.ones(length, bool))] * rows, np.arange(rows), trial.plan.packing).to(device)

    def loss(batch: Batch) -> torch.Tensor:
        with autocast(trial.plan):
            return total_loss(trial.model, batch, trial.head) / length

    backward(trial.walk, [batch], loss, router_loss=lambda batch: 0.0, seed=lambda batch: None)
    trial.optimizer.step()
    trial.optimizer.zero_grad()
    if device.type == "cuda":  # it is timed
        torch.cuda.synchronize(device)
