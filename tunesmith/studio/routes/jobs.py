"""The queue: its jobs, and how people change them."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from tunesmith import recipe_text
from tunesmith.errors import UserError
from tunesmith.jobs import ask
from tunesmith.jobs.decision import Decision, decide
from tunesmith.jobs.keeper import AFTER_RESTART, devices, ensure_kept, look, recent
from tunesmith.jobs.state import Status
from tunesmith.jobs.store import ASKED_BY, Job, Priority
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.progress import Progress, progress_of
from tunesmith.studio.roots import MOST_SHOWN
from tunesmith.studio.state import Studio

MOST_LOG_BYTES = 2**18  # of one answer
MOST_OF_GRID = 1_000  # jobs


class JobView(BaseModel):
    """A job of the queue, as the page shows it."""

    id: int
    kind: str
    name: str
    """The name of its run."""
    run: str | None
    """The id of its run; None if that was deleted."""
    arguments: list[str]
    state: str
    detail: str
    """Why it failed or was interrupted."""
    why: str
    """Why it waits."""
    progress: Progress | None
    """Only for a training that is at work."""
    added: float
    """Unix seconds."""
    started: float | None
    priority: str
    gpus: int | None
    after: int | None
    after_success: bool
    not_before: float | None
    batch: str
    """A name that the jobs of a grid have in common."""
    asked_by: str


class QueueView(BaseModel):
    """The queue at one moment."""

    paused: str
    """Why no job starts; empty if jobs may."""
    after_restart: bool
    """Whether jobs start by themselves after a restart of the machine."""
    jobs: list[JobView]
    """In the order in which they start; without those that ended more than a week ago."""


class NewJobs(BaseModel):
    """A training to queue, or several of a grid."""

    recipe: dict[str, Any]
    """The recipe's values."""
    grid: dict[str, list[Any]] = {}
    """Several values for some keys: one job for each combination."""
    export: list[str] = []
    """Forms in which the result is exported once training has finished."""
    gpus: Annotated[int, Field(gt=0)] | None = None
    priority: Priority = "normal"
    after: int | None = None
    after_success: int | None = None
    at: str | None = None
    """Not before this time, such as 22:30, 2026-12-24T08:00 or +3h."""
    hold: bool = False


class Change(BaseModel):
    """Further values of a verb."""

    now: bool = False
    """cancel: end it at once, without a checkpoint."""
    before: int | None = None
    """move: the job that it goes before; None: to the end."""
    priority: Priority | None = None
    """move: its new priority."""


class Setting(BaseModel):
    after_restart: bool


class Log(BaseModel):
    """A part of the output of a job or a server."""

    text: str
    offset: int
    """Where the next part begins, in bytes."""


def view(studio: Studio) -> QueueView:
    """The queue now."""
    found = look(studio.store, devices([one.gpu for one in studio.gpus.now()]))
    decisions = decide(found)
    return QueueView(
        paused=found.paused,
        after_restart=studio.store.setting(AFTER_RESTART) == "yes",
        jobs=[_view(job, found.statuses[job.id], decisions.get(job.id)) for job in recent(found)],
    )


def _view(job: Job, status: Status, decision: Decision | None) -> JobView:
    run = Run(job.folder)
    is_training = job.kind == "train" and status.state in ("running", "paused", "stopping")
    own = {name: value for name, value in vars(job).items() if name in JobView.model_fields}
    return JobView(
        **own,
        name=run.name,
        run=id_of(run.folder) if run.exists else None,
        state=status.state,
        detail=status.detail,
        why=decision.why if decision else "",
        progress=progress_of(run) if is_training else None,
    )


async def add(studio: Studio, asked: NewJobs) -> list[int]:
    """Queues a training. Raises UserError for mistakes that are found without a GPU."""
    recipe = Recipe.build(asked.recipe)
    flags = [f"--grid={key}={','.join(map(_in_grid, values))}" for key, values in asked.grid.items()]
    await run_in_threadpool(_check, studio, recipe, asked.grid)
    flags += [f"--export={form}" for form in asked.export]
    for name in ("gpus", "after", "after_success", "at"):
        if (value := getattr(asked, name)) is not None:
            flags.append(f"--{name.replace('_', '-')}={value}")
    flags += ["--hold"] if asked.hold else []
    flags = ["--priority", asked.priority, *flags, "--json"]
    added = await studio.commands.run_on_recipe(
        recipe, "queue", "add", flags=flags, online=True, **{ASKED_BY: "studio"}
    )
    return [job["id"] for job in added]


def _check(studio: Studio, recipe: Recipe, grid: dict[str, list[Any]]) -> None:
    """Raises UserError if a recipe of a grid is wrong, or names files outside the roots."""
    if math.prod(map(len, grid.values())) > MOST_OF_GRID:
        raise UserError(f"grid: more than {MOST_OF_GRID:,} combinations; give fewer values")
    studio.roots.check(recipe)
    for one in ask.in_grid(recipe, grid) if grid else ():
        studio.roots.check(one)


def _in_grid(value: Any) -> str:
    """A value as `queue add --grid` reads it. Raises UserError where it cannot."""
    text = recipe_text.dump_line(value)
    if "," in text:
        raise UserError(
            f"grid: {text[:MOST_SHOWN]} has a comma, which a grid cannot have; queue a recipe for each value"
        )
    return text


Verb = Literal["pause", "resume", "hold", "release", "cancel", "retry", "move"]


def change(studio: Studio, number: int, verb: Verb, values: Change) -> None:
    """Changes a job. Raises UserError."""
    store, job = studio.store, studio.store.job(number)
    if verb == "cancel":
        ask.cancel(store, number, values.now)
    elif verb == "move":
        if values.priority:
            store.change(job.id, priority=values.priority)
        store.move(number, values.before)
    elif verb in ("hold", "release"):
        store.change(job.id, held=verb == "hold")
    else:
        {"pause": ask.pause, "resume": ask.resume, "retry": ask.retry}[verb](store, number)
    ensure_kept(store)


def part_of(file: Path, offset: int) -> Log:
    """The text of a log from an offset in bytes on; a negative one counts from the end."""
    if not file.exists():
        return Log(text="", offset=0)
    with file.open("rb") as lines:
        end = lines.seek(0, 2)
        lines.seek(max(0, end + offset) if offset < 0 else min(offset, end))
        data = lines.read(MOST_LOG_BYTES)
        return Log(text=data.decode(errors="replace"), offset=lines.tell())


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["queue"])

    @router.get("/queue")
    def queue() -> QueueView:
        return view(studio)

    @router.post("/queue/pause")
    def pause_queue() -> QueueView:
        ask.pause(studio.store)
        return view(studio)

    @router.post("/queue/resume")
    def resume_queue() -> QueueView:
        ask.resume(studio.store)
        ensure_kept(studio.store)
        return view(studio)

    @router.post("/queue/settings")
    def set_queue(setting: Setting) -> QueueView:
        studio.store.set(AFTER_RESTART, "yes" if setting.after_restart else "no")
        return view(studio)

    @router.post("/jobs")
    async def add_jobs(asked: NewJobs) -> list[int]:
        return await add(studio, asked)

    @router.post("/jobs/{number}/{verb}")
    def change_job(number: int, verb: Verb, values: Change) -> QueueView:
        change(studio, number, verb, values)
        return view(studio)

    @router.get("/jobs/{number}/log")
    def job_log(number: int, offset: Annotated[int, Query()] = -MOST_LOG_BYTES) -> Log:
        return part_of(studio.store.file_of(studio.store.job(number).id, "log"), offset)

    return router
