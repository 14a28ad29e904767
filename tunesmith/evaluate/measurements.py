"""Measures a run's model before, during and after training."""

import math
import time
from dataclasses import replace

import numpy as np

from tunesmith.evaluate import generate, heldout
from tunesmith.files import read_json, write_json
from tunesmith.model.memory import explain_out_of_memory
from tunesmith.run import Run
from tunesmith.training import checkpoint, distributed
from tunesmith.training.loss import autocast
from tunesmith.training.progress_marks import mark
from tunesmith.training.step import Job


def held_out_losses(job: Job, state: checkpoint.State) -> np.ndarray:
    """Returns the losses of the held-out rows, computed in passes as large as those of a training step."""
    mark("evaluating")
    plan = replace(job.plan, micro_batch_tokens=state.micro_batch_tokens)
    with explain_out_of_memory(
        "the loss of held-out rows", "train.micro_batch: 1 needs the least, or lower data.sequence_length"
    ):
        return heldout.row_losses(job.method, job.model, job.head, job.held_out, plan, job.device, state.shares)


def measure(job: Job, state: checkpoint.State) -> dict:
    """Losses of the held-out rows and answers to their prompts: to all for exact match, else to the samples'."""
    settings = job.run.recipe.evaluate
    found = {"losses": held_out_losses(job, state).tolist()}
    rows = list(range(len(job.held_out))) if settings.exact_match else sampled_rows(job)
    found["answers"] = answers_to(job, rows)
    if settings.exact_match:
        found["right"] = [int(found["answers"][str(row)].strip() == reference_of(job, row).strip()) for row in rows]
    return found


def sampled_rows(job: Job) -> list[int]:
    """The held-out rows whose answers are shown, spread over all."""
    if not job.method.settings.has_answers:
        return []
    count = min(job.run.recipe.evaluate.samples, len(job.held_out))
    return np.linspace(0, len(job.held_out) - 1, count).astype(int).tolist()


def answers_to(job: Job, rows: list[int]) -> dict[str, str]:
    """{row: answer}; each process asks for its share, and all get all."""
    mark("evaluating")
    mine = rows[distributed.rank() :: distributed.world()]
    prompts = [job.held_out.prompt_and_answer(row)[0].tolist() for row in mine]
    remedy = "lower evaluate.max_new_tokens, or set evaluate.samples: 0"
    with autocast(job.plan), explain_out_of_memory("answering held-out prompts", remedy):
        answers = generate.answers(job.model, prompts, job.run.recipe.evaluate.max_new_tokens, job.run.plan.stop_ids)
    texts = {row: job.plain(answer.text_ids) for row, answer in zip(mine, answers)}
    found = {row: answer for share in distributed.gather(texts) for row, answer in share.items()}
    return {str(row): found[row] for row in rows}


def reference_of(job: Job, row: int) -> str:
    return job.plain(job.held_out.prompt_and_answer(row)[1].tolist())


def prompt_and_reference(job: Job, row: int) -> dict:
    return {"prompt": job.held_out.asked(row), "reference": reference_of(job, row)}


def log_evaluation(job: Job, state: checkpoint.State) -> float | None:
    if not len(job.held_out):
        return None
    began = time.monotonic()
    losses = held_out_losses(job, state)
    _log_losses(job, state.step, losses, time.monotonic() - began)
    return heldout.mean_loss(losses)


def _log_losses(job: Job, step: int, losses: np.ndarray, seconds: float) -> None:
    found = heldout.interval(losses[:, 0], losses[:, 1])
    job.log(
        "eval",
        step=step,
        loss=heldout.mean_loss(losses),
        low=found["low"],
        high=found["high"],
        rows=len(losses),
        seconds=round(seconds, 3),
    )


def log_samples(job: Job, state: checkpoint.State) -> None:
    rows = sampled_rows(job)
    if rows:
        answers = answers_to(job, rows)
        job.log(
            "samples",
            step=state.step,
            samples=[prompt_and_reference(job, r) | {"answer": answers[str(r)]} for r in rows],
        )


def measure_untrained(job: Job, run: Run, state: checkpoint.State) -> None:
    """Measures the untrained model, once; a resumed run has it already. Its loss is the first candidate for best."""
    if not len(job.held_out):
        return
    if not run.before_file.exists():
        found = measure(job, state)
        if distributed.rank() == 0:
            write_json(run.before_file, found)
            _log_losses(job, 0, np.array(found["losses"]), 0.0)
        distributed.wait()
    loss = heldout.mean_loss(np.array(read_json(run.before_file)["losses"], float))
    if state.step == 0 and math.isfinite(loss):
        state.base_loss, state.best_loss, state.best_step = loss, loss, 0
