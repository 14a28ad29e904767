"""The event stream: one for a browser, whose tabs share it. It tells what changes, so that a page asks for nothing
again and again.

`machine`, `queue`, `servers` and `downloads` have the whole state: at first, and when it has changed. `runs`,
`conversations` and `files` say what changed, from the first look on. `run` has new events of a run at work, with the
offset in bytes of its lines in the run's events.jsonl. A client that connects again names the offsets that it has
reached, so a reconnect continues where the last connection broke off. `problems` says what cannot be read.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import TypeAdapter

from tunesmith.errors import UserError
from tunesmith.files import stamp
from tunesmith.run import Run
from tunesmith.studio import conversations, downloads, recipe_files, servers, uploads
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.follow import RunEvents, read_from
from tunesmith.studio.routes import jobs, machine
from tunesmith.studio.state import Studio

TICK_SECONDS = 0.5
PING_SECONDS = 10.0
SERVERS, DOWNLOADS = TypeAdapter(list[servers.Server]), TypeAdapter(list[downloads.Download])

Events = list[tuple[str, Any]]


class Watch:
    """One client's stream: what it has been sent, and how to find what is new."""

    def __init__(self, studio: Studio, offsets: dict[str, int]):
        self._studio, self._offsets = studio, dict(offsets)
        self._followed: dict[str, Run] = {}
        self._places = conversations.places()
        self._downloading = False
        self._told: dict[str, str | bytes] = {}
        self._stamps: dict[str, Mapping[str, Any]] = {}
        self._problems: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._looks = (  # with the seconds between two, more for those that take longer
            (5.0, self._look_at_runs),
            (2.0, self._look_at_machine),
            (1.0, self._look_at_queue),
            (1.0, self._look_at_servers),
            (1.0, self._look_at_downloads),
            (1.0, self._look_at_conversations),
            (1.0, self._look_at_files),
        )

    def news(self) -> Events:
        """Returns the events since the last call: their names and values."""
        found: Events = []
        for seconds, look in self._looks:
            if self._is_due(look.__name__, seconds):
                try:
                    found += look()
                    self._problems.pop(look.__name__, None)
                except UserError as error:
                    self._problems[look.__name__] = str(error)
        for name, run in self._followed.items():
            offset = self._offsets.get(name, 0)
            events, following = read_from(run.events_file, offset)
            if events:
                lines = RunEvents(run=name, offset=offset, next=following, events=events)
                found.append(("run", lines.model_dump(mode="json")))
            self._offsets[name] = following
        if self._problems or "problems" in self._told:
            found += self._if_new("problems", json.dumps([*self._problems.values()]))
        if self._is_due("ping", PING_SECONDS):
            found.append(("ping", {"time": time.time()}))
        return found

    def _is_due(self, name: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + seconds
        return True

    def _if_new(self, name: str, text: str | bytes) -> Events:
        """The event with this JSON, unless it is what the client was sent last."""
        if text == self._told.get(name):
            return []
        self._told[name] = text
        return [(name, json.loads(text))]

    def _changed(self, name: str, stamps: Mapping[str, Any]) -> list[str] | None:
        """The names whose stamp differs from that of the last look; None at the first."""
        before, self._stamps[name] = self._stamps.get(name), stamps
        if before is None:
            return None
        return sorted(one for one in stamps.keys() | before.keys() if stamps.get(one) != before.get(one))

    def _look_at_machine(self) -> Events:
        return [("machine", machine.state(self._studio).model_dump(mode="json"))]

    def _look_at_runs(self) -> Events:
        """Finds the runs at work, which are followed, and those that have changed."""
        states = {}
        for run in self._studio.runs:
            name = id_of(run.folder)
            with suppress(FileNotFoundError):  # it is being deleted
                states[name] = (run.is_held, run.folder.stat().st_mtime_ns)  # a result or a report changes the folder
                if run.is_held:
                    self._follow(name, run)
        changed = self._changed("runs", states)
        return [("runs", {"changed": changed})] if changed else []

    def _look_at_queue(self) -> Events:
        view = jobs.view(self._studio)
        for job in view.jobs:
            if job.run and job.kind == "train" and job.state in ("starting", "running", "stopping"):
                self._follow(job.run, Run(self._studio.store.job(job.id).folder))
        return self._if_new("queue", view.model_dump_json())

    def _look_at_servers(self) -> Events:
        return self._if_new("servers", SERVERS.dump_json(servers.look()))

    def _look_at_downloads(self) -> Events:
        stamps = {file.name: stamp(file) for file in downloads.folder().glob("*")}
        if self._changed("downloads", stamps) == [] and not self._downloading:
            return []
        self._downloading = True  # unless it is read that none is under way
        found = downloads.downloads()
        self._downloading = any(one.state == "running" for one in found)
        return self._if_new("downloads", DOWNLOADS.dump_json(found))

    def _look_at_conversations(self) -> Events:
        """Each that has changed with the time that it then says; None if it was deleted."""
        if self._changed("places", {str(place): stamp(place) for place in self._places}) == []:
            return []
        folders = {folder.name: folder for place in self._places for folder in place.glob("*")}
        changed = self._changed("conversations", {name: stamp(folder) for name, folder in folders.items()})
        times = {name: conversations.changed(folders.get(name)) for name in changed or ()}
        return [("conversations", times)] if times else []

    def _look_at_files(self) -> Events:
        """The folders that the page writes to. What else changes in the roots is not looked for."""
        root = self._studio.roots.folders[0]
        changed = self._changed("files", {name: stamp(root / name) for name in (recipe_files.FOLDER, uploads.FOLDER)})
        return [("files", {"changed": changed})] if changed else []

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
