"""The largest forward and backward pass that fits in memory, found by measuring, in a process of its own.

Passes grow until the next one would not fit. Where the planner has traced how memory grows, a pass that should almost
fill it comes first.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.errors import CHILD_DIED, UserError
from tunesmith.plan import Plan
from tunesmith.planner.decide import layers_for
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.units import size

SECONDS = 40  # after which no larger pass is begun
FIRST_TOKENS = 1024
USED_SHARE = 0.9  # of the memory that is free: fragments, and rows that are routed otherwise, need some
START_SHARE = 0.9  # of the tokens that should fit are tried: a pass that does not fit says nothing, and may kill
FAR = 1.5  # times the largest pass that was measured: then a smaller one shows how memory grows
MULTIPLE = 8  # a length is a multiple of
UNKNOWN_POSITIONS = 2**17  # of a model that does not say, such as one without position embeddings


Shape = tuple[int, int]  # rows of a pass, and tokens of each row
Shapes = list[Shape]


@dataclass(frozen=True)
class Measured:
    """Passes that were measured, or traced."""

    points: list[tuple[int, int]]
    """(tokens, peak bytes): of none, between two passes, and of each pass, ascending."""
    budget_bytes: int
    """The bytes that there are."""
    seconds: float = 0.0
    flops: list[int] = field(default_factory=list)
    """The arithmetic of each point, if it is traced."""

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


Measure = Callable[[Plan, Shapes], Measured]


def is_measured(recipe: Recipe) -> bool:
    """Whether the recipe leaves the tokens of a pass to measuring."""
    return recipe.data.sequence_length == "max" or recipe.train.micro_batch == "auto"


def fitted(recipe: Recipe, plan: Plan, longest: int, measure: Measure) -> tuple[Plan, Measured | None]:
    """The plan with what the recipe leaves to measuring; `longest`: tokens that the model has positions for. `measure`
    measures passes of a plan, of some of these shapes or others.

    Layers are as they were measured. Where what fits asks for others, these are measured too, and what fits more is
    taken. Raises UserError where nothing fits.
    """
    if not is_measured(recipe):
        return plan, None
    asked, train, (plan, found) = plan, recipe.train, _largest(recipe, plan, longest, measure)
    if not plan.micro_batch_tokens and train.gradient_checkpointing == "auto" and plan.gradient_checkpointing == "off":
        plan, found = _largest(recipe, replace(asked, gradient_checkpointing="on"), longest, measure)
        reasons, others = {"gradient_checkpointing": "otherwise not one row fits"}, []
    else:
        layers, reasons = layers_for(train, plan.sequence_length, plan.micro_batch_tokens)
        others = [name for name, value in layers.items() if value != getattr(plan, name)]
    if others:
        second, found_second = _largest(recipe, replace(plan, **layers), longest, measure)
        if second.micro_batch_tokens >= plan.micro_batch_tokens:
            plan, found = second, found_second
        else:
            why = f"otherwise only {second.micro_batch_tokens:,} tokens fit, not {plan.micro_batch_tokens:,}"
            reasons |= dict.fromkeys(others, why)
    if not plan.micro_batch_tokens:
        raise UserError(
            f"data.sequence_length: no room for {_rows(*_shapes(recipe, plan, longest)[0])} in "
            f"{size(found.budget_bytes)}; train an adapter (adapter.kind: lora), or a smaller model"
        )
    return replace(plan, reasons=plan.reasons | reasons), found


def _largest(recipe: Recipe, plan: Plan, longest: int, measure: Measure) -> tuple[Plan, Measured]:
    """The plan with as long or as many rows as fit, 0 tokens if none."""
    shapes = _shapes(recipe, plan, longest)
    found = measure(plan, shapes)
    why = f"as fits in {size(found.budget_bytes)}, measured up to {max(found.points, default=(0,))[0]:,} tokens"
    most = min(found.tokens, plan.walk_tokens or found.tokens)
    if recipe.data.sequence_length == "max":
        rows = shapes[0][0]
        length = max(0, min(longest, most // rows) // MULTIPLE * MULTIPLE)
        return replace(
            plan,
            sequence_length=length,
            micro_batch_tokens=rows * length,
            reasons=plan.reasons | {"sequence_length": f"{_rows(rows, length)} in a forward pass, {why}"},
        ), found
    length = plan.sequence_length
    tokens = min(_most_rows(recipe, plan) * length, most) // MULTIPLE * MULTIPLE
    return replace(
        plan,
        micro_batch_tokens=tokens if tokens >= length else 0,
        reasons=plan.reasons | {"micro_batch_tokens": f"{tokens:,} tokens in a forward pass, {why}"},
    ), found


def _shapes(recipe: Recipe, plan: Plan, longest: int) -> Shapes:
    """(rows, tokens of each) of the passes to try: ever longer rows, or ever more of them."""
    if recipe.data.sequence_length != "max":
        return [(rows, plan.sequence_length) for rows in _doubled(1, _most_rows(recipe, plan))]
    asked = recipe.train.micro_batch
    rows = asked if isinstance(asked, int) else 1
    return [(rows, length) for length in _doubled(min(longest, max(MULTIPLE, FIRST_TOKENS // rows)), longest)]


def _most_rows(recipe: Recipe, plan: Plan) -> int:
    return max(1, recipe.train.batch // plan.processes)


def _doubled(first: int, most: int) -> list[int]:
    return [first * 2**n for n in range((most // first).bit_length())]


def _rows(rows: int, length: int) -> str:
    return f"{rows} row{'s' * (rows > 1)} of {length:,} tokens"


def layers_key(plan: Plan) -> str:
    """Names the transforms of the layers, on which the memory of a pass depends."""
    return f"{plan.gradient_checkpointing} {plan.tiled_mlp} {plan.activation_offload}"


def measure_apart(folder: Path, base: Path, traced: Mapping[str, Measured]) -> Measure:
    """Returns a function that measures on this machine's device. `traced`: passes by `layers_key`."""

    def measure_plan(plan: Plan, shapes: Shapes) -> Measured:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                return pool.submit(measure, folder, plan, base, shapes, traced.get(layers_key(plan))).result()
            except BrokenProcessPool:
                raise UserError(
                    f"what fits cannot be measured: {CHILD_DIED}; or give data.sequence_length and "
                    "train.micro_batch as numbers"
                ) from None

    return measure_plan


