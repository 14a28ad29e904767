"""The state of a job. It follows from the job's folder and process, never from a stored status."""

from dataclasses import dataclass
from typing import Literal

from tunesmith.finetune import control
from tunesmith.jobs import process
from tunesmith.jobs.store import Job, Store
from tunesmith.run import Run

State = Literal[
    "waiting", "held", "starting", "running", "paused", "stopping", "finished", "failed", "interrupted", "cancelled"
]
WAITING = ("waiting", "held")
AT_WORK = ("starting", "running", "paused", "stopping")
ENDED = ("finished", "failed", "interrupted", "cancelled")
STOPPED = (130, -2, -15, -1)  # exit statuses of a command that was asked to stop


@dataclass(frozen=True)
class Status:
    """The state of a job, and the reason for it."""

    state: State
    detail: str = ""
    """Why, if the job failed, was interrupted or was refused for now."""


def status_of(store: Store, job: Job) -> Status:
    """The state of a job now."""
    run = Run(job.folder)
    if job.kind == "train" and run.is_held:  # by the queue or from a terminal
        return Status(_at_work(run))
    has_result = run.exists and job.kind == "train" and run.result.is_dir()
    if process.is_alive(store, job):
        return Status(_on_the_way(job, run) if job.kind == "train" and not has_result else "running")
    if not run.exists:
        return Status("cancelled", "its run was deleted")
    if has_result:
        return Status("finished")
    if job.cancelled:
        return Status("cancelled")
    if job.is_due:
        return Status("held" if job.held else "waiting")
    return _ended(store, job)


def _on_the_way(job: Job, run: Run) -> State:
    """The state of a training whose process does not hold the run: not yet, or no longer."""
    began = job.started or 0.0
    has_worked = run.events_file.exists() and run.events_file.stat().st_mtime > began
    return "stopping" if has_worked else "starting"


def _at_work(run: Run) -> State:
    wish = control.wish_of(run)
    return "stopping" if wish == "stop" else "paused" if wish == "pause" else "running"


def _ended(store: Store, job: Job) -> Status:
    """The state of a job whose process has ended without a result of a run."""
    found = process.outcome(store, job)
    if found is None:
        return Status("interrupted", "its process was killed, or the machine went off")
    if found.is_later:
        return Status("held" if job.held else "waiting", found.said)
    if job.kind != "train" and found.status == 0:
        return Status("finished")
    if found.status in STOPPED:
        return Status("interrupted", "it was stopped")
    killed = f"its process was ended by signal {-found.status}: " if found.status < 0 else ""
    return Status("failed", killed + found.said)
