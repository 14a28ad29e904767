"""The half of a step that follows the gradients, and the reasons for which a run stops or waits.

Every loop ends its steps with these functions, whatever it learns from.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tunesmith.data.dataset import TokenStore
from tunesmith.data.row_order import Schedule
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.energy import Meter
from tunesmith.errors import NotEnoughMemory, NotFinite
from tunesmith.methods import Method
from tunesmith.model.memory import is_out_of_memory, peak_bytes
from tunesmith.plan import Plan
from tunesmith.recipe import Train
from tunesmith.run import Run
from tunesmith.training import checkpoint, distributed, loss_scale
from tunesmith.training.checkpoint_writer import Saver
from tunesmith.training.divergence import check_held_out
from tunesmith.training.expert_routing import Routing
from tunesmith.training.loss import Head
from tunesmith.training.optimizer import Optimizer
from tunesmith.training.progress_marks import mark
from tunesmith.training.walk import Walk

SECONDS_BETWEEN_LOOKS = 0.25  # while a run is paused


@dataclass
class Job:
    """Everything that one process trains with."""

    run: Run
    method: Method
    plan: Plan
    settings: Train
    model: torch.nn.Module
    head: Head | None
    routing: Routing
    walk: Walk | None
    optimizer: Optimizer
    tokens: TokenStore
    held_out: TokenStore
    tokenizer: Tokenizer
    plain: Callable[[list[int]], str]  # an answer's ids as text
    schedule: Schedule
    saver: Saver
    device: torch.device
    evaluate: Callable[[], float | None]  # held-out loss, on all processes
    sample: Callable[[], None]
    requested: Callable[[], str]  # run, pause or stop, as this process was asked
    meter: Meter  # of this machine's devices in its first process, of none in the others
    seed: int
    log: Callable  # event -> None; only the first process writes


class Clock:
    """Seconds that a run has trained, with those before it was resumed and without its pauses."""

    def __init__(self, before: float):
        self._began = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def leave_out(self, seconds: float) -> None:
        self._began += seconds


def update(job: Job, state: checkpoint.State, rows: np.ndarray, loss: float) -> float:
    """Clips the gradients and takes the optimizer's step; returns their norm before clipping.

    In float16 a norm that is not finite skips the step and halves the scale of the loss, down to 1. Raises NotFinite,
    naming the rows of the step, in all other cases. Raises NotEnoughMemory where the optimizer needs more memory than
    there is: the step is never retried, because some weights may already have changed. The last checkpoint is whole.
    """
    mark("updating")
    norm = job.optimizer.clip(job.settings.max_grad_norm or math.inf, state.loss_scale)
    if math.isfinite(loss) and not math.isfinite(norm) and loss_scale.can_fall(state):
        loss_scale.lower(state)
        job.optimizer.skip()
        return norm
    if not (math.isfinite(loss) and math.isfinite(norm)):
        places = ", ".join(str(job.tokens.where(row)) for row in rows)
        value = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
        remedy = "; set model.dtype: float32, as float16 ends at 65,504" if job.plan.compute == "float16" else ""
        raise NotFinite(f"step {state.step}: {value} is not finite{remedy}; its rows: {places}")
    try:
        job.optimizer.step((job.seed, state.step))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemory(
            f"step {state.step}: the update of train.optimizer: {job.settings.optimizer} does not fit in memory; "
            "adafactor and adamw_8bit need the least, or train an adapter (adapter.kind: lora)"
        ) from None
    job.optimizer.zero_grad()
    loss_scale.note_finite(state, job.plan.compute)
    return norm


def log_step(job: Job, state: checkpoint.State, metrics: dict[str, float], **values: Any) -> None:
    """Logs the step event. `metrics`: this process's share of the method's."""
    own: dict[str, Any] = {"metrics": distributed.add_up_named(metrics)} if job.method.loss else {}
    if job.plan.kept_layers is not None:
        own["brought_bytes"] = sum(distributed.gather(job.walk.home.newly_brought_bytes() if job.walk else 0))
    job.log(
        "step",
        step=state.step,
        epoch=round(state.step * job.schedule.batch / job.schedule.rows_per_epoch, 4),
        **values,
        memory_bytes=peak_bytes(job.device),
        **job.routing.load(),
        **own,
    )


def energy_fields(job: Job, before: float | None) -> dict[str, float]:
    """The joules of a step, for its event. `before`: the meter's joules when the step began. Empty if they are unknown,
    as they are on several machines: to add them up, each step would wait for all."""
    joules = job.meter.joules() if distributed.is_one_machine() else None
    return {} if before is None or joules is None else {"joules": round(joules - before, 3)}


def log_energy(job: Job) -> None:
    """Logs the energy that the run took so far, on all machines; once, if it is unknown. All processes call it."""
    parts = distributed.gather((job.meter.joules(), job.meter.unknown))
    unknown = next((reason for _, reason in parts if reason), "")
    if unknown and job.meter.is_reported_unknown:
        return
    job.meter.is_reported_unknown = bool(unknown)
    job.log(
        "energy",
        device=job.device.type,
        joules=None if unknown else round(sum(joules for joules, _ in parts), 3),
        seconds=round(job.meter.seconds, 3),
        **({"unknown": unknown} if unknown else {}),
    )


def reason_to_stop(job: Job, state: checkpoint.State) -> str | None:
    """Why the run is to end, or "paused". The one place where a run asks what the user wants: all processes decide
    together, as one alone would leave the others waiting. The run's own end comes first."""
    settings, wish = job.settings, job.requested()
    late = settings.max_minutes is not None and state.seconds >= settings.max_minutes * 60
    stop, pause, late = distributed.add_up([float(wish == "stop"), float(wish == "pause"), float(late)])
    if late:
        return "max_minutes"
    if settings.max_tokens and state.tokens >= settings.max_tokens:
        return "max_tokens"
    if stop:
        return "interrupted"
    return _no_gain(settings, state) or ("paused" if pause else None)


