"""The ledger records every row that was dropped, changed or shortened, and why, and the columns that were not read."""

import json
from collections import Counter
from pathlib import Path
from typing import TextIO

from tunesmith.data.rows import REASONS, Where
from tunesmith.errors import UserError

FIRST = 3  # dropped rows that an error message names


class Ledger:
    """Writes one JSON object a line, {file, line, action, reason, detail}, at once. Without a path it only counts.

    Call `kept` or `dropped` for each row. A kept row may also be `changed` or `shortened`.
    """

    def __init__(self, path: Path | None = None):
        self.counts: Counter[tuple[str, str]] = Counter()
        self.unread: dict[str, int] = {}  # {key that the format did not read: rows}
        self.first: list[dict] = []
        self.kept_rows = 0
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> "Ledger":
        if self._path:  # buffering=1 writes whole lines, for readers and after a crash
            self._file = open(self._path, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()

    def kept(self, rows: int = 1) -> None:
        self.kept_rows += rows

    def dropped(self, where: Where, reason: str, detail: str = "") -> None:
        entry = self._enter("dropped", where, reason, detail)
        if len(self.first) < FIRST:
            self.first.append(entry)

    def changed(self, where: Where, reason: str, detail: str = "") -> None:
        self._enter("changed", where, reason, detail)

    def shortened(self, where: Where, reason: str, detail: str = "") -> None:
        self._enter("shortened", where, reason, detail)

    @property
    def read(self) -> int:
        """Rows read: kept and dropped."""
        return self.kept_rows + sum(self._reasons("dropped").values())

    def summary(self) -> dict:
        """Returns {read, kept, dropped, changed, shortened, unread}. The first two are numbers of rows, the next three
        {reason: rows}, the last {key: rows}."""
        actions = {action: self._reasons(action) for action in ("dropped", "changed", "shortened")}
        return {"read": self.read, "kept": self.kept_rows, **actions, "unread": dict(self.unread)}

    def refuse_if_empty(self, what: str) -> None:
        """Raises UserError if no row of `what` was kept."""
        if self.kept_rows:
            return
        if not self.first:
            raise UserError(f"{what}: has no rows")
        examples = "; ".join(f"{e['file']}:{e['line']}: {_reason(e)}" for e in self.first)
        raise UserError(f"{what}: none of its {self.read} rows can be used: {examples}")

    def _enter(self, action: str, where: Where, reason: str, detail: str) -> dict:
        assert reason in REASONS, reason
        entry = {"file": where.file, "line": where.line, "action": action, "reason": reason, "detail": detail}
        self.counts[action, reason] += 1
        if self._file:
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        return entry

    def _reasons(self, action: str) -> dict[str, int]:
        return {reason: n for (a, reason), n in self.counts.items() if a == action}


def _reason(entry: dict) -> str:
    detail = " ".join(entry["detail"].split())
    return REASONS[entry["reason"]] + (f" ({detail})" if detail else "")
