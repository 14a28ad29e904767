"""The training loop, from top to bottom.

It takes model, data, optimizer and recipe as arguments and returns when the run ends; what it saw is in the run's
events. The loss of a step is the mean over all supervised tokens of its effective batch, over all micro-batches and
processes.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from tunesmith.data.dataset import TokenStore
from tunesmith.data.row_order import Schedule
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import NotEnoughMemory, NotFinite
from tunesmith.model.memory import is_out_of_memory, peak_bytes
from tunesmith.plan import Plan
from tunesmith.recipe import Train
from tunesmith.run import Run
from tunesmith.training import checkpoint, distributed
from tunesmith.training.checkpoint_writer import Saver
from tunesmith.training.divergence import check_held_out, check_step
from tunesmith.training.expert_routing import Routing
from tunesmith.training.layer_transforms import CompileWatch, checkpoint_layers
from tunesmith.training.loss import Head, autocast, token_losses
from tunesmith.training.oom_fallback import step_down
from tunesmith.training.optimizer import learning_rate
from tunesmith.training.prefetch import StepData, step_data, steps_ahead


@dataclass
class Job:
    """What one process trains with."""

    run: Run
    plan: Plan
    settings: Train
    model: torch.nn.Module
    head: Head | None
    routing: Routing
    optimizer: torch.optim.Optimizer
    tokens: TokenStore
    held_out: TokenStore
    tokenizer: Tokenizer
    plain: Callable[[list[int]], str]  # an answer's ids as text
    schedule: Schedule
    saver: Saver
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
    feed = _feed(job, state)
    began, before = time.monotonic(), state.seconds
    compiling = CompileWatch()
    if settings.result == "best" and state.best_step == state.step == 0 and distributed.rank() == 0:
        job.saver.save(job.model, job.optimizer, state)  # the untrained weights may stay the best

    reason = _reason_to_stop(job, state) or _no_gain(settings, state)  # a resumed run may be at its end already
    while state.step < steps and not reason:
        step_began = time.monotonic()
        state.step += 1
        data = next(feed)
        waited = time.monotonic() - step_began
        seed_step(job.seed, state.step)
        job.model.train()
        rate = learning_rate(state.step, steps, settings)
        for group in job.optimizer.param_groups:
            group["lr"] = rate

        supervised, tokens = distributed.add_up([data.supervised_tokens, data.tokens], job.device)
        loss, smaller = _learn(job, state, data, supervised, tokens)
        distributed.add_up_gradients(trained)
        loss_value, smaller = distributed.add_up([loss, smaller], job.device)
        if smaller:
            _agree(job, state)
            feed.close()  # what is ready ahead was made for larger passes
            feed = _feed(job, state)
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm or math.inf, foreach=True).item()
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise NotFinite(_blame(job, state.step, data, loss_value, norm))
        _update(job, state.step)

        seconds = time.monotonic() - step_began
        state.tokens += int(tokens)
        state.seconds = before + time.monotonic() - began
        job.log(
            "step",
            step=state.step,
            epoch=round(state.step * schedule.batch / schedule.rows_per_epoch, 4),
            loss=loss_value,
            learning_rate=rate,
            grad_norm=norm,
            tokens=int(tokens),
            supervised_tokens=int(supervised),
            seconds=round(seconds, 4),
            tokens_per_second=round(tokens / seconds, 1),
            waiting_seconds=round(waited, 4),
            memory_bytes=peak_bytes(job.device),
            **job.routing.load(),
        )
        if compiled := compiling.news():
            job.log("compile", step=state.step, **compiled)

        check_step(settings, state, loss_value, job.model.config.get_text_config().vocab_size)
        reason = _reason_to_stop(job, state)
        at_end = state.step == steps or reason in ("max_minutes", "max_tokens")
        if state.step % eval_every == 0 or at_end:  # if interrupted too: a resumed run has the same evaluations
            held_out_loss = job.evaluate()
            check_held_out(settings, state, held_out_loss)
            _note_eval(state, held_out_loss)
            reason = reason or _no_gain(settings, state)
        if settings.sample_every and state.step % settings.sample_every == 0:
            job.sample()
        wanted = settings.result == "best" and state.best_step == state.step
        due = state.step % save_every == 0 or state.step == steps or reason or wanted
        if due and distributed.rank() == 0:
            job.saver.save(job.model, job.optimizer, state)
    return reason or "done"


def _feed(job: Job, state: checkpoint.State) -> Iterator[StepData]:
    return steps_ahead(lambda step: _data(job, state, step), state.step + 1, job.schedule.steps)


def _data(job: Job, state: checkpoint.State, step: int) -> StepData:
    return step_data(step, job.schedule, job.tokens, state.micro_batch_tokens, job.plan.packing, job.device)


def _learn(job: Job, state: checkpoint.State, data: StepData, supervised: float, tokens: float) -> tuple[float, int]:
    """Adds up the gradients of a step. Returns its loss, and how often it was done again in smaller parts."""
    smaller = 0
    while True:
        try:
            return _backward(job, data, supervised, tokens), smaller
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Out of the handler, which kept the failed attempt's tensors alive.
        job.optimizer.zero_grad(set_to_none=True)
        job.routing.forget()
        if job.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller += 1
        now = step_down(state, data.batches, f"step {state.step}")
        job.log("warning", message=f"step {state.step} ran out of memory and is done again: {now}")
        if state.checkpointing:
            checkpoint_layers(job.model, "on")
        data = _data(job, state, state.step)
        seed_step(job.seed, state.step)


def _backward(job: Job, data: StepData, supervised: float, tokens: float) -> float:
    """Of `supervised` learned and `tokens` seen ones in the whole step. The loss is that of the answers alone."""
    total = torch.zeros((), device=job.device)
    for batch in data.batches:
        with autocast(job.plan):
            loss, _, _ = token_losses(job.model, batch, job.head)
        loss = loss / supervised
        (loss + job.routing.loss(batch, tokens)).backward()
        total += loss.detach()
    return total.item()


def _update(job: Job, step: int) -> None:
    """Raises NotEnoughMemory where the optimizer needs more than there is. The step is not done again: part of the
    weights may have moved already. The last checkpoint is whole."""
    seed_update(job.seed, step)
    try:
        job.optimizer.step()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemory(
            f"step {step}: the update of train.optimizer: {job.settings.optimizer} does not fit in "
            "memory; adafactor and adamw_8bit need the least, or train an adapter "
            "(adapter.kind: lora)"
        ) from None
    job.optimizer.zero_grad(set_to_none=True)


def _agree(job: Job, state: checkpoint.State) -> None:
    """What one process needed to fit, all do, so that the first one's state is everyone's."""
    found = distributed.gather((state.micro_batch_tokens, state.checkpointing))
    agreed = min(f[0] for f in found), any(f[1] for f in found)
    if agreed != (state.micro_batch_tokens, state.checkpointing):
        job.log("warning", message=f"step {state.step} ran out of memory in another process; all take smaller parts")
    state.micro_batch_tokens, state.checkpointing = agreed
    if state.checkpointing:
        checkpoint_layers(job.model, "on")


def seed_step(seed: int, step: int) -> None:
    """Random numbers are a function of (seed, step, process): nothing of them need be saved to resume."""
    torch.manual_seed((seed * 1_000_003 + step) * 1024 + distributed.rank())


def seed_update(seed: int, step: int) -> None:
    """Before the update: what it draws to round weights must be the same in all processes, or they part."""
    torch.manual_seed((seed * 1_000_003 + step) * 1024 + 1023)


def _reason_to_stop(job: Job, state: checkpoint.State) -> str | None:
    """All processes decide together, as one alone would leave the others waiting. The run's own end goes first."""
    settings = job.settings
    late = settings.max_minutes is not None and state.seconds >= settings.max_minutes * 60
    asked, late = distributed.add_up([float(job.stop_asked()), float(late)], job.device)
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


def _blame(job: Job, step: int, data: StepData, loss: float, norm: float) -> str:
    places = [str(job.tokens.where(row)) for row in data.rows]
    what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
    return f"step {step}: {what} is not finite; its rows: {', '.join(places)}"
