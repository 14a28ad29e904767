"""`tunesmith queue`: jobs that this workstation does one after another."""

import os
import time
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cyclopts import App, Parameter
from rich import print as print_rich
from rich.table import Table
from rich.text import Text

from tunesmith.cli.parameters import Json, print_json
from tunesmith.cli.train import RecipeFlags, chosen
from tunesmith.errors import UserError, quoted
from tunesmith.export.forms import name_of
from tunesmith.jobs import ask, process
from tunesmith.jobs.decision import Decision, decide
from tunesmith.jobs.keeper import AFTER_RESTART, devices, ensure_kept, look, recent
from tunesmith.jobs.state import AT_WORK, Status
from tunesmith.jobs.store import ASKED_BY, Job, Priority, Store
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.units import duration, moment

queue = App(name="queue", help="Have this workstation do jobs one after another.")
STYLES = {"running": "bold green", "failed": "bold red", "interrupted": "yellow", "finished": "green"}
SECONDS_BETWEEN_READS = 0.5  # of a log


@queue.command
def add(
    recipe: Path | None = None,
    *,
    flags: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
    grid: tuple[str, ...] = (),
    export: tuple[str, ...] = (),
    gpus: int | None = None,
    priority: Priority = "normal",
    after: int | None = None,
    after_success: int | None = None,
    at: str | None = None,
    hold: Annotated[bool, Parameter(negative="")] = False,
    notify: str = "",
    as_json: Json = False,
) -> None:
    """Queue the training of a recipe, or of a run's recipe with other values. Every field of a recipe is a flag.

    Args:
        recipe: The recipe, or a run whose recipe is used again.
        grid: Several values for one key, such as train.learning_rate=1e-4,2e-4: one job for each combination.
        export: Forms in which the result is exported once training has finished, such as gguf.
        gpus: Take so many GPUs. By default as train.processes says, else all.
        priority: low, normal or high. A job of high priority stops others where it needs their GPUs; they save a
            checkpoint first, and continue after it.
        after: Start after the end of this job.
        after_success: Start after this job, if it has finished without an error.
        at: Do not start before this time, like 22:30 or 2026-12-24T08:00, or after a time from now, like +3h.
        hold: Do not start until `queue release`.
        notify: A command that runs when the job has ended. TUNESMITH_JOB, TUNESMITH_STATE, TUNESMITH_RUN and
            TUNESMITH_DETAIL say what has happened.
    """
    values, store = chosen(flags), Store()
    if not recipe and not values:
        raise UserError("queue add: no recipe; name one, or a run, or --model and --data")
    before = after if after_success is None else after_success
    if before is not None:
        store.job(before)
    first = _recipe(recipe, values)
    recipes = [*ask.in_grid(first, _grid(grid))] if grid else [first]
    wishes = {
        "gpus": gpus or first.train.processes,
        "priority": priority,
        "after": before,
        "after_success": after_success is not None,
        "not_before": _time(at) if at else None,
        "held": hold,
        "notify": notify,
        "asked_by": os.environ.get(ASKED_BY, "terminal"),
        "batch": f"{moment(time.time())} {', '.join(grid)}" if grid else "",
    }
    forms = [name_of(form) for form in export]
    jobs = [ask.add_training(store, each, **wishes) for each in recipes]
    of_exports = {name: wishes[name] for name in ("priority", "asked_by", "batch")}
    jobs += [
        store.add("export", Path(job.folder), ["--to", form], after=job.id, after_success=True, **of_exports)
        for job, form in product(jobs, forms)
    ]
    ensure_kept(store)
    if as_json:
        return print_json([vars(job) for job in jobs])
    for job in jobs:
        print(f"job {job.id}  {job.kind} {job.folder}")
    print("\n`tunesmith queue list` shows the queue")


def _recipe(name: Path | None, values: dict[str, Any]) -> Recipe:
    if not name:
        return Recipe.build(values, "queue add")
    run = Run.find(name)
    if not run:
        return Recipe.load(name, values)
    return Recipe.load(run.recipe_file, {"name": None} | values)


