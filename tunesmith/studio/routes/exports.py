"""Exports: the forms, jobs that write them, and the exports of a run with their comparison."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError

from tunesmith.errors import UserError
from tunesmith.export.forms import all_settings, name_of
from tunesmith.export.uses import commands_for, folder_of
from tunesmith.files import read_json
from tunesmith.jobs.keeper import ensure_kept
from tunesmith.jobs.state import ENDED, status_of
from tunesmith.jobs.store import Job
from tunesmith.recipe import first_problem
from tunesmith.run import Run
from tunesmith.studio.state import Studio

REPORT = "parity.json"
FAILED = ".failed"  # the ending of the folder of an export that is not the trained model


class ExportForm(BaseModel):
    """A form in which a result can be exported."""

    name: str
    settings: dict[str, Any]
    """The JSON Schema of its settings."""


class NewExport(BaseModel):
    """An export to queue."""

    form: str
    settings: dict[str, Any] = {}
    parity: bool = True
    """Whether what was written is compared with the trained model."""


class Export(BaseModel):
    """An export of a run on the disk."""

    name: str
    """The name of its folder in the run's folder."""
    form: str
    path: str
    bytes: int
    written: float
    """Unix seconds."""
    passed: bool | None
    """Whether it is the trained model; None: not compared."""
    problem: str
    report: dict[str, Any]
    """The comparison, as in parity.json."""
    commands: list[str]
    """Commands that use it."""


class ExportJob(BaseModel):
    """An export in the queue that has not succeeded yet."""

    job: int
    form: str
    state: str
    detail: str


class Exports(BaseModel):
    """All exports of a run."""

    written: list[Export]
    jobs: list[ExportJob]


def forms() -> list[ExportForm]:
    """The forms, with their settings."""
    return [
        ExportForm(name=name.replace("_", "-"), settings=settings.model_json_schema())
        for name, settings in all_settings().items()
    ]


def add(studio: Studio, run: Run, asked: NewExport) -> int:
    """Queues an export and returns its job's number. Raises UserError for what can be refused now."""
    form = name_of(asked.form).replace("_", "-")
    try:
        values = all_settings()[name_of(form)].model_validate(asked.settings)
    except ValidationError as error:
        raise UserError(f"{form}: {first_problem(error)}") from None
    arguments = ["--to", form, *_flags(values.model_dump(exclude_unset=True))]
    arguments += [] if asked.parity else ["--no-parity"]
    waiting = _jobs(studio, run)
    if any(_form(job) == form for job in waiting if job.kind == "export"):
        raise UserError(f"{form}: this export is in the queue already")
    if (folder := folder_of(run, form)).exists():
        raise UserError(f"{folder}: exists already; delete it first")
    wishes: dict[str, Any] = {"directory": str(studio.folder), "asked_by": "studio"}
    if not run.result.exists():
        training = next((job for job in waiting if job.kind == "train"), None)
        if training is None:
            raise UserError(f"{run.name} has no result yet; resume it first")
        wishes |= {"after": training.id, "after_success": True}
    job = studio.store.add("export", run.folder, arguments, **wishes)
    ensure_kept(studio.store)
    return job.id


def exports_of(studio: Studio, run: Run) -> Exports:
    """The exports of a run, and the jobs that are to write some."""
    jobs = [job for job in _all_jobs(studio, run) if job.kind == "export"]
    states = [(job, status_of(studio.store, job)) for job in jobs]
    return Exports(
        written=[_export(file) for file in sorted(run.folder.glob(f"*/{REPORT}"))],
        jobs=[
            ExportJob(job=job.id, form=_form(job), state=status.state, detail=status.detail)
            for job, status in states
            if status.state != "finished"
        ],
    )


def _export(file: Path) -> Export:
    folder, report = file.parent, {}
    with suppress(UserError):  # damaged
        report = read_json(file) or {}
    form = str(report.get("form", folder.name)).replace("_", "-")
    files = [one for one in folder.rglob("*") if one.is_file()]
    return Export(
        name=folder.name,
        form=form,
        path=str(folder.absolute()),
        bytes=sum(one.stat().st_size for one in files),
        written=file.stat().st_mtime,
        passed=False if folder.name.endswith(FAILED) else report.get("passed"),
        problem=report.get("problem") or "",
        report=report,
        commands=[] if folder.name.endswith(FAILED) else commands_for(form, folder.absolute()),
    )


def _all_jobs(studio: Studio, run: Run) -> list[Job]:
    return [job for job in studio.store.jobs() if Path(job.folder) == run.folder.absolute()]


def _jobs(studio: Studio, run: Run) -> list[Job]:
    """The run's jobs that have not ended."""
    return [job for job in _all_jobs(studio, run) if status_of(studio.store, job).state not in ENDED]


def _form(job: Job) -> str:
    """The form that an export job writes."""
    return job.arguments[job.arguments.index("--to") + 1].replace("_", "-")


def _flags(settings: dict[str, Any]) -> list[str]:
    """The flags of `tunesmith export` for settings of a form."""
    flags: list[str] = []
    for key, value in settings.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            for one in value if isinstance(value, list) else [value]:
                flags += [f"--{name}", one if isinstance(one, str) else json.dumps(one)]
    return flags


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["exports"])

    @router.get("/exports/forms")
    def export_forms() -> list[ExportForm]:
        return forms()

    @router.get("/runs/{name}/exports")
    def run_exports(name: str) -> Exports:
        return exports_of(studio, studio.runs.open(name))

    @router.post("/runs/{name}/exports")
    def add_export(name: str, asked: NewExport) -> Exports:
        run = studio.runs.open(name)
        add(studio, run, asked)
        return exports_of(studio, run)

    return router
