"""The runs that the studio shows, and their ids."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.evaluate.energy import energy_of
from tunesmith.evaluate.summary import summary, verdict, warnings
from tunesmith.files import cache_folder, read_json, stamp, write_json
from tunesmith.jobs.store import Store
from tunesmith.run import Run, list_runs
from tunesmith.studio.progress import is_finishing, progress_of

SLOW_SECONDS, MOST_SHARE = 0.2, 20  # a slow summary is computed again after so many times the time that it takes


def id_of(folder: Path) -> str:
    """The id of a run, a model or a file in addresses: its name and a digest of its path, which no path can leave."""
    digest = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.name).strip("-.") or "run"
    return f"{name}-{digest}"


@dataclass
class Known:
    """The summary of a run, and the state of its files when it was computed."""

    state: list
    facts: dict[str, Any]
    until: float
    """The Unix time until which it is good enough for a run at work."""


class Catalogue:
    """Runs in some output folders, and those of the queue."""

    def __init__(self, outputs: list[Path], store: Store):
        self._outputs, self._store = [output.absolute() for output in outputs], store
        self._known: dict[str, Known] = {name: Known(**one) for name, one in (read_json(_cache()) or {}).items()}
        self._has_news = False

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

    def facts(self, run: Run) -> dict[str, Any]:
        """As `evaluate.summary.summary`, with `has_result`, `verdict`, `tone`, `warnings` and `energy`. Computed again
        only if the run's files have changed, and for a long run at work only now and then. Raises UserError if the
        files cannot be read."""
        state = [run.is_held, *(list(stamp(file) or ()) for file in (run.folder, run.events_file, run.recipe_file))]
        known = self._known.get(str(run.folder))
        if known and known.state == state:
            return known.facts
        if known and known.state[0] and state[0] and time.time() < known.until:
            return known.facts | {"steps_done": progress_of(run).step}
        began = time.monotonic()
        facts = _facts(run)
        seconds = time.monotonic() - began
        until = time.time() + MOST_SHARE * seconds if seconds > SLOW_SECONDS else 0.0
        self._known[str(run.folder)] = Known(state, facts, until)
        self._has_news = True
        return facts

    def save(self) -> None:
        """Keeps the summaries for the next studio, which then lists runs without reading them."""
        if not self._has_news:
            return
        self._has_news = False
        there = {folder: vars(known) for folder, known in [*self._known.items()] if Path(folder).is_dir()}
        with suppress(OSError):  # it is only slower without
            _cache().parent.mkdir(parents=True, exist_ok=True)
            write_json(_cache(), there)


def _facts(run: Run) -> dict[str, Any]:
    judged, taken, held = verdict(run), energy_of(run, run.events()), run.is_held
    facts = summary(run)
    if held and facts["status"] not in ("running", "paused", "not started", "cut off"):  # its last session has stopped
        facts["status"] = "finishing" if is_finishing(run.events()) else "running"
    return facts | {
        "has_result": run.result.exists(),
        "verdict": judged.text,
        "tone": judged.tone,
        "warnings": warnings(run),
        "energy": taken.text if taken else "",
    }


def _cache() -> Path:
    return cache_folder() / "studio-runs-2.json"
