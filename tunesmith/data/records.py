"""A record that tracks which of its keys a format reads, so that the unread keys can be reported."""

from collections.abc import Iterable
from typing import Any

MOST_NAMES = 500  # unread keys that are counted by name; a file may have new keys in every row
OTHERS = "…"  # the name that counts all further keys


class Record(dict):
    """The columns of one record, or the keys of one turn. Reading a value marks its key as read; `in` and iterating
    over the keys do not."""

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
        """Registers the turns of a column, so that `unread` includes their keys."""
        self._turns[column] = turns

    def unread(self) -> list[str]:
        """Returns the keys that were not read and are not empty, such as `source`, or `messages[].name` in turns."""
        own = [str(key) for key, value in super().items() if key not in self._read and not _is_empty(value)]
        inner = ((column, key) for column, turns in self._turns.items() for turn in turns for key in turn.unread())
        return own + [f"{column}[].{key}" for column, key in dict.fromkeys(inner)]


def count(unread: dict[str, int], names: Iterable[str], rows: int = 1) -> None:
    """Adds `rows` to the count of each name in `unread`, {key: rows}."""
    for name in names:
        name = name if name in unread or len(unread) < MOST_NAMES else OTHERS
        unread[name] = unread.get(name, 0) + rows


def describe(unread: dict[str, int], most: int = 20) -> str:
    """Formats unread keys on one line: "source (12 rows), messages[].name (1 row)". Empty if there are none."""
    named = sorted(unread.items(), key=lambda item: (-item[1], item[0]))
    shown = [
        f"{name if name.isprintable() else repr(name)} ({rows:,} {'row' if rows == 1 else 'rows'})"
        for name, rows in named[:most]
    ]
    return ", ".join(shown + [f"and {len(named) - most} more"] * (len(named) > most))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)
