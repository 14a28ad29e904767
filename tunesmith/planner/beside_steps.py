"""The time of evaluation, answers, checkpoints, loading and saving, beside the training steps.

How often follows from the recipe and the number of steps, as in training/step.py and finetune/worker.py. How long
follows from traced work (beside_trace.py) and the speeds of a machine. Answers count as long as they may be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.planner.cost import Speed, Work, forward_seconds
from tunesmith.planner.rates import DiskRates, HostRates, Rates
from tunesmith.planner.rows import Training
from tunesmith.recipe import Recipe

EVALUATING, ANSWERING = "evaluating", "answering"  # stages beside those of a step
TRIAL_PASSES = 4  # with which inference chooses its way to compute, whenever prompts are answered


@dataclass(frozen=True)
class Asked:
    """The rows that one process evaluates and answers."""

    row_tokens: int
    """Mean length of a row."""
    prompts: int
    """Prompts that are answered at a time; 0: none."""
    new_tokens: int
    """The most of an answer."""


@dataclass(frozen=True)
class Beside:
    """The needs of one process beside training steps."""

    stages: dict[str, dict[str, int]]
    """Bytes by part at the peaks of evaluation and of answering, beside weights and the optimizer's states."""
    pass_tokens: int
    pass_work: Work
    """The work of a forward pass over so many tokens."""
    token_work: Work
    """The work of a pass over a token of each of the answers that are computed together, without reading weights."""
    token_read_bytes: int
    """The weights that this pass reads."""
    together: int
    checkpoint_bytes: int
    result_bytes: int
    base_bytes: int
    """The whole model, in the precision of the base."""


@dataclass(frozen=True)
class Device:
    """A device beside training steps."""

    beside: Beside
    rates: Rates
    share: float
    """The part of the rows that it evaluates."""
    layers: int
    away_bytes: int
    """Weights that come from host memory for each forward pass."""
    checkpoint_is_here: bool
    """Whether weights that train are in the device's own memory."""


@dataclass(frozen=True)
class BesideSpeed:
    """How fast a run does what is beside its steps. None is unknown."""

    tokens_per_second: float
    """The rate of an evaluation, on all devices."""
    token_seconds: float
    """To compute a token of each of the answers that are computed together."""
    together: int
    """On all devices."""
    copy_seconds: float
    """To copy a checkpoint to memory, while training waits."""
    write_seconds: float | None
    """To write it from there."""
    load_seconds: float | None
    """To read the base."""
    save_seconds: float | None
    """To write the result."""


def beside_speed(devices: Sequence[Device], host: HostRates, disk: DiskRates, base_bytes: int) -> BesideSpeed:
    """How fast these devices do what is beside training steps. `base_bytes`: that are read."""
    passes = [forward_seconds(d.beside.pass_work, d.layers, d.away_bytes, d.rates) for d in devices]
    per_token = max(d.share * seconds / d.beside.pass_tokens for d, seconds in zip(devices, passes))
    in_host = sum(d.share * d.away_bytes / d.beside.pass_tokens for d in devices) / host.memory_bytes_per_second
    tokens = [
        forward_seconds(d.beside.token_work, d.layers, d.away_bytes, d.rates, d.beside.token_read_bytes)
        for d in devices
    ]
    first, beside = devices[0], devices[0].beside
    copied = 2 * beside.checkpoint_bytes / host.memory_bytes_per_second
    if first.checkpoint_is_here and math.isfinite(first.rates.to_host_bytes_per_second):
        copied = beside.checkpoint_bytes / first.rates.to_host_bytes_per_second
    written, read = disk.write_bytes_per_second, disk.read_bytes_per_second
    return BesideSpeed(
        1 / max(per_token, in_host),
        max(*tokens, sum(d.away_bytes for d in devices) / host.memory_bytes_per_second),
        beside.together * len(devices),
        copied,
        beside.checkpoint_bytes / written if written else None,
        base_bytes / read if read else None,
        beside.result_bytes / written if written else None,
    )


@dataclass(frozen=True)
class Occasions:
    """How often a run does what is beside its steps."""

    evaluations: int
    """While it trains. Before and after training, rows are evaluated and prompts answered as well."""
    samples: int
    """While it trains."""
    checkpoints: int
    """The most that it writes."""


def occasions(recipe: Recipe, steps: int, done: int, has_held_out_rows: bool) -> Occasions:
    """Counts those of a run of `steps` that ends after `done` of them."""
    train = recipe.train
    evaluated = {*range(0, done + 1, train.steps_between_evaluations(steps)), done} - {0}
    saved = {*range(0, done + 1, train.steps_between_checkpoints(steps)), done} - {0}
    if train.result == "best" and has_held_out_rows:
        saved |= evaluated | {0}
    samples = done // train.sample_every if train.sample_every else 0
    return Occasions(
        len(evaluated) if has_held_out_rows else 0, samples if has_held_out_rows else 0, checkpoints=len(saved)
    )


def occasions_of(recipe: Recipe, amount: Training) -> Occasions:
    """Counts those of a run of this amount, which may end before its last step (train.max_tokens)."""
    done = math.ceil(amount.tokens / (recipe.train.batch * amount.row_tokens) - 1e-6)
    return occasions(recipe, amount.steps, max(1, min(amount.steps, done)), amount.held_out_rows > 0)


def prompts_of(recipe: Recipe) -> tuple[int, int]:
    """The most held-out prompts that are answered before and after training, and those of samples while it trains."""
    samples = recipe.evaluate.samples if recipe.method.has_answers else 0
    return recipe.data.eval_limit if recipe.evaluate.exact_match else samples, samples


def seconds_by_part(recipe: Recipe, speed: Speed, beside: BesideSpeed | None, amount: Training) -> dict[str, float]:
    """Seconds of each part of a run; parts that are not known are left out."""
    found = {"training": amount.tokens / speed.tokens_per_second}
    if not beside:
        return found
    times, rows = occasions_of(recipe, amount), amount.held_out_rows
    evaluated = rows * amount.held_out_row_tokens / beside.tokens_per_second

    def answered(prompts: float) -> float:
        if not prompts:
            return 0.0
        passes = math.ceil(prompts / beside.together) * recipe.evaluate.max_new_tokens + TRIAL_PASSES
        return passes * beside.token_seconds + prompts * amount.held_out_row_tokens / beside.tokens_per_second

    whole, samples = (min(prompts, rows) for prompts in prompts_of(recipe))
    if rows:
        found["evaluation"] = (times.evaluations + 2) * evaluated
        found["answers"] = 2 * answered(whole) + times.samples * answered(samples)
    between = found["training"] / max(1, times.checkpoints)
    late = max(0.0, (beside.write_seconds or 0.0) - between)  # training waits until the one before is written
    found["checkpoints"] = times.checkpoints * beside.copy_seconds + (times.checkpoints - 1) * late
    found["checkpoints"] += beside.write_seconds or 0.0  # of the last one
    found["loading and saving"] = (beside.load_seconds or 0.0) + (beside.save_seconds or 0.0)
    return {part: seconds for part, seconds in found.items() if seconds}
