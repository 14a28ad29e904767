"""A record as a format reads it: a mapping that notes which of its keys were read, so that the others can be named."""

from collections.abc import Iterable
from typing import Any

MOST_NAMES = 500  # of unread keys that are counted by name; a file may have a new one in each row
OTHERS = "…"  # the name under which the rest are counted


class Record(dict):
    """The columns of one record, or the keys of one turn in it. Reading a key is noted; asking whether it is there, or
    walking over the keys, is not."""

    def __init__(self, values: dict):
        super().__init__(values)
        self._read: set[Any] = set()
        self._turns: dict[str, list[Record]] = {}

    def __getitem__(self, key: Any) -> Any:
        self._read.add(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._read.add(key)
        return super().get(key, default)

    def items(self) -> Any:
        self._read.update(self)
        return super().items()

    def values(self) -> Any:
        self._read.update(self)
        return super().values()

    def hold_turns(self, column: str, turns: "list[Record]") -> None:
        """Says that a column's turns are these, so that `unread` names their keys too."""
        self._turns[column] = turns

    def unread(self) -> list[str]:
        """The keys that were not read and hold something: `source`, and of turns `messages[].name`."""
        own = [str(key) for key, value in super().items() if key not in self._read and not _is_empty(value)]
        inner = ((column, key) for column, turns in self._turns.items() for turn in turns for key in turn.unread())
        return own + [f"{column}[].{key}" for column, key in dict.fromkeys(inner)]


def count(unread: dict[str, int], names: Iterable[str], rows: int = 1) -> None:
    """Adds rows in which these keys were not read to `unread`, {key: rows}."""
    for name in names:
        name = name if name in unread or len(unread) < MOST_NAMES else OTHERS
        unread[name] = unread.get(name, 0) + rows


def describe(unread: dict[str, int], most: int = 20) -> str:
    """Unread keys and their rows on one line: "source (12 rows), messages[].name (1 row)". Empty if there are none."""
    named = sorted(unread.items(), key=lambda item: (-item[1], item[0]))
    shown = [
        f"{name if name.isprintable() else repr(name)} ({rows:,} {'row' if rows == 1 else 'rows'})"
        for name, rows in named[:most]
    ]
    return ", ".join(shown + [f"and {len(named) - most} more"] * (len(named) > most))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)
