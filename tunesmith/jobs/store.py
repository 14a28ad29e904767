"""Queue: the jobs of this workstation, their order and people's wishes for them.

A SQLite file keeps what no run folder can say. Whether a job runs, has finished or has failed is never stored: that
follows from its folder and its process (state.py).
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from tunesmith.errors import UserError
from tunesmith.files import state_folder

Kind = Literal["train", "export"]
Priority = Literal["low", "normal", "high"]
PRIORITIES = get_args(Priority)  # the later ones start first
ASKED_BY = "TUNESMITH_ASKED_BY"  # the environment variable in which the studio says that it adds a job
BUSY_SECONDS = 10.0  # that another process may take to write

# Each entry changes the file from the version that is its place to the next one.
MIGRATIONS = [
    """
    CREATE TABLE job (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        folder TEXT NOT NULL,
        directory TEXT NOT NULL,
        arguments TEXT NOT NULL,
        added REAL NOT NULL,
        position REAL NOT NULL,
        priority TEXT NOT NULL,
        gpus INTEGER,
        held INTEGER NOT NULL DEFAULT 0,
        cancelled INTEGER NOT NULL DEFAULT 0,
        after INTEGER REFERENCES job (id),
        after_success INTEGER NOT NULL DEFAULT 0,
        not_before REAL,
        batch TEXT NOT NULL DEFAULT '',
        notify TEXT NOT NULL DEFAULT '',
        asked_by TEXT NOT NULL DEFAULT '',
        is_due INTEGER NOT NULL DEFAULT 1,
        started REAL,
        starts INTEGER NOT NULL DEFAULT 0,
        notified TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    """,
]


@dataclass(frozen=True)
class Job:
    """A request for the machine."""

    id: int
    kind: Kind
    folder: str
    """The run that it trains or exports."""
    directory: str
    """Where it was asked for, from which relative paths are meant."""
    arguments: list[str]
    """Further arguments of its command."""
    added: float
    """Unix seconds, as all times here."""
    position: float
    """Its place in the queue: lower ones start first."""
    priority: Priority
    gpus: int | None
    """How many GPUs it takes; None: as its recipe says, else all."""
    held: bool
    """Whether it waits until it is released."""
    cancelled: bool
    after: int | None
    """The job whose end it waits for."""
    after_success: bool
    """Whether that one must have succeeded."""
    not_before: float | None
    batch: str
    """A name that jobs have in common which were asked for together."""
    notify: str
    """A command to run when the job has ended."""
    asked_by: str
    """terminal or studio."""
    is_due: bool
    """Whether it is to be started, for the first time or again."""
    started: float | None
    """When it was last started."""
    starts: int
    """How often it was started."""
    notified: str
    """The state of which `notify` was last run."""


class Store:
    """The queue's file. Any number of processes may use it at once."""

    def __init__(self, folder: Path | None = None):
        """`folder`: by default that of the user's queue. It is made if it is not there."""
        self.folder = folder or queue_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.folder / "queue.db"
        with self._changed() as connection:
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise UserError(f"{self._file}: written by a newer Tunesmith; update this one")
            for statements in MIGRATIONS[version:]:
                for statement in filter(str.strip, statements.split(";")):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def file_of(self, number: int, ending: str) -> Path:
        """A file of a job: its log, lock or outcome (process.py)."""
        return self.folder / "logs" / f"{number}.{ending}"

    def jobs(self) -> list[Job]:
        """All jobs: those of high priority first, then in the order of their places."""
        with self._opened() as connection:
            found = [_job(row) for row in connection.execute("SELECT * FROM job ORDER BY position")]
        return sorted(found, key=lambda job: -PRIORITIES.index(job.priority))

    def job(self, number: int) -> Job:
        """Raises UserError if there is none."""
        with self._opened() as connection:
            row = connection.execute("SELECT * FROM job WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise UserError(f"queue: there is no job {number}; `tunesmith queue list` shows all")
        return _job(row)

    def add(self, kind: Kind, folder: Path, arguments: Sequence[str] = (), **wishes: Any) -> Job:
        """Adds a job at the end. `wishes`: further fields of Job."""
        values = {
            "kind": kind,
            "folder": str(folder.absolute()),
            "directory": str(Path.cwd()),
            "arguments": json.dumps(arguments),
            "added": time.time(),
            "priority": "normal",
        } | wishes
        names = ", ".join(values)
        places = ", ".join(f":{name}" for name in values)
        with self._changed() as connection:
            number = connection.execute(
                f"INSERT INTO job ({names}, position) "
                f"VALUES ({places}, (SELECT coalesce(max(position), 0) + 1 FROM job))",
                values,
            ).lastrowid
        assert number
        return self.job(number)

    def change(self, number: int, **values: Any) -> None:
        """Sets fields of a job."""
        with self._changed() as connection:
            connection.execute(
                f"UPDATE job SET {', '.join(f'{name} = :{name}' for name in values)} WHERE id = :id",
                values | {"id": number},
            )

    def move(self, number: int, before: int | None) -> None:
        """Moves a job before another one, or to the end. Raises UserError if one of them is not there."""
        self.job(number)
        place = self.job(before).position if before is not None else None
        with self._changed() as connection:
            if place is None:
                sql = "SELECT max(position) + 1 FROM job"
                [position] = connection.execute(sql).fetchone()
            else:
                sql = "SELECT max(position) FROM job WHERE position < ? AND id != ?"
                [previous] = connection.execute(sql, (place, number)).fetchone()
                position = (place + (place - 2 if previous is None else previous)) / 2
            connection.execute("UPDATE job SET position = ? WHERE id = ?", (position, number))

    def remove(self, number: int) -> None:
        """Forgets a job. Those that wait for its end no longer do."""
        with self._changed() as connection:
            connection.execute("UPDATE job SET after = NULL WHERE after = ?", (number,))
            connection.execute("DELETE FROM job WHERE id = ?", (number,))

    def setting(self, name: str) -> str:
        """The value of a setting; empty if it was never set."""
        with self._opened() as connection:
            row = connection.execute("SELECT value FROM setting WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def set(self, name: str, value: str) -> None:
        with self._changed() as connection:
            connection.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._file, timeout=BUSY_SECONDS, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            yield connection
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._file}: {error}; move the file away to begin with an empty queue") from None
        finally:
            connection.close()

    @contextmanager
    def _changed(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process writes beside."""
        with self._opened() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def queue_folder() -> Path:
    """The folder of the user's queue."""
    return state_folder() / "queue"


FLAGS = [field.name for field in fields(Job) if field.type is bool]


def _job(row: sqlite3.Row) -> Job:
    values = dict(row)
    return Job(**values | {name: bool(values[name]) for name in FLAGS} | {"arguments": json.loads(values["arguments"])})
