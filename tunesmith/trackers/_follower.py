"""The process that follows a run for one tracker: `python -m tunesmith.trackers._follower RUN NAME`.

It reads the run's events from their beginning. Each step is sent once: a resumed run repeats steps, and the tracker
keeps the numbers that it already has. The process ends soon after its standard input is closed. The user's process
closes it at the end of the run, and the kernel does so if that process is killed.
"""

import fcntl
import math
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.errors import first_line
from tunesmith.evaluate.summary import flatten, loss_value, summary
from tunesmith.files import read_json, write_json
from tunesmith.run import Run, events_in, try_lock
from tunesmith.trackers import TRACKERS, Point, Subject, Tracker

SECONDS_BETWEEN_READS = 1.0
SECONDS_AFTER_END = 40.0  # more than the user's process waits: it counts only where that process was killed
NICENESS = 10  # training comes first

STEP_VALUES = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes", "joules")


@dataclass
class Sent:
    """The tracker's numbers so far, in a file of the run's folder, so that a resumed run continues."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    step: int = -1
    """The last step whose numbers were sent; -1 without any."""
    eval: int = -1
    """The last step whose held-out loss was sent."""


def tracker_folder(run: Run) -> Path:
    """The folder for all that trackers write in a run's folder."""
    return run.folder / "trackers"


def log_file(run: Run, name: str) -> Path:
    """The file for what a tracker prints."""
    return tracker_folder(run) / f"{name}.log"


def follow(run: Run, name: str, ended: threading.Event) -> None:
    """Sends the events of a run to a tracker until `ended` is set."""
    file = tracker_folder(run) / f"{name}.json"
    sent = Sent(**(read_json(file) or {}))
    events, tracker = Events(run.events_file), None
    is_last = False
    while not is_last:
        is_last = ended.is_set()  # before reading, as what was written before the end is sent too
        points = list(_unsent(events.read(), sent))
        if tracker is None and (points or (is_last and sent.step >= 0)):
            write_json(file, asdict(sent))
            tracker = _start(run, name, sent.id)
        if points:
            tracker.send(points)
            write_json(file, asdict(sent))
        ended.wait(SECONDS_BETWEEN_READS)
    if tracker:
        known = {key: value for key, value in summary(run).items() if value is not None}
        tracker.finish(known, run.result.exists())


def _start(run: Run, name: str, id: str) -> Tracker:
    folder = (tracker_folder(run) / name).resolve()
    folder.mkdir(exist_ok=True)
    config = {key: value for key, value in flatten(run.recipe.model_dump(mode="json")).items() if value is not None}
    tracker: Tracker = TRACKERS[name].start(
        Subject(run.name, id, folder, config, lambda message: run.log("warning", message=message))
    )
    return tracker


class Events:
    """The events in a file that grows."""

    def __init__(self, path: Path):
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The events since the last call, without those that a resume among them undid."""
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]  # the rest of a line is yet to be written
        self._offset += len(lines)
        return events_in(lines.splitlines())


def _unsent(events: list[dict[str, Any]], sent: Sent) -> Iterator[Point]:
    """The points of events that were not sent before; notes them as sent."""
    for event in events:
        kind = event["event"]
        if kind == "step" and event["step"] > sent.step:
            sent.step = event["step"]
            yield event["step"], _step_values(event)
        elif kind == "eval" and event["step"] > sent.eval:
            sent.eval = event["step"]
            yield event["step"], {"eval/loss": loss_value(event["loss"])}


def _step_values(event: Mapping[str, Any]) -> dict[str, float]:
    values = {key: event[key] for key in STEP_VALUES if key in event} | event.get("metrics", {})
    return {f"train/{key}": math.nan if value is None else value for key, value in values.items()}


def _end_with_input(ended: threading.Event) -> None:
    """Sets `ended` once standard input is closed, and ends the process if it is still there long after."""
    while os.read(0, 1024):
        pass
    ended.set()
    time.sleep(SECONDS_AFTER_END)
    os._exit(1)


def main(folder: str, name: str) -> None:
    """Follows a run. A tracker that fails is one warning event of the run."""
    os.nice(NICENESS)
    run, ended = Run(folder), threading.Event()
    threading.Thread(target=_end_with_input, args=(ended,), daemon=True).start()
    try:
        with open(tracker_folder(run) / f".{name}.lock", "ab") as lock:
            while try_lock(lock, fcntl.LOCK_EX) is False:  # the follower of a killed process, which will end
                time.sleep(0.1)
            follow(run, name, ended)
    except BaseException as error:
        traceback.print_exc()
        run.log(
            "warning",
            message=f"trackers: {name} failed and gets nothing more of this run: {type(error).__name__}: "
            f"{first_line(error)}; {log_file(run, name)} has the details",
        )
        sys.stderr.flush()
        os._exit(0)  # the tracker's own functions at exit could hang


if __name__ == "__main__":
    main(*sys.argv[1:])