def measure(folder: Path, plan: Plan, base: Path, shapes: Shapes, traced: Measured | None = None) -> Measured:
    """Measures passes on the device, in this process. For the arguments see `measure_apart` and `climb`."""
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

    def peak_of(shape: Shape | None) -> int:
        reset_peak(device)
        if shape:
            learn(trial, *shape, device)
        return peak_bytes(device)

    found = climb(shapes, peak_of, budget, is_out_of_memory, traced)
    return replace(found, seconds=time.monotonic() - started)


def climb(
    shapes: Shapes,
    peak_of: Callable[[Shape | None], int],
    budget: int,
    is_out_of_memory: Callable[[RuntimeError], bool],
    traced: Measured | None = None,
) -> Measured:
    """Measures passes of ever larger shapes, until the next would take too long or not fit. With a trace, the second
    one should almost fill the memory, and is usually the last. `peak_of` returns the peak bytes of a pass, and for None
    those between two passes."""
    points: list[tuple[int, int]] = []
    left, start, began = shapes, None, time.monotonic()  # without loading, which may take longer than SECONDS
    while left:
        (shape, *left), pass_began = left, time.monotonic()
        try:
            peak = peak_of(shape)
            if traced and not points:
                pass_began = time.monotonic()
                peak = peak_of(shape)  # the first time the optimizer has no states
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            is_start = shape == start and len(points) == 2
            left = [one for one in shapes[1:] if prod(one) < prod(shape)] if is_start else []
            if points and not left:
                budget = min(budget, points[-1][1])
            continue
        now = time.monotonic()
        if points:
            points = sorted([*points, (prod(shape), peak)])
        else:  # what stays after a step, the optimizer's moments among it
            points = [(0, peak_of(None)), (prod(shape), peak)]
            start = traced and _start(shapes, traced, budget - points[0][1], SECONDS - (now - began), now - pass_began)
            if start:
                left = [start, *(one for one in shapes if prod(one) >= 2 * prod(start))]
                continue
        most = Measured(points, budget).tokens
        if now - began + 3 * (now - pass_began) > SECONDS or 2 * points[-1][0] > most:
            is_far = shape == start and most > FAR * prod(start)
            left = [one for one in shapes[1:] if 2 * prod(one) <= prod(shape)][-1:] if is_far else []
    return Measured(points, budget)


def _start(shapes: Shapes, traced: Measured, free_bytes: int, seconds: float, first_seconds: float) -> Shape | None:
    """A shape that should almost fill these bytes beside what stays between two passes, by the trace, and that takes no
    more than so many seconds. None if it is less than twice the first. `first_seconds`: that the first took."""
    (rows, length), rest_bytes = shapes[0], traced.points[0][1]
    should_fit = replace(traced, budget_bytes=rest_bytes + free_bytes).tokens
    tokens = min(int(START_SHARE * should_fit), prod(shapes[-1]))
    is_longer = rows == shapes[-1][0]
    fits = (rows, tokens // rows // MULTIPLE * MULTIPLE) if is_longer else (tokens // length, length)
    sizes = [size for size, _ in traced.points]

    def flops(shape: Shape) -> float:
        """In proportion beyond the largest traced pass."""
        return float(np.interp(prod(shape), sizes, traced.flops)) * max(1.0, prod(shape) / sizes[-1])

    in_time = flops(shapes[0]) * seconds / first_seconds
    starts = (shape for shape in (fits, *reversed(shapes)) if prod(shape) <= prod(fits) and flops(shape) <= in_time)
    start = next(starts, shapes[0])
    return start if prod(start) >= 2 * prod(shapes[0]) else None


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
