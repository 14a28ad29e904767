"""The event stream: one for a browser, whose tabs share it. It tells what changes: the machine, the queue, runs.

An event of a run carries the offset in bytes of its lines in the run's events.jsonl. A client that connects again names
the offsets that it has reached, so a reconnect continues where the last connection broke off.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent

from tunesmith.errors import UserError
from tunesmith.run import Run
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.follow import RunEvents, read_from
from tunesmith.studio.routes import jobs, machine
from tunesmith.studio.state import Studio

TICK_SECONDS = 0.5
QUEUE_SECONDS = 1.0
MACHINE_SECONDS = 2.0
RUNS_SECONDS = 5.0  # between looks at all runs, which takes longer the more there are
PING_SECONDS = 10.0


class Watch:
    """One client's stream: what it has been sent, and how to find what is new."""

    def __init__(self, studio: Studio, offsets: dict[str, int]):
        self._studio, self._offsets = studio, dict(offsets)
        self._followed: dict[str, Run] = {}
        self._states: dict[str, tuple] | None = None
        self._queue = ""
        self._due: dict[str, float] = {}

    def news(self) -> list[tuple[str, Any]]:
        """Returns the events since the last call: their names and values."""
        found: list[tuple[str, Any]] = []
        if self._is_due("runs", RUNS_SECONDS):
            found += self._look_at_runs()
        if self._is_due("machine", MACHINE_SECONDS):
            found.append(("machine", machine.state(self._studio).model_dump(mode="json")))
        if self._is_due("queue", QUEUE_SECONDS):
            found += self._look_at_queue()
        for name, run in self._followed.items():
            offset = self._offsets.get(name, 0)
            events, following = read_from(run.events_file, offset)
            if events:
                lines = RunEvents(run=name, offset=offset, next=following, events=events)
                found.append(("run", lines.model_dump(mode="json")))
            self._offsets[name] = following
        if self._is_due("ping", PING_SECONDS):
            found.append(("ping", {"time": time.time()}))
        return found

    def _is_due(self, name: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + seconds
        return True

    def _look_at_runs(self) -> list[tuple[str, Any]]:
        """Finds the runs at work, which are followed, and those that have changed."""
        states = {}
        for run in self._studio.runs:
            name = id_of(run.folder)
            with suppress(FileNotFoundError):  # it is being deleted
                states[name] = (run.is_held, run.folder.stat().st_mtime_ns)  # a result or a report changes the folder
                if run.is_held:
                    self._follow(name, run)
        before, self._states = self._states, states
        if before is None or before == states:
            return []
        changed = [name for name in states.keys() | before.keys() if states.get(name) != before.get(name)]
        return [("runs", {"changed": sorted(changed)})]

    def _look_at_queue(self) -> list[tuple[str, Any]]:
        view = jobs.view(self._studio)
        for job in view.jobs:
            if job.run and job.kind == "train" and job.state in ("starting", "running", "stopping"):
                self._follow(job.run, Run(self._studio.store.job(job.id).folder))
        text = view.model_dump_json()
        if text == self._queue:
            return []
        self._queue = text
        return [("queue", json.loads(text))]

    def _follow(self, name: str, run: Run) -> None:
        """Sends the run's events from now on, or from the offset that the client named."""
        if name in self._followed:
            return
        self._followed[name] = run
        if name not in self._offsets:
            self._offsets[name] = run.events_file.stat().st_size if run.events_file.exists() else 0


def routes(studio: Studio) -> APIRouter:
    router = APIRouter(tags=["events"])

    @router.get("/events", response_class=EventSourceResponse)
    async def events(offsets: Annotated[dict[str, int], Depends(_offsets)]) -> AsyncIterator[ServerSentEvent]:
        watch = Watch(studio, offsets)
        while not studio.stopping.is_set():
            for name, value in await run_in_threadpool(watch.news):
                identity = f"{value['run']}:{value['next']}" if name == "run" else None
                yield ServerSentEvent(event=name, data=value, id=identity)
            await asyncio.sleep(TICK_SECONDS)

    return router


def _offsets(since: Annotated[str, Query(max_length=100_000)] = "{}") -> dict[str, int]:
    """Reads the offsets that a client has reached, as JSON: {run: bytes}."""
    try:
        found = json.loads(since)
        return {str(name): max(0, int(offset)) for name, offset in found.items()}
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        raise UserError("since: not offsets of runs, like {}") from None
