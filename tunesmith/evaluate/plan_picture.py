"""Draws a run's plan in its report: bars of each device's memory, planned and measured, and of a step's time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.units import duration, size

LANES = {"compute": "computing", "to_device": "copies to it", "to_host": "copies from it", "update": "update"}


@dataclass(frozen=True)
class Piece:
    """A part of a bar."""

    name: str
    percent: float
    """Width, of the whole bar."""
    said: str
    """Its number in words."""
    colour: int
    """Number of the colour in the template."""


@dataclass(frozen=True)
class Bar:
    name: str
    said: str
    pieces: list[Piece]
    limit: float | None = None
    """Where the limit is drawn, in per cent of the bar."""


def memory_bars(predicted: Mapping[str, Any], measured_bytes: int | None) -> list[Bar]:
    """A bar for each process, drawn to one scale. `measured_bytes`: the peak of the first process's memory."""
    needs = predicted.get("needs") or []
    longest = max([*(max(need["bytes"], need["free_bytes"]) for need in needs), measured_bytes or 0], default=0)
    names = [*dict.fromkeys(part for need in needs for part in need["parts"])]
    bars = [
        Bar(
            need["name"],
            f"{size(need['bytes'])} predicted, {size(need['free_bytes'])} free",
            [
                Piece(part, 100 * nbytes / longest, size(nbytes), names.index(part))
                for part, nbytes in need["parts"].items()
                if nbytes
            ],
            100 * need["free_bytes"] / longest,
        )
        for need in needs
    ]
    if bars and measured_bytes:
        piece = Piece("measured", 100 * measured_bytes / longest, size(measured_bytes), len(names))
        bars.insert(1, Bar(needs[0]["name"], f"{size(measured_bytes)} measured", [piece]))
    return bars


def lane_bars(predicted: Mapping[str, Any]) -> list[Bar]:
    """A bar for each part of a step on each device."""
    lanes: Sequence[Mapping[str, float]] = predicted.get("lanes") or []
    whole = max((max(lane[name] for name in LANES if name != "update") + lane["update"] for lane in lanes), default=0)
    return [
        Bar(
            f"{need['name']}: {words}",
            duration(lane[name]),
            [Piece(words, 100 * lane[name] / whole, duration(lane[name]), number)],
        )
        for need, lane in zip(predicted.get("needs") or [], lanes)
        for number, (name, words) in enumerate(LANES.items())
        if lane[name] > 0
    ]
