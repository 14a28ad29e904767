"""The runs that the studio shows, and their ids."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.evaluate.summary import summary
from tunesmith.jobs.store import Store
from tunesmith.run import Run, list_runs


def id_of(folder: Path) -> str:
    """The id of a run, a model or a file in addresses: its name and a digest of its path, which no path can leave."""
    digest = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).strip("-.") or "run"
    return f"{name}-{digest}"


class Catalogue:
    """Runs in some output folders, and those of the queue."""

    def __init__(self, outputs: list[Path], store: Store):
        self._outputs, self._store = [output.absolute() for output in outputs], store
        self._summaries: dict[Path, tuple[tuple, dict]] = {}

    def __iter__(self) -> Iterator[Run]:
        """All runs, the oldest first in each folder."""
        queued = {Path(job.folder).parent for job in self._store.jobs()}
        for output in dict.fromkeys([*self._outputs, *sorted(queued)]):
            yield from list_runs(output)

    def open(self, name: str) -> Run:
        """Returns the run with this id. Raises UserError if there is none."""
        for run in self:
            if id_of(run.folder) == name:
                return run
        raise UserError(f"there is no run {name}; it may have been deleted")

    def summary(self, run: Run) -> dict[str, Any]:
        """As `evaluate.summary.summary`. It is computed again only if the run's files have changed. Raises UserError
        if they cannot be read."""
        state = (run.is_held, *(_stamp(file) for file in (run.events_file, run.eval_file, run.recipe_file)))
        known = self._summaries.get(run.folder)
        if known is None or known[0] != state:
            known = self._summaries[run.folder] = (state, summary(run))
        return known[1]


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
