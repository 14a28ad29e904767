"""The recipe files in the studio's folders."""

import re
from pathlib import Path

from pydantic import BaseModel

from tunesmith.errors import UserError
from tunesmith.files import write_atomic
from tunesmith.run import Run
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.roots import Roots

FOLDER = "recipes"  # of the first root, for recipes that the page saves
MOST_BYTES = 200_000
RECIPE_KEYS = (re.compile(rb"^model\s*:", re.MULTILINE), re.compile(rb"^data\s*:", re.MULTILINE))


class RecipeFile(BaseModel):
    """A recipe on the disk."""

    id: str
    name: str
    path: str
    """Relative to the studio's folder where it is inside."""
    modified: float
    """Unix seconds."""


class RecipeText(BaseModel):
    """The text of a recipe."""

    yaml: str


def is_recipe(file: Path) -> bool:
    """Whether a file looks like a recipe: YAML with `model` and `data`."""
    try:
        if file.suffix not in (".yaml", ".yml") or file.stat().st_size > MOST_BYTES:
            return False
        text = file.read_bytes()
    except OSError:
        return False
    return all(key.search(text) for key in RECIPE_KEYS)


def recipe_files(roots: Roots) -> list[RecipeFile]:
    """The recipes in the roots, without those that belong to runs; the newest first."""
    folders = [folder for folder in roots.walk() if not Run(folder).exists]
    files = [file for folder in folders for pattern in ("*.yaml", "*.yml") for file in folder.glob(pattern)]
    shown = [file for file in files if not file.name.startswith(".") and not file.is_symlink() and is_recipe(file)]
    return sorted((_described(roots, file) for file in shown), key=lambda one: -one.modified)


def read(roots: Roots, name: str) -> str:
    """Returns the text of the recipe with this id. Raises UserError."""
    for one in recipe_files(roots):
        if one.id == name:
            try:
                return roots.resolve(one.path).read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{one.path}: cannot be read: {error}") from None
    raise UserError(f"there is no recipe {name}; it may have been deleted")


def save(roots: Roots, name: str, text: str, replace: bool) -> RecipeFile:
    """Writes a recipe into the folder of recipes. Raises UserError where one of that name is there, unless it is to be
    replaced."""
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
    if file.exists() and not replace:
        raise UserError(f"name: {FOLDER}/{file.name} is there already; choose another name, or replace it")
    try:
        folder.mkdir(exist_ok=True)
        write_atomic(file, text)
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(f"{FOLDER}/{file.name}: cannot be written: {getattr(error, 'strerror', error)}") from None
    return _described(roots, file)


def _described(roots: Roots, file: Path) -> RecipeFile:
    return RecipeFile(id=id_of(file), name=file.stem, path=roots.shown(file), modified=file.stat().st_mtime)