def evaluate_if_due(job: Job, state: checkpoint.State, reason: str | None) -> str | None:
    """Measures the held-out loss at its steps and at the end; an interrupted run too, so that it has the evaluations of
    an uninterrupted one. Returns the reason to stop. Raises Diverged."""
    at_end = state.step == job.schedule.steps or reason in ("max_minutes", "max_tokens")
    if state.step % job.settings.steps_between_evaluations(job.schedule.steps) and not at_end:
        return reason
    loss = job.evaluate()
    check_held_out(job.settings, state, loss)
    _note_eval(state, loss)
    return reason if reason not in (None, "paused") else _no_gain(job.settings, state) or reason


def save_if_due(job: Job, state: checkpoint.State, reason: str | None) -> None:
    """Saves a checkpoint at its steps, at the end, before a pause, and of the best weights so far; logs the energy."""
    best = job.settings.result == "best" and state.best_step == state.step
    every = job.settings.steps_between_checkpoints(job.schedule.steps)
    due = state.step % every == 0 or state.step == job.schedule.steps or reason or best
    if due and distributed.rank() == 0:
        mark("saving")
        job.saver.save(job.optimizer, state)
    if due:
        log_energy(job)


def wait_while_paused(job: Job, state: checkpoint.State, clock: Clock) -> str | None:
    """Waits, the model in memory, until the user lets the run continue; returns the reason if it is to stop instead."""
    began = time.monotonic()
    job.log("pause", step=state.step)
    with job.meter.paused():
        while (reason := reason_to_stop(job, state)) == "paused":
            mark("paused")
            time.sleep(SECONDS_BETWEEN_LOOKS)
    seconds = time.monotonic() - began
    clock.leave_out(seconds)
    job.log("continue", step=state.step, seconds=round(seconds, 3))
    return reason


def _no_gain(settings: Train, state: checkpoint.State) -> str | None:
    return "early_stopping" if settings.patience and state.evals_without_gain >= settings.patience else None


def _note_eval(state: checkpoint.State, loss: float | None) -> None:
    if loss is None:
        return
    if math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss):
        state.best_loss, state.best_step, state.evals_without_gain = loss, state.step, 0
    else:
        state.evals_without_gain += 1
