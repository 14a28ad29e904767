"""The servers of this user that run on this machine, also those that were started in a terminal.

`tunesmith serve` keeps a file in `servers/` of the state folder, with a lock on it, while it lives. Each line has the
whole entry; the last one holds. The kernel frees the lock when the process ends, also when it is killed: an entry whose
lock is free is stale, and readers remove it.

The registry is a help, not a condition: where the folder cannot be written, the server serves without an entry.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any, Literal

from tunesmith.files import json_text, state_folder
from tunesmith.run import new_locked, process_start, try_lock
from tunesmith.serve.binding import is_address, is_loopback

NAME = "TUNESMITH_SERVER"  # the environment variable in which the studio names the server that it starts
EVERY_ADDRESS = ("0.0.0.0", "::")

State = Literal["loading", "ready", "stopping"]


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has. `context` is in tokens. `tools`, `reasoning` and `images` say whether it can be given
    tools, may reason before it answers, and takes images."""

    name: str
    kind: str
    base: str
    context: int
    tools: bool = False
    reasoning: bool = False
    images: bool = False


@dataclass(frozen=True)
class Entry:
    """A server's facts."""

    id: str
    pid: int
    started: int | None
    """When the process began, as `run.process_start`."""
    since: float
    """Unix seconds."""
    host: str
    port: int
    paths: list[str]
    """The runs, folders and files that it was asked to serve."""
    needs_key: bool
    key: str | None
    """The key, if the studio chose it."""
    state: State = "loading"
    detail: str = ""
    """While it stops: what it waits for."""
    models: tuple[ServedModel, ...] = ()
    devices: tuple[str, ...] = ()
    """Names of devices, as in leases.py."""

    @property
    def url(self) -> str:
        """The address for clients on this machine."""
        return url_of("127.0.0.1" if self.host in EVERY_ADDRESS else self.host, self.port)

    @property
    def local_url(self) -> str | None:
        """The address on this machine's loopback interface; None if it does not listen there."""
        if self.host in (*EVERY_ADDRESS, "localhost"):
            return url_of("127.0.0.1", self.port)
        return self.url if is_address(self.host) and is_loopback(self.host) else None


def url_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Registration:
    """The entry of this process."""

    def __init__(self, entry: Entry, file: IO[bytes] | None):
        self._entry, self._file = entry, file
        self.update()

    def update(self, **values: Any) -> None:
        """Changes fields of the entry."""
        self._entry = replace(self._entry, **values)
        if self._file:
            with suppress(OSError):
                self._file.write(json_text(asdict(self._entry)).encode() + b"\n")


@contextmanager
def registered(host: str, port: int, paths: Sequence[Path], key: str | None) -> Iterator[Registration]:
    """Keeps an entry for this process until the block ends."""
    pid, name = os.getpid(), os.environ.get(NAME, "")
    started = process_start(pid)
    entry = Entry(
        id=name or f"{pid}-{started or time.time_ns()}",
        pid=pid,
        started=started,
        since=time.time(),
        host=host,
        port=port,
        paths=[str(path.absolute()) if path.exists() else str(path) for path in paths],
        needs_key=key is not None,
        key=key if name else None,
    )
    file = new_locked(file_of(entry.id))
    try:
        yield Registration(entry, file)
        forget(entry.id)
    finally:
        if file:
            file_of(entry.id).unlink(missing_ok=True)
            file.close()


def entries() -> list[Entry]:
    """Returns the servers that live, the oldest first, and removes the files of those that have ended."""
    found = []
    for path in servers_folder().glob("*.jsonl"):
        with suppress(FileNotFoundError), path.open("rb") as file:  # its server may end now
            is_alive = try_lock(file, fcntl.LOCK_SH) is False
            entry = _read(file)
            if is_alive:
                found += [entry] if entry else []
            elif entry and entry.state == "stopping":  # it was asked to end
                forget(entry.id)
            else:
                path.unlink(missing_ok=True)
    return sorted(found, key=lambda entry: entry.since)


def servers_folder() -> Path:
    return state_folder() / "servers"


def file_of(name: str, ending: str = "jsonl") -> Path:
    """A file of a server: its entry (jsonl) and, if the studio started it, how (start) and what it writes (log)."""
    return servers_folder() / f"{name}.{ending}"


def forget(name: str) -> None:
    """Removes all files of a server."""
    for ending in ("jsonl", "start", "log"):
        with suppress(OSError):
            file_of(name, ending).unlink()


def _read(file: IO[bytes]) -> Entry | None:
    """The last whole line of a file; None if there is none. Another version of Tunesmith may write more."""
    for line in reversed(file.read().split(b"\n")[:-1]):
        try:
            values = json.loads(line)
            known = {field.name: values[field.name] for field in fields(Entry)}
            return Entry(**known | {"models": tuple(ServedModel(**model) for model in known["models"])})
        except (ValueError, KeyError, TypeError):
            continue
    return None