def _grid(texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """Keys of a recipe with their values."""
    found = {}
    for text in texts:
        key, is_given, values = text.partition("=")
        if not is_given or not values:
            raise UserError(f"--grid: {text} is not KEY=VALUE,VALUE, like train.learning_rate=1e-4,2e-4")
        found[key.strip()] = [yaml.safe_load(value) for value in values.split(",")]
    return found


def _time(text: str) -> float:
    """Unix seconds of a time of day, a date with a time, or +hours."""
    now = datetime.now()
    units = {"h": 3600, "m": 60}
    try:
        if text.startswith("+"):
            return time.time() + float(text[1:-1]) * units[text[-1]]
        if ":" in text and "-" not in text:
            when = datetime.combine(now.date(), datetime.strptime(text, "%H:%M").time())
            return (when if when > now else when + timedelta(days=1)).timestamp()
        return datetime.fromisoformat(text).timestamp()
    except (KeyError, ValueError, IndexError):
        raise UserError(f"--at: {text} is no time; write 22:30, 2026-12-24T08:00 or +3h") from None


@queue.command(name="list")
def list_jobs(
    *, everything: Annotated[bool, Parameter(name="--all", negative="")] = False, as_json: Json = False
) -> None:
    """List the jobs in the order in which they start.

    Args:
        everything: Also those that ended more than a week ago.
    """
    store = Store()
    found = look(store, devices())
    decisions = decide(found)
    jobs = found.jobs if everything else recent(found)
    if as_json:
        return print_json(
            [
                vars(job) | vars(found.statuses[job.id]) | {"why": decisions[job.id].why if job.id in decisions else ""}
                for job in jobs
            ]
        )
    if found.paused:
        print(f"The queue is paused: {found.paused}\n")
    if not jobs:
        print("No jobs. `tunesmith queue add RECIPE` adds one.")
        return None
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("Job", "State", "What"):
        table.add_column(name, no_wrap=name != "What", overflow="fold")
    for job in jobs:
        status = found.statuses[job.id]
        table.add_row(
            str(job.id), Text(status.state, STYLES.get(status.state, "")), _what(job, status, decisions.get(job.id))
        )
    print_rich(table)


def _what(job: Job, status: Status, decision: Decision | None) -> Text:
    """A job's command, and its progress or the reason why it waits."""
    name = Path(job.folder).name
    what = Text(f"{job.kind} {name}" + f" {' '.join(job.arguments)}" * bool(job.arguments))
    if status.state in AT_WORK and job.kind == "train":
        detail = _progress(Run(job.folder))
    elif decision:
        detail = decision.why or "starts now"
    else:
        detail = status.detail
    if detail:
        what.append(f"\n{detail}", "dim")
    return what


def _progress(run: Run) -> str:
    """The progress of a run, from its events."""
    start, steps = run.events("start", "plan"), run.events("step")
    total = start[-1]["steps"] if start else None
    if not steps or not total:
        return "preparing"
    seconds = sum(step["seconds"] for step in steps) / len(steps) * (total - steps[-1]["step"])
    return f"step {steps[-1]['step']:,} of {total:,}, about {duration(seconds)} left"


@queue.command
def pause(job: int | None = None) -> None:
    """Start no more jobs, or pause one that runs. A paused job keeps the model in memory."""
    ask.pause(Store(), job)


@queue.command
def resume(job: int | None = None, *, after_restart: Literal["yes", "no"] | None = None) -> None:
    """Start jobs again, or continue a paused one.

    Args:
        after_restart: yes: from now on the queue also continues by itself after the machine was restarted.
    """
    store = Store()
    if after_restart:
        store.set(AFTER_RESTART, after_restart)
    ask.resume(store, job)
    ensure_kept(store)


@queue.command
def move(job: int, *, before: int | None = None, priority: Priority | None = None) -> None:
    """Move a job before another one, or to the end of those of its priority.

    Args:
        priority: Another priority: low, normal or high.
    """
    store = Store()
    store.move(job, before)
    if priority:
        store.change(job, priority=priority)


@queue.command
def hold(job: int) -> None:
    """Do not start a job until it is released."""
    store = Store()
    store.change(store.job(job).id, held=True)


@queue.command
def release(job: int) -> None:
    """Release a job that is held."""
    store = Store()
    store.change(store.job(job).id, held=False)
    ensure_kept(store)


@queue.command
def cancel(job: int, *, now: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Take a job from the queue. One that runs saves a checkpoint and stops after its step.

    Args:
        now: End it at once. What it has done since the last checkpoint is lost.
    """
    ask.cancel(Store(), job, now)


@queue.command
def retry(job: int) -> None:
    """Continue a job that failed or was stopped from its last checkpoint."""
    store = Store()
    ask.retry(store, job)
    ensure_kept(store)


@queue.command
def why(job: int) -> None:
    """Say why a job waits, failed or was interrupted."""
    store = Store()
    asked = store.job(job)
    found = look(store, devices())
    status, decision = found.statuses[job], decide(found).get(job)
    if decision:
        print(f"job {job} waits: {decision.why}" if decision.why else f"job {job} starts now")
    elif status.detail:
        print(f"job {job} {status.state}: {status.detail}")
    else:
        print(
            f"job {job} is {status.state}; `tunesmith queue log {job}`, or `tunesmith runs show {quoted(asked.folder)}`"
        )


@queue.command
def log(job: int, *, follow: Annotated[bool, Parameter(negative="", alias="-f")] = False) -> None:
    """Print what a job wrote.

    Args:
        follow: Follow the output until the job ends.
    """
    store = Store()
    asked = store.job(job)
    file = store.file_of(job, "log")
    if not file.exists():
        raise UserError(f"queue log: job {job} has not started; `tunesmith queue why {job}` says why")
    with file.open(encoding="utf-8", errors="replace") as lines:
        while True:
            at_work = process.is_alive(store, asked)
            print(lines.read(), end="", flush=True)
            if not (follow and at_work):
                return
            time.sleep(SECONDS_BETWEEN_READS)
