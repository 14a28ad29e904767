"""The training loop, from top to bottom.

It takes model, data, optimizer and recipe as arguments and returns when the run ends; what it saw is in the run's
events. The loss of a step is the mean over all supervised tokens of its effective batch, over all micro-batches and
processes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tunesmith.data.dataset import TokenStore
from tunesmith.data.pack import Schedule, micro_batches, share_of
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import NotFinite
from tunesmith.plan.choose import Plan
from tunesmith.recipe import Train
from tunesmith.run import Run
from tunesmith.training import checkpoint, parallel
from tunesmith.training.batch import collate
from tunesmith.training.layers import CompileWatch
from tunesmith.training.loss import token_losses
from tunesmith.training.memory import peak_bytes
from tunesmith.training.optimizer import learning_rate


@dataclass
class Job:
    """What one process trains with."""

    run: Run
    plan: Plan
    settings: Train
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    tokens: TokenStore
    held_out: TokenStore
    tokenizer: Tokenizer
    schedule: Schedule
    device: torch.device
    evaluate: Callable[[], float | None]  # held-out loss, on all processes
    sample: Callable[[], None]
    stop_asked: Callable[[], bool]
    seed: int
    log: Callable  # event -> None; only the first process writes


def loop(job: Job, state: checkpoint.State) -> str:
    """Trains from `state.step` on; returns why it stopped (the reasons of the stop event)."""
    settings, schedule = job.settings, job.schedule
    steps = schedule.steps
    eval_every = settings.eval_every or max(1, round(steps / 10))
    save_every = settings.save_every or eval_every
    trained = [p for p in job.model.parameters() if p.requires_grad]
    began, before = time.monotonic(), state.seconds
    compiling = CompileWatch()

    reason = _reason_to_stop(job, state) or _no_gain(settings, state)  # a resumed run may be at its end already
    while state.step < steps and not reason:
        step_began = time.monotonic()
        state.step += 1
        seed_step(job.seed, state.step)
        job.model.train()
        rate = learning_rate(state.step, steps, settings)
        for group in job.optimizer.param_groups:
            group["lr"] = rate

        rows = share_of(schedule.step_rows(state.step), job.tokens.lengths, parallel.rank(), parallel.world())
        micro = micro_batches(rows, job.tokens.lengths, job.plan.micro_batch_tokens, job.plan.packing)
        batches = [collate(job.tokens, m, job.plan.packing) for m in micro]
        counts = [sum(b.supervised_tokens for b in batches), sum(sum(b.lengths) for b in batches)]
        supervised, tokens = parallel.add_up(counts, job.device)
        waited = time.monotonic() - step_began

        total = torch.zeros((), device=job.device)
        for batch in batches:
            with autocast(job):
                losses_N, _ = token_losses(job.model, batch.to(job.device))
            loss = losses_N.sum() / supervised
            loss.backward()
            total += loss.detach()
        parallel.add_up_gradients(trained)
        [loss_value] = parallel.add_up([total.item()], job.device)
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm or math.inf, foreach=True).item()
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise NotFinite(_blame(job, state.step, loss_value, norm))
        job.optimizer.step()
        job.optimizer.zero_grad(set_to_none=True)

        seconds = time.monotonic() - step_began
        state.tokens += int(tokens)
        state.seconds = before + time.monotonic() - began
        job.log("step", step=state.step, epoch=round(state.step * schedule.batch / schedule.rows_per_epoch, 4),
                loss=loss_value, learning_rate=rate, grad_norm=norm, tokens=int(tokens),
                supervised_tokens=int(supervised), seconds=round(seconds, 4),
                tokens_per_second=round(tokens / seconds, 1), waiting_seconds=round(waited, 4),
                memory_bytes=peak_bytes(job.device))
        if compiled := compiling.news():
            job.log("compile", step=state.step, **compiled)

        reason = _reason_to_stop(job, state)
        at_end = state.step == steps or reason in ("max_minutes", "max_tokens")
        if state.step % eval_every == 0 or at_end:  # if interrupted too: a resumed run has the same evaluations
            _note_eval(state, job.evaluate())
            reason = reason or _no_gain(settings, state)
        if settings.sample_every and state.step % settings.sample_every == 0:
            job.sample()
        wanted = settings.result == "best" and state.best_step == state.step
        if state.step % save_every == 0 or state.step == steps or reason or wanted:
            _save(job, state)
    return reason or "done"


def seed_step(seed: int, step: int) -> None:
    """Random numbers are a function of (seed, step, process): nothing of them need be saved to resume."""
    torch.manual_seed((seed * 1_000_003 + step) * 1024 + parallel.rank())


def autocast(job: Job):
    return torch.autocast(job.device.type, torch.bfloat16, enabled=job.plan.compute == "bfloat16")


def _reason_to_stop(job: Job, state: checkpoint.State) -> str | None:
    """All processes decide together, as one alone would leave the others waiting. The run's own end goes first."""
    settings = job.settings
    late = settings.max_minutes is not None and state.seconds >= settings.max_minutes * 60
    asked, late = parallel.add_up([float(job.stop_asked()), float(late)], job.device)
    if late:
        return "max_minutes"
    if settings.max_tokens and state.tokens >= settings.max_tokens:
        return "max_tokens"
    return "interrupted" if asked else None


def _no_gain(settings: Train, state: checkpoint.State) -> str | None:
    return "early_stopping" if settings.patience and state.evals_without_gain >= settings.patience else None


def _note_eval(state: checkpoint.State, loss: float | None) -> None:
    if loss is None:
        return
    if math.isfinite(loss) and (state.best_loss is None or loss < state.best_loss):
        state.best_loss, state.best_step, state.evals_without_gain = loss, state.step, 0
    else:
        state.evals_without_gain += 1


def _save(job: Job, state: checkpoint.State) -> None:
    """Only the first process writes. A full disk fails this save and is said; training goes on."""
    if parallel.rank() != 0:
        return
    began = time.monotonic()
    folder = job.run.checkpoints
    try:
        size = checkpoint.save(folder, job.model, job.optimizer, state)
    except OSError as error:
        job.log("warning", message=f"checkpoint at step {state.step} not saved: {error}; training goes on")
        return
    checkpoint.prune(folder, job.settings.keep_checkpoints, state.best_step)
    job.log("checkpoint", step=state.step, path=f"checkpoints/step-{state.step:06d}", bytes=size,
            seconds=round(time.monotonic() - began, 3), best=state.best_step == state.step)


def _blame(job: Job, step: int, loss: float, norm: float) -> str:
    places = [str(job.tokens.where(row)) for row in job.schedule.step_rows(step)]
    what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
    return f"step {step}: {what} is not finite; its rows: {', '.join(places)}"
