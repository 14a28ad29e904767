"""Starts and ends the studio's web server."""

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import uvicorn

from tunesmith.jobs.store import Store
from tunesmith.studio.app import guarded, make_app
from tunesmith.studio.catalogue import Catalogue
from tunesmith.studio.commands import Commands
from tunesmith.studio.roots import Roots
from tunesmith.studio.state import Studio
from tunesmith.studio.warm import WarmProcess

SECONDS_TO_END = 2  # for answers that are being sent when the studio ends


def run_studio(
    folder: Path,
    roots: Sequence[Path],
    outputs: Sequence[Path],
    bound: socket.socket,
    token: str,
    hosts: Sequence[str],
    read_only: bool,
    upload_bytes: int,
    ready: Callable[[], None],
) -> None:
    """Serves until SIGINT or SIGTERM. Calls `ready` once it accepts requests."""
    store = Store()
    catalogue = Catalogue([folder / output for output in outputs], store)
    studio = Studio(folder, store, Roots(roots), catalogue, Commands(folder, WarmProcess()), upload_bytes)
    app = guarded(make_app(studio), token, hosts, read_only)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_END)
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after its shutdown
        Server(config, studio, ready).run(sockets=[bound])


class Server(uvicorn.Server):
    """Says when it is ready, and ends the open event streams at shutdown, which would hold it up."""

    def __init__(self, config: uvicorn.Config, studio: Studio, ready: Callable[[], None]):
        super().__init__(config)
        self._studio, self._ready = studio, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame) -> None:
        self._studio.stopping.set()
        super().handle_exit(sig, frame)
