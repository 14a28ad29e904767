"""The recipe files in the studio's folders."""

import hashlib
import re
import threading
from pathlib import Path

from pydantic import BaseModel

from tunesmith.errors import UserError
from tunesmith.files import read_bytes, write_atomic
from tunesmith.run import Run
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.roots import Roots

FOLDER = "recipes"  # of the first root, for recipes that the page saves
MOST_BYTES = 200_000
RECIPE_KEYS = (re.compile(rb"^model\s*:", re.MULTILINE), re.compile(rb"^data\s*:", re.MULTILINE))

_saving = threading.Lock()  # so that no text comes between the look at a file and its replacement


class RecipeFile(BaseModel):
    """A recipe on the disk."""

    id: str
    name: str
    path: str
    """Relative to the studio's folder where it is inside."""
    modified: float
    """Unix seconds."""
    version: str
    """A digest of its text."""


class RecipeText(BaseModel):
    """The text of a recipe."""

    yaml: str
    version: str = ""
    """A digest of the text of its file; empty if it has none."""


class Changed(UserError):
    """A recipe is there that its writer has not seen."""


def is_recipe(file: Path) -> bool:
    """Whether a file looks like a recipe: YAML with `model` and `data`."""
    try:
        if file.suffix not in (".yaml", ".yml") or file.stat().st_size > MOST_BYTES:
            return False
        text = read_bytes(file)
    except OSError:
        return False
    return all(key.search(text) for key in RECIPE_KEYS)


def recipe_files(roots: Roots) -> list[RecipeFile]:
    """The recipes in the roots, without those that belong to runs; the newest first."""
    folders = [folder for folder in roots.walk() if not Run(folder).exists]
    files = [file for folder in folders for pattern in ("*.yaml", "*.yml") for file in folder.glob(pattern)]
    shown = [file for file in files if not file.name.startswith(".") and not file.is_symlink() and is_recipe(file)]
    return sorted((_described(roots, file) for file in shown), key=lambda one: -one.modified)


def read(roots: Roots, name: str) -> RecipeText:
    """Returns the recipe with this id. Raises UserError."""
    for one in recipe_files(roots):
        if one.id == name:
            try:
                content = read_bytes(roots.resolve(one.path))
                return RecipeText(yaml=content.decode("utf-8"), version=_version(content))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{one.path}: cannot be read: {error}") from None
    raise UserError(f"there is no recipe {name}; it may have been deleted")


def save(roots: Roots, name: str, text: str, version: str = "", replace: bool = False) -> RecipeFile:
    """Writes a recipe into the folder of recipes. `version`: of the text that the writer has read or saved before.
    Raises Changed where a file of that name has another text, unless it is to be replaced all the same."""
    stem = re.sub(r"\.ya?ml$", "", name)
    if not re.fullmatch(r"[^\W_][\w .-]{0,99}", stem) or stem.endswith((" ", ".")):
        raise UserError(
            "name: a recipe's name has letters, digits, spaces, - _ and dots, and begins with a letter or digit"
        )
    if len(text) > MOST_BYTES:
        raise UserError(f"yaml: longer than {MOST_BYTES:,} characters")
    folder = roots.folders[0] / FOLDER
    if folder.is_symlink():
        raise UserError(f"{FOLDER}: a link; the studio writes no files through links")
    file = folder / f"{stem}.yaml"
    try:
        folder.mkdir(exist_ok=True)
        with _saving:
            if file.exists() and not replace and _version(read_bytes(file)) != version:
                raise Changed(
                    f"name: {FOLDER}/{file.name} is there already, with a text that this page has not read; save over "
                    "it, or choose another name"
                )
            write_atomic(file, text)
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(f"{FOLDER}/{file.name}: cannot be written: {getattr(error, 'strerror', error)}") from None
    return _described(roots, file)


def _described(roots: Roots, file: Path) -> RecipeFile:
    return RecipeFile(
        id=id_of(file),
        name=file.stem,
        path=roots.shown(file),
        modified=file.stat().st_mtime,
        version=_version(read_bytes(file)),
    )


def _version(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
