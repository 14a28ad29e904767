"""The training loop, from top to bottom.

It takes model, data, optimizer and recipe as arguments and returns when the run ends; everything that it observed is in
the run's events. The loss of a step is the mean over all units of its effective batch, learned tokens or rows as the
method has it, over all micro-batches and processes. `step.py` has the half of a step that follows the gradients.
"""

import time
from collections.abc import Iterator

import torch

from tunesmith.model.memory import is_out_of_memory
from tunesmith.training import checkpoint, distributed
from tunesmith.training.batch import Batch
from tunesmith.training.divergence import check_step
from tunesmith.training.exchange import Exchange
from tunesmith.training.layer_transforms import CompileWatch, checkpoint_layers
from tunesmith.training.loss import autocast, method_loss
from tunesmith.training.loss_scale import event_fields
from tunesmith.training.oom_fallback import step_down
from tunesmith.training.optimizer import learning_rate
from tunesmith.training.prefetch import StepData, step_data, steps_ahead
from tunesmith.training.progress_marks import mark
from tunesmith.training.randomness import set_seed
from tunesmith.training.shares import Shares
from tunesmith.training.step import (
    Clock,
    Job,
    energy_fields,
    evaluate_if_due,
    log_energy,
    log_step,
    reason_to_stop,
    save_if_due,
    update,
    wait_while_paused,
)
from tunesmith.training.walk import backward


def loop(job: Job, state: checkpoint.State) -> str:
    """Trains from `state.step` on; returns why it stopped (the reasons of the stop event)."""
    steps = job.schedule.steps
    shares = Shares(state, distributed.world(), job.plan.shares == "measured")
    exchange = Exchange(job.device, job.settings.network)
    feed, clock, compiling = _feed(job, state), Clock(state.seconds), CompileWatch()
    if job.settings.result == "best" and state.best_step == state.step == 0 and distributed.rank() == 0:
        job.saver.save(job.optimizer, state)  # the untrained weights may stay the best
    log_energy(job)

    reason = reason_to_stop(job, state)  # a resumed run may be at its end already
    if reason == "paused":
        reason = wait_while_paused(job, state, clock)
    while state.step < steps and not reason:
        joules, began = job.meter.joules(), time.monotonic()
        state.step += 1
        mark("waiting for data", state.step)
        data = next(feed)
        mark("forward")
        waited = time.monotonic() - began
        job.model.train()
        rate = learning_rate(state.step, steps, job.settings)
        for group in job.optimizer.param_groups:
            group["lr"] = rate

        units, supervised, tokens = distributed.add_up([data.units, data.supervised_tokens, data.tokens])
        learning = distributed.own_seconds()
        loss, metrics, smaller = _learn(job, state, data, units, tokens)
        computed = distributed.own_seconds() - learning
        exchanging = time.monotonic()
        exchange.add_up(job.optimizer.to_exchange)
        exchanged = time.monotonic() - exchanging
        loss, repeated = distributed.add_up([loss, bool(smaller)])
        used = state.shares
        if repeated:
            _note_passes(job, state, smaller)
        if repeated or shares.change(data.tokens, computed):
            feed.close()  # what is ready ahead was made for larger passes or other shares
            feed = _feed(job, state)
        scale = state.loss_scale
        norm = update(job, state, data.rows, loss)

        seconds = time.monotonic() - began
        state.tokens += int(tokens)
        state.seconds = clock.seconds
        log_step(
            job,
            state,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=int(tokens),
            supervised_tokens=int(supervised),
            seconds=round(seconds, 4),
            tokens_per_second=round(tokens / seconds, 1),
            waiting_seconds=round(waited, 4),
            **({"exchange_seconds": round(exchanged, 4)} if distributed.world() > 1 else {}),
            metrics=metrics,
            **({"shares": [round(share, 3) for share in used]} if shares.measured else {}),
            **event_fields(job.plan.compute, scale, norm),
            **energy_fields(job, joules),
        )
        if compiled := compiling.news():
            job.log("compile", step=state.step, **compiled)

        check_step(job.settings, state, loss, job.model.config.get_text_config().vocab_size)
        reason = reason_to_stop(job, state)
        reason = evaluate_if_due(job, state, reason)
        if job.settings.sample_every and state.step % job.settings.sample_every == 0:
            job.sample()
        save_if_due(job, state, reason)
        if reason == "paused":
            reason = wait_while_paused(job, state, clock)
    return reason or "done"


