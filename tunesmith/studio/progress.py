"""The progress of a run, from the end of its events, so that it takes no longer for a long run."""

import os
from pathlib import Path

from pydantic import BaseModel

from tunesmith.files import open_file
from tunesmith.run import Run
from tunesmith.studio.follow import events_of

TAIL_BYTES = 64 * 1024
HEAD_BYTES = 256 * 1024  # the start of a run, with its data and plan, takes less
RECENT_STEPS = 20  # their mean time is that of the steps to come


class Progress(BaseModel):
    """How far a run is."""

    step: int
    steps: int | None
    """All of them; None while the run is prepared."""
    seconds_left: float | None
    loss: float | None
    tokens_per_second: float | None
    doing: str
    """The work under way, such as "reading the data"; empty while steps are done."""


def progress_of(run: Run) -> Progress:
    """Reads a run's progress from the first and the last lines of its events."""
    last = tail(run.events_file)
    steps = [event for event in last if event["event"] == "step"]
    total = next((e["steps"] for e in reversed(last) if "steps" in e), None) or _total(run.events_file)
    stage = last[-1].get("doing", "") if last and last[-1]["event"] == "stage" else ""
    stage = "measuring and saving the result" if is_finishing(last) else stage
    if not steps:
        return Progress(step=0, steps=total, seconds_left=None, loss=None, tokens_per_second=None, doing=stage)
    newest, recent = steps[-1], steps[-RECENT_STEPS:]
    seconds = sum(step["seconds"] for step in recent) / len(recent)
    return Progress(
        step=newest["step"],
        steps=total,
        seconds_left=max(0, total - newest["step"]) * seconds if total else None,
        loss=newest["loss"],
        tokens_per_second=newest["tokens_per_second"],
        doing=stage,
    )


def is_finishing(events: list[dict]) -> bool:
    """Whether training has stopped, and no later session has begun. While the run is held, its result is measured and
    saved."""
    last = next((e["event"] for e in reversed(events) if e["event"] in ("step", "stop", "stage", "start")), None)
    return last == "stop"


def tail(file: Path) -> list[dict]:
    """The last events of a file."""
    try:
        with open_file(file) as lines:
            size = lines.seek(0, os.SEEK_END)
            lines.seek(max(0, size - TAIL_BYTES))
            data = lines.read()
    except OSError:
        return []
    return events_of(data)  # the first line may be half a one


def _total(file: Path) -> int | None:
    """The number of steps, which the events of the start tell."""
    try:
        with open_file(file) as lines:
            found = events_of(lines.read(HEAD_BYTES))
    except OSError:
        return None
    return next((event["steps"] for event in reversed(found) if event["event"] in ("start", "plan")), None)
