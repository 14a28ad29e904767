"""Atomic file writes, JSON that is always valid, and the cache folder."""

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id
from typing import IO, Any

from tunesmith.errors import UserError


class NotAFile(UserError, OSError):
    """The path that is to be read is a FIFO, a socket or a device."""


def open_file(path: Path) -> IO[bytes]:
    """Opens a file for reading whose name was found in a folder, where anything may lie. A FIFO would wait for a
    writer, and a device may have no end. Raises NotAFile for them."""
    return open(path, "rb", opener=_regular)


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8, which is opened as by `open_file`."""
    with open(path, encoding="utf-8", opener=_regular) as file:
        return file.read()


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file, which is opened as by `open_file`."""
    with open_file(path) as file:
        return file.read()


def _regular(path: str, flags: int) -> int:
    number = os.open(path, flags | os.O_NONBLOCK)  # which does not wait
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return number
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise NotAFile(f"{path}: neither a file nor a folder, and is not read")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None if the file does not exist. Raises UserError if it is damaged."""
    try:
        return json.loads(read_text(path)) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not valid JSON: {error}") from None


def stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file's last change, which tell whether it was changed since; None if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON. A number that is not finite becomes null: `json.dumps` would write NaN, which is
    invalid."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, to write a file or a folder at. It replaces `path` once the block has
    ended without error, unless the block has moved it elsewhere; after an error nothing is left of it."""
    draft = path.with_name(f".{path.name}.{get_native_id()}.tmp")  # threads may write the same file
    _remove(draft)  # of a thread with the same number
    try:
        yield draft
        if draft.is_dir():
            _remove(path)
        if draft.exists():
            os.replace(draft, path)
    finally:
        _remove(draft)


def write_atomic(path: Path, text: str) -> None:
    """Writes a file atomically: readers see the old content or the new."""
    with replaced(path) as draft, open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def follow_umask(file: Path) -> None:
    """Gives a file the permissions that open() gives a new file. safetensors makes its files private to the owner."""
    usual = file.with_name(f".{file.name}.{os.getpid()}.mode")
    usual.touch()
    try:
        file.chmod(usual.stat().st_mode)
    finally:
        usual.unlink()


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, file_text(value))


def file_text(value: Any) -> str:
    """Returns the text that `write_json` writes for a value."""
    return json_text(value, indent=2) + "\n"


def cache_folder() -> Path:
    """Returns the folder for files that can be rebuilt: TUNESMITH_CACHE, or `tunesmith` in the user's cache folder."""
    own = os.environ.get("TUNESMITH_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tunesmith"


def state_folder() -> Path:
    """Returns the folder for what cannot be rebuilt, such as the queue: TUNESMITH_STATE, or `tunesmith` in the user's
    state folder."""
    own = os.environ.get("TUNESMITH_STATE")
    return Path(own) if own else Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "tunesmith"
