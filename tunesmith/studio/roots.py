"""The folders that the studio's page may see and use. Nothing outside them can be named, also not through a link."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.recipe import Recipe


class Roots:
    """Folders of the server's disk."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = [folder.resolve() for folder in folders]

    def resolve(self, path: str | Path) -> Path:
        """Returns the existing file or folder of this path, which is absolute or relative to the first root. Raises
        UserError if it is not there, is hidden, or lies outside all roots."""
        if "\0" in str(path):
            raise UserError("the path has a character that no path can have")
        named = self.folders[0] / Path(path)
        try:
            found = named.resolve(strict=True)
        except (OSError, RuntimeError):
            raise UserError(f"{path}: there is no such file or folder") from None
        root = next((root for root in self.folders if found.is_relative_to(root)), None)
        if root is None or any(part.startswith(".") for part in found.relative_to(root).parts):
            raise UserError(f"{path}: outside the studio's folders; `tunesmith studio --root FOLDER` adds one")
        return found

    def check(self, recipe: Recipe) -> None:
        """Raises UserError if a recipe reads or writes files outside the roots."""
        for key, path in _paths(recipe):
            if key == "output":
                place = (self.folders[0] / path).resolve()
                if not any(place.is_relative_to(root) for root in self.folders):
                    raise UserError(f"`output`: {path} is outside the studio's folders")
            elif Path(path).is_absolute() or (self.folders[0] / path).exists() or ".." in Path(path).parts:
                try:
                    self.resolve(path)
                except UserError as problem:
                    raise UserError(f"`{key}`: {problem}") from None


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
