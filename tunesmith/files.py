"""Atomic file writes, JSON that is always valid, and the cache folder."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tunesmith.errors import UserError


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file, or None if the file does not exist. Raises UserError if it is damaged."""
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not valid JSON: {error}") from None


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
def replacing(path: Path, binary: bool = False) -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces `path` once the block has ended without error and the data is on disk."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb" if binary else "w", encoding=None if binary else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Writes a file atomically: readers see the old content or the new."""
    with replacing(path) as file:
        file.write(text)


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
