"""Commands of tunesmith that the studio runs as processes of their own: what takes long, much memory, or torch."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fastapi import HTTPException, Request

from tunesmith.errors import CHILD_DIED, UserError
from tunesmith.recipe import Recipe
from tunesmith.studio.warm import OFFLINE, Ended, WarmProcess, python_path

Answer = TypeVar("Answer")
CLIENT_GONE = 499  # the status that nginx logs for it


class CommandFailed(UserError):
    """A command's own message, and the JSON that it printed before, if any."""

    def __init__(self, message: str, output: Any = None):
        super().__init__(message)
        self.output = output


def refuse_if_offline() -> None:
    """Raises UserError if the user's environment says that nothing is downloaded."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError("HF_HUB_OFFLINE is set, so nothing is downloaded; start the studio without it")


class Commands:
    """The commands of one studio. Each ends with its request. Without a warm process each is a process of its own."""

    def __init__(self, folder: Path, warm: WarmProcess | None = None):
        self._folder, self._warm = folder, warm

    async def plan(self, recipe: Recipe, flags: Sequence[str]) -> Any:
        """Returns the plan of a recipe as JSON. Raises CommandFailed."""
        if self._warm:
            await self._warm.ready()
        return await self.run_on_recipe(recipe, "plan", flags=[*flags, "--json"])

    def prepare(self) -> None:
        """Starts what makes commands fast, which takes some seconds. Those that are run before do not wait for it."""
        if self._warm:
            self._warm.start()

    async def run(self, *arguments: str, online: bool = False, **environment: str) -> Any:
        """Runs a command, such as `plan recipe.yaml --json`, in the studio's folder and returns the JSON that it
        prints. It downloads nothing unless it is `online`. Raises CommandFailed."""
        if any("\0" in argument for argument in arguments):
            raise UserError("a text has a character that no command takes")
        if online or environment:
            return _result(*await self._run_alone(arguments, environment))
        found = await self._warm.run(arguments, self._folder) if self._warm else None
        self.prepare()
        return _result(*(found or await self._run_alone(arguments, OFFLINE)))

    async def run_on_recipe(
        self, recipe: Recipe, *command: str, flags: Sequence[str] = (), online: bool = False, **environment: str
    ) -> Any:
        """As `run`, with the file of a recipe between the command and its flags. In messages it is "the recipe"."""
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "recipe.yaml"
            file.write_text(recipe.dump(), "utf-8")
            try:
                return await self.run(*command, str(file), *flags, online=online, **environment)
            except CommandFailed as problem:
                message = str(problem).replace(f"{file}: ", "").replace(str(file), "the recipe")
                raise CommandFailed(message, problem.output) from None

    async def _run_alone(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Ended:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "tunesmith", *arguments),
            cwd=self._folder,
            start_new_session=True,  # so that its own processes end with it
            env=os.environ | python_path() | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = await process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        return Ended(process.returncode or 0, output.decode(), errors.decode(errors="replace"))


def _result(status: int, output: str, errors: str) -> Any:
    """The JSON that a command printed. Raises CommandFailed with its message if it failed."""
    if not status:
        return json.loads(output)
    lines = errors.strip().splitlines()
    message = message_in(lines[-1]) if lines else CHILD_DIED
    with suppress(ValueError):
        raise CommandFailed(message, json.loads(output))
    raise CommandFailed(message)


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Does work for a request, and cancels it once its client has gone away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HTTPException(CLIENT_GONE, "the client went away")
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def message_in(line: str) -> str:
    """The message in the last line that a command which failed wrote."""
    return line.removeprefix("tunesmith: ").removeprefix("error: ")
