"""The process that runs commands in forks of itself (tunesmith/cli/warm.py), whose imports are then done."""

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

OFFLINE = {"HF_HUB_OFFLINE": "1"}  # the environment of commands that must download nothing
IDLE_SECONDS = 600  # it holds 0.4 GB of memory, and 0.8 GB with a torch for CUDA


class Ended(NamedTuple):
    """A command that has ended: its exit status, and what it wrote."""

    status: int
    output: str
    errors: str


class WarmProcess:
    """Starts the process, asks it to run commands, and ends it when it is idle. Its commands download nothing."""

    def __init__(self) -> None:
        self._task: asyncio.Task | None = None
        self._started = asyncio.Event()  # set once it is ready, or has ended
        self._socket = ""  # the path of its socket while it is ready
        self._end: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Starts the process if it does not run, and puts off its end. It is ready some seconds later."""
        if not self._task or self._task.done():
            self._started = asyncio.Event()
            self._task = asyncio.create_task(self._live(self._started))
        if self._end:
            self._end.cancel()
        self._end = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._task.cancel)

    async def ready(self) -> None:
        """Starts the process if it does not run, and waits until it is ready or has failed."""
        self.start()
        await self._started.wait()

    async def run(self, arguments: Sequence[str], folder: Path) -> Ended | None:
        """Runs a command in a folder. None if the process is not ready, or ended meanwhile. If the caller is
        cancelled, the command ends."""
        if not self._socket:
            return None
        with suppress(OSError, ValueError):  # it ended
            reader, writer = await asyncio.open_unix_connection(self._socket)
            try:
                writer.write(json.dumps({"arguments": arguments, "folder": str(folder)}).encode() + b"\n")
                await writer.drain()
                return Ended(**json.loads(await reader.read()))
            finally:
                writer.close()
        return None

    async def _live(self, started: asyncio.Event) -> None:
        """The life of one process, which ends when this task is cancelled. Where it cannot be started, as with a long
        path of the folder for temporary files, commands are processes of their own."""
        try:
            with suppress(OSError), tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX) as listening:
                path = str(Path(place) / "warm")
                listening.bind(path)
                listening.listen()
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "tunesmith.cli.warm", str(listening.fileno())),
                    cwd=place,
                    pass_fds=[listening.fileno()],
                    env=os.environ | python_path() | OFFLINE,
                    stdin=asyncio.subprocess.PIPE,  # never written to: it closes when the studio ends, however it ends
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                )
                await self._until_its_end(process, path, started)
        finally:
            started.set()

    async def _until_its_end(self, process: asyncio.subprocess.Process, path: str, started: asyncio.Event) -> None:
        try:
            assert process.stdout
            if await process.stdout.readline():
                self._socket = path
            started.set()
            await process.wait()
        finally:
            self._socket = ""
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def python_path() -> dict[str, str]:
    """The environment in which a child finds the modules that this process finds."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
