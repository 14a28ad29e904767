"""Reads a run's events as they are written, from an offset in bytes. A half-written line waits for its end."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tunesmith.files import open_file

MOST_BYTES = 2**24  # that are read at once


class RunEvents(BaseModel):
    """Events of a run, as tunesmith/run.py describes them."""

    run: str
    offset: int
    """Where they begin in the run's events.jsonl, in bytes."""
    next: int
    """Where the next ones will begin."""
    events: list[dict[str, Any]]


def read_from(file: Path, offset: int, most: int = MOST_BYTES) -> tuple[list[dict[str, Any]], int]:
    """Returns the events from `offset` on and the offset of the next one. A file that is gone, or shorter than the
    offset, has none, and the next offset is 0: it is another file. A line longer than `most` bytes, which no event has,
    is left out: it is passed over in several calls, without events."""
    try:
        with open_file(file) as lines:
            if lines.seek(0, 2) < offset:
                return [], 0
            lines.seek(offset)
            data = lines.read(most)
    except OSError:
        return [], 0
    if len(data) == most and b"\n" not in data:
        return [], offset + most  # the rest of the line is no JSON, and is left out too
    whole = data[: data.rfind(b"\n") + 1]
    return events_of(whole), offset + len(whole)


def events_of(data: bytes) -> list[dict[str, Any]]:
    """The events of whole lines. What a killed process left half-written is left out."""
    found = []
    for line in data.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            found.append(event)
    return found
