"""Commands of tunesmith that the studio runs as processes of their own: what takes long, much memory, or torch."""

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunesmith.errors import CHILD_DIED, UserError


async def run_command(*arguments: str, folder: Path, **environment: str) -> Any:
    """Runs a command, such as `plan recipe.yaml --json`, in a folder and returns the JSON that it prints. A request
    that is broken off ends the command. Raises UserError with the command's own message."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tunesmith", *arguments),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        raise
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise UserError(message_in(lines[-1]) if lines else CHILD_DIED)
    return json.loads(output)


def message_in(line: str) -> str:
    """The message in the last line that a command which failed wrote."""
    return line.removeprefix("tunesmith: ").removeprefix("error: ")
