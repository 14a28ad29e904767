"""Data formats: one module each in this folder, or in another package with an entry point in tunesmith.formats.

Each has `recognises(sample) -> bool` and `to_row(raw) -> Row`, which raises RowProblem for a record it cannot use.
"""

from collections.abc import Iterable
from types import ModuleType

from tunesmith.data.formats._chat import CHAT_COLUMNS, shown
from tunesmith.errors import UserError
from tunesmith.registry import Registry

FORMATS = Registry(__name__, "tunesmith.formats")


class Unknown(UserError):
    """No known format fits the columns of a file."""


def get(name: str) -> ModuleType:
    """Returns the module of a format. Raises UserError if the name is unknown."""
    if name not in FORMATS:
        raise UserError(f"format: unknown format {name!r}; known are auto, {', '.join(FORMATS)}")
    return FORMATS[name]


def recognise(samples: list[dict], path: str) -> str:
    """Returns the name of the format that recognises most samples. Raises UserError naming `path` if several formats
    tie, and Unknown if none recognises any."""
    votes = {name: sum(map(format.recognises, samples)) for name, format in FORMATS.items()}
    most = max(votes.values())
    best = [name for name, count in votes.items() if count == most]
    columns = _listed(dict.fromkeys(column for sample in samples for column in sample))
    if most == 0:
        raise Unknown(
            f"{path}: no known format has the columns {columns}{_conversation_problem(samples)}; known "
            f"formats are {', '.join(FORMATS)}; set `format:`, and `columns: {{standard name: your column}}`"
        )
    if len(best) > 1:
        raise UserError(f"{path}: the columns {columns} fit {' and '.join(best)}; choose with `format:`")
    return best[0]


def _conversation_problem(samples: list[dict]) -> str:
    """Explains, for a message, why the first column that should hold a conversation does not."""
    column = next((column for column in CHAT_COLUMNS for sample in samples if sample.get(column)), None)
    if column is None:
        return ""
    value = next(sample[column] for sample in samples if sample.get(column))
    return f" ({column} is not a list of messages: {shown(value)})"


def _listed(columns: Iterable[str]) -> str:
    """Formats column names for a message, on one short line."""
    names = ", ".join(name if name.isprintable() else repr(name) for name in columns)
    return (names if len(names) <= 200 else names[:200] + "…") or "none"


def rename(value: dict, columns: dict[str, str]) -> dict:
    """Renames a record's columns to their standard names. `columns`: {standard name: the file's column}."""
    if not columns:
        return value
    renamed = {standard: value[column] for standard, column in columns.items() if column in value}
    return {column: inner for column, inner in value.items() if column not in columns.values()} | renamed
