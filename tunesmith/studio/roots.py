"""The folders that the studio's page may see and use. Nothing outside them can be named, also not through a link."""

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.recipe import Recipe
from tunesmith.run import Run

WALK_DEPTH, MOST_FOLDERS = 3, 2_000  # how far recipes and models are looked for
MOST_SHOWN = 200  # characters of a path in a message


class Roots:
    """Folders of the server's disk."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = [folder.resolve() for folder in folders]

    def resolve(self, path: str | Path, is_new: bool = False) -> Path:
        """Returns the file or folder of this path, which is absolute or relative to the first root. Raises UserError
        if it is hidden, lies outside all roots, is no file or folder, or is not there, which it need not be if it
        `is_new`."""
        try:
            found = (self.folders[0] / path).resolve(strict=not is_new)
            is_odd = found.exists() and not (found.is_file() or found.is_dir())
        except (OSError, RuntimeError, ValueError):  # ValueError: a character that no path can have
            raise UserError(f"{_printable(path)}: there is no such file or folder") from None
        root = next((root for root in self.folders if found.is_relative_to(root)), None)
        if root is None or any(part.startswith(".") for part in found.relative_to(root).parts):
            remedy = "`tunesmith studio --root FOLDER` adds one"
            raise UserError(f"{_printable(path)}: outside the studio's folders; {remedy}")
        if is_odd:
            raise UserError(f"{_printable(path)}: neither a file nor a folder")
        return found

    def shown(self, path: Path) -> str:
        """The shortest text for a path that `resolve` takes."""
        return str(path.relative_to(self.folders[0])) if path.is_relative_to(self.folders[0]) else str(path)

    def walk(self) -> Iterator[Path]:
        """The visible folders down to WALK_DEPTH, the nearer ones first, without what is in runs. Links are not
        followed."""
        waiting, seen = [(root, 0) for root in self.folders], set()
        for folder, depth in waiting:  # grows meanwhile
            if folder in seen or len(seen) >= MOST_FOLDERS:
                continue
            seen.add(folder)
            yield folder
            if depth < WALK_DEPTH and not Run(folder).exists:
                waiting += [(inner, depth + 1) for inner in _folders_in(folder)]

    def check(self, recipe: Recipe) -> None:
        """Raises UserError if a recipe reads or writes files outside the roots."""
        for key, path in _paths(recipe):
            try:
                self._check(path, is_new=key == "output")
            except UserError as problem:
                raise UserError(f"`{key}`: {problem}") from None

    def _check(self, path: str, is_new: bool) -> None:
        parts, place = Path(path).parts, self.folders[0] / path
        if path.startswith("~"):
            raise UserError(f"{_printable(path)}: write the whole path, without ~")
        if is_new or "\0" in path:
            self.resolve(path, is_new)
        elif glob.has_magic(path) and not os.path.lexists(place):
            if ".." in parts:
                raise UserError(f"{_printable(path)}: write the pattern without ..")
            fixed = itertools.takewhile(lambda part: not glob.has_magic(part), parts)
            self.resolve(Path(*fixed), is_new=True)
            for match in glob.iglob(str(place), recursive=True):
                self._check_content(self.resolve(match))
        elif place == Path(path) or os.path.lexists(place) or ".." in parts:
            self._check_content(self.resolve(path))

    def _check_content(self, folder: Path) -> None:
        """Raises UserError if what is visible in a folder, at any depth, leads out of the roots, as links may. For a
        file it does nothing."""
        for place, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in [*folders, *(name for name in names if not name.startswith("."))]:
                entry = os.path.join(place, name)
                if os.path.exists(entry) and (os.path.islink(entry) or not (os.path.isfile(entry) or name in folders)):
                    self.resolve(entry)


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def _printable(path: str | Path) -> str:
    """A path for a message, however strange it is."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:MOST_SHOWN]) + "…" * (len(text) > MOST_SHOWN)


def _paths(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The keys of a recipe that name files, with their values. A hub id looks like a path that is not there."""
    yield "output", str(recipe.output)
    yield "model.path", recipe.model.path
    if recipe.model.chat_template not in ("auto", "plain", "chatml"):
        yield "model.chat_template", recipe.model.chat_template
    for name, sources in (("train", recipe.data.train), ("eval", recipe.data.eval)):
        for number, source in enumerate(sources):
            if not source.path.startswith("hub:"):
                yield f"data.{name}.{number}.path", source.path
