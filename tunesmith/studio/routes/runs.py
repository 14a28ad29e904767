"""Runs: their list, one of them with its curves and files, and how people change them."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from tunesmith import recipe_text
from tunesmith.errors import UserError
from tunesmith.evaluate.summary import ending, flatten, incomparable
from tunesmith.files import open_file, read_json, read_text
from tunesmith.finetune import control
from tunesmith.jobs import ask
from tunesmith.jobs.deletion import Deletion, delete, deletion_of
from tunesmith.jobs.keeper import ensure_kept
from tunesmith.run import Run
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.curves import Curves, Histories, History, X
from tunesmith.studio.follow import RunEvents, read_from
from tunesmith.studio.progress import Progress, progress_of
from tunesmith.studio.recipe_files import RecipeText
from tunesmith.studio.state import Studio


class RunRow(BaseModel):
    """A run in the list."""

    id: str
    name: str
    folder: str
    status: str
    """not started, running, paused, cut off, or the reason why it stopped."""
    error: str | None = None
    method: str | None = None
    adapter: str | None = None
    base_model: str | None = None
    steps_done: int
    steps: int | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    exact_match_before: float | None = None
    exact_match_after: float | None = None
    seconds: float | None = None
    kwh: float | None = None
    price: float | None = None
    started: str | None = None
    held: bool
    """Whether a process works on it."""
    has_result: bool


class Comparison(BaseModel):
    """A figure of the plan beside the one that was measured."""

    name: Literal["tokens_per_second", "memory_bytes", "seconds", "kwh"]
    predicted: float | None
    measured: float | None


class RunView(BaseModel):
    """One run."""

    row: RunRow
    verdict: str
    tone: str
    """better, worse, unclear, or empty."""
    ending: str
    recipe: dict[str, Any]
    recipe_yaml: str
    plan: dict[str, Any] | None
    compared: list[Comparison]
    """The plan against what happened."""
    evaluation: dict[str, Any] | None
    """As eval.json."""
    provenance: dict[str, Any] | None
    warnings: dict[str, int]
    energy: str
    progress: Progress | None
    wish: str
    """run, pause or stop: the last one for a run at work."""
    job: int | None
    """Its job in the queue."""
    commands: dict[str, str]
    """Commands of the terminal that do the same: resume, chat, export."""


class LedgerPart(BaseModel):
    """Rows of the data that were left out or changed, each with its file and line."""

    rows: list[dict[str, Any]]
    total: int


class Address(BaseModel):
    url: str


class Difference(BaseModel):
    """A key of the recipes that differs, with the value in each run."""

    key: str
    values: list[Any]


class Compared(BaseModel):
    """Runs side by side."""

    runs: list[RunRow]
    differences: list[Difference]
    notes: list[str]
    """Why their losses cannot be compared."""
    evaluations: list[dict[str, Any] | None]


def row(studio: Studio, run: Run) -> RunRow:
    """A run's line in the list. One that cannot be read says why."""
    facts: dict[str, Any] = {"name": run.name, "status": "unreadable", "steps_done": 0, "has_result": False}
    try:
        facts = studio.runs.facts(run)
    except UserError as problem:
        facts["error"] = str(problem)
    known = {name: value for name, value in facts.items() if name in RunRow.model_fields}
    return RunRow(**known, id=id_of(run.folder), folder=str(run.folder), held=run.is_held)


def view(studio: Studio, run: Run, history: History) -> RunView:
    """One run without its curves."""
    facts = studio.runs.facts(run)
    folder = str(run.folder)
    return RunView(
        row=row(studio, run),
        verdict=facts["verdict"],
        tone=facts["tone"],
        ending=ending(facts),
        recipe=recipe_text.read(run.recipe_file),
        recipe_yaml=read_text(run.recipe_file),
        plan=read_json(run.plan_file),
        compared=_compared(run, facts, history),
        evaluation=read_json(run.eval_file),
        provenance=read_json(run.provenance_file),
        warnings=facts["warnings"],
        energy=facts["energy"],
        progress=progress_of(run) if run.is_held else None,
        wish=control.wish_of(run) if run.is_held else "run",
        job=next((job.id for job in studio.store.jobs() if job.kind == "train" and job.folder == folder), None),
        commands={name: f"tunesmith {name} {folder}" for name in ("resume", "chat", "export")},
    )


