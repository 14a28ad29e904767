"""A studio that tests call over HTTP, and servers that it finds."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from tests.serve.standin import StandIn
from tunesmith.jobs.store import Store
from tunesmith.serve.registry import ServedModel, registered
from tunesmith.studio.app import guarded, make_app
from tunesmith.studio.catalogue import Catalogue
from tunesmith.studio.commands import Commands
from tunesmith.studio.guard import TOKEN_HEADER
from tunesmith.studio.roots import Roots
from tunesmith.studio.state import Studio

TOKEN = "a token"


def studio_in(folder: Path) -> Studio:
    """A studio that was started in a folder, whose runs are in `runs`."""
    store = Store()
    return Studio(folder, store, Roots([folder]), Catalogue([folder / "runs"], store), Commands(folder))


@contextmanager
def calling(studio: Studio) -> Iterator[httpx.Client]:
    """A client of the studio's server, which is in this process."""
    config = uvicorn.Config(
        guarded(make_app(studio), TOKEN, ["localhost"]), port=0, log_level="error", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        headers = {TOKEN_HEADER: TOKEN, "Content-Type": "application/json"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api", headers=headers, timeout=60) as client:
            yield client
    finally:
        studio.stopping.set()
        server.should_exit = True
        thread.join()


@contextmanager
def standing_in(key: str | None = None, paths: Sequence[Path] = (), **facts: bool) -> Iterator[StandIn]:
    """A stand-in for a server of paths, with the entry that a real one has. All its models have the facts."""
    with StandIn() as server, registered("127.0.0.1", server.server_address[1], paths, key) as registration:
        for one in server.models:
            one["tunesmith"] |= facts
        models = [(one["id"], one["tunesmith"]) for one in server.models]
        registration.update(
            state="ready",
            models=tuple(ServedModel(name, **facts) for name, facts in models),
        )
        server.key = key
        yield server


def until(found, seconds: float = 60):
    """Waits for a function to return something true, and returns it."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "it never was"
        time.sleep(0.05)
    return value