def _feed(job: Job, state: checkpoint.State) -> Iterator[StepData]:
    return steps_ahead(lambda step: _data(job, state, step), state.step + 1, job.schedule.steps)


def _data(job: Job, state: checkpoint.State, step: int) -> StepData:
    return step_data(
        step,
        job.schedule,
        job.tokens,
        job.method.unit,
        state.micro_batch_tokens,
        state.shares,
        job.plan.packing,
        job.device,
    )


def _learn(
    job: Job, state: checkpoint.State, data: StepData, units: float, tokens: float
) -> tuple[float, dict[str, float], str]:
    """Adds up the gradients of a step. Returns its loss, the method's metrics, and how its passes were made smaller if
    it ran out of memory."""
    smaller = ""
    while True:
        try:
            return *_gradients(job, state, data, units, tokens), smaller
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Out of the handler, which kept the failed attempt's tensors alive.
        job.optimizer.zero_grad()
        job.routing.forget()
        if job.device.type == "cuda":
            torch.cuda.empty_cache()
        smaller = step_down(state, data.batches, f"step {state.step}")
        job.log("warning", message=f"step {state.step} ran out of memory and is repeated: {smaller}")
        _recompute(job, state)
        data = _data(job, state, state.step)


def _gradients(
    job: Job, state: checkpoint.State, data: StepData, units: float, tokens: float
) -> tuple[float, dict[str, float]]:
    """Adds up the gradients of the scaled loss. Returns this process's share of the mean over all `units` of the step:
    the loss, without that of the routers, and the method's metrics. `tokens`: all tokens of the step."""
    total, sums = torch.zeros((), device=job.device), {}

    def loss(batch: Batch) -> torch.Tensor:
        with autocast(job.plan):
            loss, metrics = method_loss(job.method, job.model, batch, job.head)
        loss = loss / units
        total.add_(loss.detach())  # without the scale
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0) + value.detach()
        return loss * state.loss_scale

    def router_loss(batch: Batch) -> torch.Tensor | float:
        return job.routing.loss(batch, tokens) * state.loss_scale

    def seed(batch: Batch) -> None:
        seed_batch(job.seed, state.step, batch.rows[0])

    backward(job.walk, data.batches, loss, router_loss, seed)
    return total.item(), {name: value.item() / units for name, value in sums.items()}


def _note_passes(job: Job, state: checkpoint.State, smaller: str) -> None:
    """Notes the size of each process's passes, for the checkpoint. A process with more memory keeps its larger ones."""
    told = distributed.gather((state.micro_batch_tokens, state.checkpointing, smaller))
    state.passes = [[tokens, checkpointing] for tokens, checkpointing, _ in told]
    for process, (*_, change) in enumerate(told):
        if process and change:  # the first has said so itself
            where = f"in process {process + 1} of {len(told)}"
            job.log("warning", message=f"step {state.step} ran out of memory {where} and was repeated there: {change}")


def _recompute(job: Job, state: checkpoint.State) -> None:
    """Recomputes all layers if the state says so. A walk does that by itself."""
    if state.checkpointing and not job.walk:
        checkpoint_layers(job.model, "on")


def seed_batch(seed: int, step: int, row: int) -> None:
    """Random numbers are a function of (seed, step, first row of the micro-batch): nothing of them need be saved to
    resume, and they do not depend on the process."""
    set_seed(seed, step, row)
