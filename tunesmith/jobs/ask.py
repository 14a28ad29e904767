"""The requests that people make of the queue: add jobs, change their order, stop them. The terminal and the studio use
these functions."""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from tunesmith.errors import UserError
from tunesmith.finetune import control
from tunesmith.finetune.job import new_run
from tunesmith.jobs import process
from tunesmith.jobs.state import AT_WORK, ENDED, status_of
from tunesmith.jobs.store import Job, Store
from tunesmith.recipe import Recipe
from tunesmith.run import Run


def add_training(store: Store, recipe: Recipe, **wishes: Any) -> Job:
    """Adds the training of a recipe. Its run folder is made now. Raises UserError for mistakes that are found without
    a GPU."""
    run = new_run(recipe)
    try:
        return store.add("train", run.folder, **wishes)
    except BaseException:
        shutil.rmtree(run.folder)
        raise


def in_grid(recipe: Recipe, values: Mapping[str, Sequence[Any]]) -> Iterator[Recipe]:
    """A recipe for each combination of values of some keys, whose names say which."""
    name = recipe.name
    for chosen in product(*values.values()):
        change = dict(zip(values, chosen))
        if name:
            ends = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in change.items())
            change["name"] = f"{name}-{ends}".replace("/", "-")
        yield recipe.changed(change)


def cancel(store: Store, number: int, at_once: bool = False) -> None:
    """Removes a job that waits from the queue. One that runs saves a checkpoint and stops, or is ended at once. A run
    that has done nothing is deleted. Raises UserError for a job that has ended."""
    job = store.job(number)
    state, run = status_of(store, job).state, Run(job.folder)
    if state in ENDED:
        raise UserError(f"queue: job {job.id} is {state} already")
    store.change(job.id, cancelled=True, is_due=False)
    if state in AT_WORK and job.kind == "train" and run.is_held and not at_once:
        control.request(run, "stop")
    elif state in AT_WORK:
        process.kill(store, job)
    elif job.kind == "train" and not run.is_prepared:
        shutil.rmtree(run.folder, ignore_errors=True)


def retry(store: Store, number: int) -> None:
    """Continues a job that failed or was stopped from its last checkpoint. Raises UserError for all others."""
    job = store.job(number)
    status = status_of(store, job)
    if status.state not in ENDED or status.state == "finished" or not Run(job.folder).exists:
        raise UserError(
            f"queue: job {job.id} is {status.state}, and cannot be tried again; {status.detail or 'see why'}"
        )
    store.change(job.id, is_due=True, cancelled=False, held=False)


def resume_run(store: Store, run: Run) -> None:
    """Queues a run that was stopped or cut off; it continues from its last checkpoint. Raises UserError for all
    others."""
    folder = str(run.folder.absolute())
    job = next((job for job in reversed(store.jobs()) if job.kind == "train" and job.folder == folder), None)
    if job:
        return retry(store, job.id)
    if run.is_held:
        raise UserError(f"{run.folder}: this run is running")
    if run.result.is_dir():
        raise UserError(f"{run.folder}: this run has finished")
    store.add("train", run.folder, asked_by="studio")
    return None


def pause(store: Store, number: int | None = None) -> None:
    """Pauses a job that runs, which keeps its memory; or the queue, which starts no more jobs."""
    if number is not None:
        control.request(Run(store.job(number).folder), "pause")
    else:
        store.set("paused", f"since {time.strftime('%H:%M')}; `tunesmith queue resume` continues it")


def resume(store: Store, number: int | None = None) -> None:
    """Continues a paused job or the paused queue."""
    if number is not None:
        control.request(Run(store.job(number).folder), "run")
    else:
        store.set("paused", "")
