"""Trackio: its own folder on this machine, or the place that its own variables name."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.trackers import PROJECT, Point, Subject

package = "trackio"


def start(subject: Subject) -> "_Record":
    import trackio

    # Trackio finds a run by its name, and runs of other folders may have the same one.
    name = f"{subject.name}-{subject.id[:8]}"
    return _Record(trackio.init(PROJECT, name, config=dict(subject.config), resume="allow", embed=False))


class _Record:
    def __init__(self, run: Any):
        self._run = run

    def send(self, points: Sequence[Point]) -> None:
        for step, values in points:
            self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any], finished: bool) -> None:
        """Ends the record. Trackio has no place for a summary."""
        self._run.finish()
