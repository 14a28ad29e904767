"""Training rows from conversations, in files that `tunesmith data` reads: answers that are right as `messages`, and
pairs of answers as `prompt`, `chosen` and `rejected`."""

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.files import json_text

Message = dict[str, Any]
RIGHT, PREFERRED = "chat-rows.jsonl", "chat-preferences.jsonl"  # in the folder of uploads, where no upload has them


def right(prompt: Sequence[Message], answer: Message) -> dict[str, Any]:
    """A row whose last answer is learned. Earlier ones are not, because the user has not said that they are right."""
    before = [message | ({"weight": 0} if message["role"] == "assistant" else {}) for message in prompt]
    return {"messages": [*before, answer]}


def preferred(prompt: Sequence[Message], chosen: Message, rejected: Message) -> dict[str, Any]:
    return {"prompt": [*prompt], "chosen": [chosen], "rejected": [rejected]}


def append(file: Path, row: dict[str, Any]) -> tuple[int, bool]:
    """Adds a row at the end of a file. Returns its line, and whether it is new: the same row is not added twice.
    Raises UserError if the file has rows of another kind, or is a link."""
    if file.parent.is_symlink() or file.is_symlink():
        raise UserError(f"{file}: a link; the studio writes no files through links")
    try:
        file.parent.mkdir(exist_ok=True)
        with file.open("ab+") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            opened.seek(0)
            lines = opened.read().splitlines(keepends=True)
            _check(file, lines, row)
            for number, line in enumerate(lines, 1):
                if _parsed(line) == row:
                    return number, False
            ended = not lines or lines[-1].endswith(b"\n")
            opened.write((b"" if ended else b"\n") + json_text(row).encode() + b"\n")
            opened.flush()
            os.fsync(opened.fileno())
            return len(lines) + 1, True
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None


def _check(file: Path, lines: Sequence[bytes], row: dict[str, Any]) -> None:
    first = next((line for line in lines if line.strip()), None)
    columns = _parsed(first) if first else row
    if not isinstance(columns, dict) or not row.keys() <= columns.keys():
        raise UserError(f"{file}: has other rows than {', '.join(row)}; move it away")


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
