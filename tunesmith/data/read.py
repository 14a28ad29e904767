"""Files in, raw records out: every kind of file a source may name, as a stream.

Reading is in two steps, so that the second can be done in other processes: `read_lines` yields where each record
stands and its payload, `parse` makes a Raw of it. Memory does not grow with the size of a file, except that a text or
source-code file is one record.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tunesmith.data import containers
from tunesmith.data.containers import Payload
from tunesmith.data.file_types import ENDINGS, ending
from tunesmith.data.rows import Raw, RowProblem, Where
from tunesmith.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/"  # how the file begins that git-lfs has in place of a large one


def read(paths: Iterable[Path]) -> Iterator[Raw]:
    """Every record of these files, in order; a record that cannot be read is a Raw with a problem. Raises UserError for
    a file that cannot be opened."""
    for where, payload in read_lines(paths):
        yield parse(where, payload)


def read_lines(paths: Iterable[Path]) -> Iterator[tuple[Where, Payload]]:
    """Each record of these files, not yet parsed: the bytes of a JSON line, the columns of any other file, or a
    problem. Raises UserError for a file that cannot be opened."""
    for path in paths:
        yield from lines_of(path)


def lines_of(path: Path) -> Iterator[tuple[Where, Payload]]:
    """Each record of a file, as of `read_lines`. Raises UserError if it cannot be opened."""
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
    """The record that a payload of `read_lines` holds, or its problem. Never raises."""
    if isinstance(payload, bytes):
        payload = containers.parse_json(payload)
    if isinstance(payload, RowProblem):
        return Raw(where, None, payload)
    if not isinstance(payload, dict):
        return Raw(where, None, RowProblem("wrong_shape", f"a {type(payload).__name__}, where an object is expected"))
    return Raw(where, payload)
