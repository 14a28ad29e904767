"""The files of a folder, as the page's path boxes show them."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from tunesmith.data.file_types import DATA_ENDINGS, TEXT_ENDINGS, ending
from tunesmith.errors import UserError
from tunesmith.run import Run
from tunesmith.studio.recipe_files import is_recipe
from tunesmith.studio.roots import Roots

MOST_ENTRIES = 5_000

Kind = Literal["folder", "run", "model", "adapter", "gguf", "recipe", "data", "text", "other"]


class Entry(BaseModel):
    """A file or folder."""

    name: str
    path: str
    """As recipes name it."""
    kind: Kind
    bytes: int | None
    """None for folders."""
    modified: float
    """Unix seconds."""


class Listing(BaseModel):
    """The content of a folder."""

    path: str
    """The folder's; `.` is the first root."""
    parent: str | None
    """None for a root."""
    roots: list[str]
    """All roots, the studio's own folder first."""
    entries: list[Entry]
    """Folders first, each by name."""
    is_cut: bool
    """Whether the folder has more than are here."""


def list_folder(roots: Roots, path: str) -> Listing:
    """Lists what is visible in a folder. Raises UserError."""
    folder = roots.resolve(path)
    entries, count = [], 0
    try:
        with os.scandir(folder) as found:
            for one in found:
                count += 1
                if count > MOST_ENTRIES:
                    break
                if entry := _entry(roots, folder / one.name):
                    entries.append(entry)
    except OSError as error:
        raise UserError(f"{path}: cannot be listed: {error.strerror}") from None
    return Listing(
        path=roots.shown(folder),
        parent=None if folder in roots.folders else roots.shown(folder.parent),
        roots=[roots.shown(root) for root in roots.folders],
        entries=sorted(entries, key=lambda entry: (entry.bytes is not None, entry.name.casefold(), entry.name)),
        is_cut=count > MOST_ENTRIES,
    )


def kind_of(path: Path) -> Kind:
    """The kind of a file or folder, by its name and what lies in it."""
    if path.is_dir():
        if Run(path).exists:
            return "run"
        if (path / "adapter_config.json").is_file():
            return "adapter"
        return "model" if (path / "config.json").is_file() else "folder"
    if path.suffix.lower() == ".gguf":
        return "gguf"
    if is_recipe(path):
        return "recipe"
    found = ending(path)
    return "data" if found in DATA_ENDINGS else "text" if found in TEXT_ENDINGS else "other"


def _entry(roots: Roots, path: Path) -> Entry | None:
    """None for what is hidden, leads out of the roots, or is neither file nor folder."""
    try:
        path.name.encode()  # a name that is not UTF-8 cannot be sent
        roots.resolve(path)
        if path.name.startswith(".") or not (path.is_dir() or path.is_file()):
            return None
        status = path.stat()
        return Entry(
            name=path.name,
            path=roots.shown(path),
            kind=kind_of(path),
            bytes=None if path.is_dir() else status.st_size,
            modified=status.st_mtime,
        )
    except (UserError, OSError, UnicodeEncodeError):
        return None
