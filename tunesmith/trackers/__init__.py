"""Experiment trackers: one file each, found by its name, also in other packages (entry point group tunesmith.trackers).

A tracker's module has

    package     the package that it needs, by the name that is both imported and installed; none without it
    start(subject) -> Tracker
                finds the tracker's record of `subject.id` and continues it, or makes a new one

It runs in a process of its own (_follower.py), beside the run and never within it. So it may take long, fail or hang.
It imports its package in `start`, and makes no request to another machine that the user's own settings do not ask for.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from tunesmith.errors import UserError
from tunesmith.registry import Registry

TRACKERS = Registry(__name__, "tunesmith.trackers")

PROJECT = "tunesmith"  # the name under which a tracker groups runs, unless the user's environment has another one

Point = tuple[int, Mapping[str, float]]
"""A step, and its values by name, such as train/loss. A value that is not finite is NaN."""


@dataclass(frozen=True)
class Subject:
    """A run as its tracker sees it."""

    name: str
    id: str
    """Unique to the run and the tracker, and the same when the run is resumed."""
    folder: Path
    """A folder of the tracker's own within the run's, which exists; absolute."""
    config: Mapping[str, Any]
    """The recipe, flattened to dotted keys, without those that are not set."""
    warn: Callable[[str], None]
    """Logs a warning event of the run."""


class Tracker(Protocol):
    """A record of one run in a tracker. Any of these may raise: the tracker is then given up, with its message."""

    def send(self, points: Sequence[Point]) -> None:
        """Sends points, whose steps never fall. Several may have the same step, with different names."""

    def finish(self, summary: Mapping[str, Any], finished: bool) -> None:
        """Sends the known values of the run's summary (evaluate/summary.py) and ends the record. `finished`: the run
        has its result."""


def check(names: Sequence[str]) -> None:
    """Raises UserError if one of these trackers is unknown or its package is not installed."""
    for name in names:
        if name not in TRACKERS:
            near = difflib.get_close_matches(name, TRACKERS, 1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(sorted(TRACKERS))}"
            raise UserError(f"trackers: {name!r} is unknown; {hint}")
        package = getattr(TRACKERS[name], "package", None)
        if package and not _is_installed(package):
            raise UserError(f"trackers: {package} is not installed; pip install {package}")


def _is_installed(package: str) -> bool:
    """Whether a package can be imported. A plain folder of its name, such as the one that wandb writes, is none."""
    spec = find_spec(package)
    return bool(spec and spec.origin)
