"""Commands of tunesmith that the studio runs as processes of their own: what takes long, much memory, or torch."""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fastapi import HTTPException, Request

from tunesmith.errors import CHILD_DIED, UserError
from tunesmith.recipe import Recipe
from tunesmith.studio import parent

Answer = TypeVar("Answer")
OFFLINE = {"HF_HUB_OFFLINE": "1"}  # the environment of commands that must download nothing
CLIENT_GONE = 499  # the status that nginx logs for it


class CommandFailed(UserError):
    """A command's own message, and the JSON that it printed before, if any."""

    def __init__(self, message: str, output: Any = None):
        super().__init__(message)
        self.output = output


async def run_command(*arguments: str, folder: Path, **environment: str) -> Any:
    """Runs a command, such as `plan recipe.yaml --json`, in a folder and returns the JSON that it prints. A request
    that is broken off ends the command, and so does the end of the studio. Only `queue`, which changes something, is
    then brought to its end. Raises CommandFailed."""
    if any("\0" in argument for argument in arguments):
        raise UserError("a text has a character that no command takes")
    if arguments[0] != "queue":
        environment |= {parent.VARIABLE: "1"}
    standard_input, held_open = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "tunesmith", *arguments),
            cwd=folder,
            start_new_session=True,  # so that its own processes end with it
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
            stdin=standard_input,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await _output_of(process)
    finally:
        os.close(standard_input)
        os.close(held_open)
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        message = message_in(lines[-1]) if lines else CHILD_DIED
        with suppress(ValueError):
            raise CommandFailed(message, json.loads(output))
        raise CommandFailed(message)
    return json.loads(output)


async def _output_of(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Returns all that a process writes to its standard output and error. A cancellation ends the process."""
    try:
        return await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise


async def run_on_recipe(
    recipe: Recipe, *command: str, flags: Sequence[str] = (), folder: Path, **environment: str
) -> Any:
    """As `run_command`, with the file of a recipe between the command and its flags. In messages it is "the recipe"."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "recipe.yaml"
        file.write_text(recipe.dump(), "utf-8")
        try:
            return await run_command(*command, str(file), *flags, folder=folder, **environment)
        except CommandFailed as problem:
            message = str(problem).replace(f"{file}: ", "").replace(str(file), "the recipe")
            raise CommandFailed(message, problem.output) from None


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