def _compared(run: Run, facts: dict[str, Any], history: History) -> list[Comparison]:
    predicted = (read_json(run.plan_file) or {}).get("predicted") or {}
    needs = [need["bytes"] for need in predicted.get("needs") or []]
    return [
        Comparison(
            name="tokens_per_second", predicted=predicted.get("tokens_per_second"), measured=history.settled_speed()
        ),
        Comparison(name="memory_bytes", predicted=max(needs, default=None), measured=history.peak_bytes()),
        Comparison(name="seconds", predicted=predicted.get("seconds"), measured=facts["seconds"]),
        Comparison(name="kwh", predicted=predicted.get("kwh"), measured=facts["kwh"]),
    ]


def change(studio: Studio, run: Run, verb: Literal["pause", "continue", "stop", "resume"]) -> None:
    """Pauses, continues, stops or resumes a run. Raises UserError."""
    if verb == "resume":
        ask.resume_run(studio.store, run)
        ensure_kept(studio.store)
    else:
        control.request(run, "run" if verb == "continue" else verb)


def compare(studio: Studio, runs: list[Run]) -> Compared:
    """Puts runs side by side."""
    recipes = [flatten(recipe_text.read(run.recipe_file)) for run in runs]
    differences = []
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        values = [recipe.get(key) for recipe in recipes]
        if key not in ("name", "output") and any(value != values[0] for value in values):
            differences.append(Difference(key=key, values=values))
    return Compared(
        runs=[row(studio, run) for run in runs],
        differences=differences,
        notes=incomparable(runs),
        evaluations=[read_json(run.eval_file) for run in runs],
    )


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["runs"])
    histories = Histories()

    @router.get("/runs")
    def all_runs() -> list[RunRow]:
        found = [row(studio, run) for run in studio.runs]
        studio.runs.save()
        return found

    @router.get("/runs/{name}")
    def one_run(name: str) -> RunView:
        asked = studio.runs.open(name)
        with histories.of(asked.events_file) as history:
            return view(studio, asked, history)

    @router.get("/runs/{name}/curves")
    def run_curves(
        name: str,
        x: X = "step",
        pixels: Annotated[int, Query(ge=10, le=4000)] = 800,
        low: float | None = None,
        high: float | None = None,
        smoothing: Annotated[float, Query(ge=0, lt=1)] = 0.0,
    ) -> Curves:
        with histories.of(studio.runs.open(name).events_file) as history:
            return history.curves(x, pixels, low, high, smoothing)

    @router.get("/runs/{name}/events")
    def run_events(name: str, since: Annotated[int, Query(ge=0)] = 0) -> RunEvents:
        found, following = read_from(studio.runs.open(name).events_file, since)
        return RunEvents(run=name, offset=since, next=following, events=found)

    @router.get("/runs/{name}/history")
    def run_history(name: str) -> RunEvents:
        """The events of a run without its steps."""
        with histories.of(studio.runs.open(name).events_file) as known:
            return RunEvents(run=name, offset=0, next=known.offset, events=known.others)

    @router.get("/runs/{name}/again")
    def run_again(name: str) -> RecipeText:
        """The recipe for another run like this one, without what is a default."""
        values = studio.runs.open(name).recipe.own_values()
        values.pop("name", None)  # a folder of that name is there
        return RecipeText(yaml=recipe_text.dump(values))

    @router.get("/runs/{name}/ledger")
    def run_ledger(name: str, offset: Annotated[int, Query(ge=0)] = 0) -> LedgerPart:
        return _ledger(studio.runs.open(name), offset)

    @router.get("/runs/{name}/deletion")
    def run_deletion(name: str) -> Deletion:
        return deletion_of(studio.store, studio.runs.open(name), lambda: studio.runs)

    @router.delete("/runs/{name}")
    def delete_run(name: str) -> Deletion:
        return delete(studio.store, studio.runs.open(name), lambda: studio.runs)

    @router.post("/runs/{name}/report")
    def run_report(name: str) -> Address:
        return Address(url=studio.reports.add(studio.runs.open(name)))

    @router.post("/runs/{name}/{verb}")
    def change_run(name: str, verb: Literal["pause", "continue", "stop", "resume"]) -> RunView:
        asked = studio.runs.open(name)
        change(studio, asked, verb)
        with histories.of(asked.events_file) as history:
            return view(studio, asked, history)

    @router.get("/compare")
    def compare_runs(runs: Annotated[list[str], Query(min_length=2, max_length=12)]) -> Compared:
        return compare(studio, [studio.runs.open(name) for name in runs])

    return router


def _ledger(run: Run, offset: int, most: int = 200) -> LedgerPart:
    rows, total = [], 0
    if not run.ledger_file.exists():  # the run is not prepared
        return LedgerPart(rows=rows, total=total)
    with open_file(run.ledger_file) as lines:
        for total, line in enumerate(lines, 1):
            if offset < total <= offset + most:
                rows.append(json.loads(line))
    return LedgerPart(rows=rows, total=total)
