"""Streams raw records from files of every supported type.

Reading has two steps, so that other processes can do the second: `read_lines` yields the place and the payload of each
record, and `parse` turns the payload into a Raw. Memory does not grow with the size of a file, except for text and
source code, where the whole file is one record.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tunesmith.data import containers
from tunesmith.data.containers import Payload
from tunesmith.data.file_types import ENDINGS, ending
from tunesmith.data.rows import Raw, RowProblem, Where
from tunesmith.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/"  # the beginning of a git-lfs pointer file


def read(paths: Iterable[Path]) -> Iterator[Raw]:
    """Yields every record of these files, in order. A record that cannot be read is a Raw with a problem. Raises
    UserError for a file that cannot be opened."""
    for where, payload in read_lines(paths):
        yield parse(where, payload)


def read_lines(paths: Iterable[Path]) -> Iterator[tuple[Where, Payload]]:
    """Yields each record of these files unparsed: the bytes of a JSON line, the columns of any other file, or a
    problem. Raises UserError for a file that cannot be opened."""
    for path in paths:
        yield from lines_of(path)


def lines_of(path: Path) -> Iterator[tuple[Where, Payload]]:
    """Yields each record of a file, as `read_lines` does. Raises UserError if the file cannot be opened."""
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if start == POINTER:
        raise UserError(f"{path}: is a git-lfs pointer, not the data itself; run `git lfs pull` in its folder")
    for line, payload in ENDINGS[ending(path)](path):
        yield Where(str(path), line), payload


def parse(where: Where, payload: Payload) -> Raw:
    """Turns a payload of `read_lines` into a record, or into its problem. Never raises."""
    if isinstance(payload, bytes):
        payload = containers.parse_json(payload)
    if isinstance(payload, RowProblem):
        return Raw(where, None, payload)
    if not isinstance(payload, dict):
        return Raw(where, None, RowProblem("wrong_shape", f"an object expected, found a {type(payload).__name__}"))
    return Raw(where, payload)
