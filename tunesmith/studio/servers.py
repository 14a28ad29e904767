"""The servers of this machine as the studio sees them: it starts and stops them, but they do not need it to live."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
from pydantic import BaseModel

from tunesmith.errors import UserError
from tunesmith.files import read_json, write_json
from tunesmith.jobs.process import last_line
from tunesmith.run import process_start
from tunesmith.serve.registry import NAME, Entry, ServedModel, entries, file_of, forget, servers_folder
from tunesmith.studio.commands import message_in
from tunesmith.studio.warm import python_path

KEY = "TUNESMITH_API_KEY"
SECONDS_TO_STOP = 2.0  # until a server that was signalled says that it stops


class Start(BaseModel):
    """A server that the studio started, as long as it has no entry of its own, and after it has failed."""

    id: str
    pid: int
    started: int | None
    since: float
    paths: list[str]


class Server(BaseModel):
    """A server of this machine."""

    id: str
    state: str
    """loading, ready, stopping or failed."""
    detail: str
    """While it loads, the last line that it wrote; while it stops, what it waits for; once it has failed, why."""
    url: str | None
    """For clients on this machine; None until it is known."""
    pid: int
    since: float
    """Unix seconds."""
    paths: list[str]
    models: list[ServedModel]
    devices: list[str]
    needs_key: bool
    usable: bool
    """Whether the studio can ask it: it is ready, listens on this machine, and the studio knows its key."""
    has_log: bool
    """Whether the studio started it, and so has what it writes."""


def look() -> list[Server]:
    """The servers of this machine, the oldest first, and those that the studio started and that failed."""
    entered = entries()
    known = {entry.id for entry in entered}
    found = [_of_entry(entry) for entry in entered]
    begun = [read_json(file) for file in servers_folder().glob("*.start")]  # one may be dismissed meanwhile
    found += [_of_start(Start(**values)) for values in begun if values and values["id"] not in known]
    return sorted(found, key=lambda server: server.since)


def find(name: str) -> Server:
    """Raises UserError if there is no server with this id."""
    for server in look():
        if server.id == name:
            return server
    raise UserError(f"there is no server {name}; it may have ended")


def entry_of(name: str) -> Entry:
    """The entry of a server that the studio can ask. Raises UserError."""
    entry = next((entry for entry in entries() if entry.id == name), None)
    if entry is None:
        raise UserError(f"the server {find(name).id} does not answer yet")
    if entry.state == "loading":
        raise UserError(f"the server {name} is still loading its models")
    if entry.local_url is None:
        raise UserError(f"the server {name} listens on {entry.host} only, so the studio cannot reach it")
    if entry.needs_key and not entry.key:
        raise UserError(f"the server {name} needs a key that the studio does not know; start it from the studio")
    return entry


def client() -> httpx.AsyncClient:
    """For requests to servers, whose answers may take any time. It never uses a proxy."""
    return httpx.AsyncClient(timeout=httpx.Timeout(None, connect=10), trust_env=False)


def start(folder: Path, arguments: Sequence[str], paths: Sequence[str], with_key: bool) -> str:
    """Starts `tunesmith serve` in a process session of its own. Returns its id."""
    name = secrets.token_hex(4)
    servers_folder().mkdir(parents=True, exist_ok=True)
    environment = os.environ | {NAME: name, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    environment |= python_path()
    if with_key:
        environment[KEY] = secrets.token_urlsafe(24)
    with file_of(name, "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tunesmith", "serve", *paths, "--port", "0", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # so that it is no zombie once it has ended
    values = Start(
        id=name, pid=process.pid, started=process_start(process.pid), since=time.time(), paths=[*map(str, paths)]
    )
    write_json(file_of(name, "start"), values.model_dump())
    return name


def stop(name: str, now: bool) -> None:
    """Asks a server to end: it first finishes its answers, or with `now` breaks them off. Forgets one that has failed.
    Raises UserError."""
    server = find(name)
    if server.state == "failed":
        return forget(name)
    if server.state != "stopping":
        _signal(name, signal.SIGTERM)
        if server.state == "loading":  # which nothing survives
            return forget(name)
    until = time.monotonic() + SECONDS_TO_STOP
    while time.monotonic() < until and (entry := _entry(name)) and entry.state == "ready":
        time.sleep(0.02)
    if now and _entry(name):
        _signal(name, signal.SIGINT)
    return None


def _entry(name: str) -> Entry | None:
    return next((entry for entry in entries() if entry.id == name), None)


def _signal(name: str, number: signal.Signals) -> None:
    """Signals a server's process. Its number may be another process's by now, so its start is compared."""
    if entry := _entry(name):
        pid, started = entry.pid, entry.started
    else:
        begun = Start(**read_json(file_of(name, "start")) or {})
        pid, started = begun.pid, begun.started
    if process_start(pid) == started:
        os.kill(pid, number)


def _of_entry(entry: Entry) -> Server:
    usable = entry.state == "ready" and entry.local_url is not None and (not entry.needs_key or entry.key is not None)
    log = file_of(entry.id, "log")
    return Server(
        id=entry.id,
        state=entry.state,
        detail=last_line(log) if entry.state == "loading" else entry.detail,
        url=entry.url,
        pid=entry.pid,
        since=entry.since,
        paths=entry.paths,
        models=[*entry.models],
        devices=[*entry.devices],
        needs_key=entry.needs_key,
        usable=usable,
        has_log=log.exists(),
    )


def _of_start(start: Start) -> Server:
    is_alive = start.started is not None and process_start(start.pid) == start.started
    line = last_line(file_of(start.id, "log"))
    said = message_in(line)
    why = said if said != line else f"it was killed, or failed; the last that it wrote: {line or 'nothing'}"
    return Server(
        id=start.id,
        state="loading" if is_alive else "failed",
        detail=line if is_alive else why,
        url=None,
        pid=start.pid,
        since=start.since,
        paths=start.paths,
        models=[],
        devices=[],
        needs_key=False,
        usable=False,
        has_log=True,
    )
