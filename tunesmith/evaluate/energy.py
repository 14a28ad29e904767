"""The energy and the price of a run, from its events."""

from dataclasses import dataclass
from typing import Any

from tunesmith import recipe_text
from tunesmith.files import read_json
from tunesmith.recipe import Power
from tunesmith.run import Run
from tunesmith.units import JOULES_PER_KWH, energy, number

DEVICES = {"cuda": "GPUs", "cpu": "CPU"}


@dataclass(frozen=True)
class Energy:
    """The energy that a run took."""

    device: str
    """cuda or cpu."""
    joules: float | None
    """Energy of the devices; None if it is unknown."""
    seconds: float
    """The time in which they took it."""
    unknown: str
    """Why it is unknown."""
    joules_per_token: float | None
    """Energy of the devices in training steps; None if it is not known by step."""
    power: Power
    planned_kwh: float | None = None
    """The plan's upper bound for all steps, with the host but without evaluation."""

    @property
    def kwh(self) -> float | None:
        """Energy of the devices and the host, whose watts are those of the recipe and include its CPU."""
        if self.joules is None:
            return None
        host = self.power.host_watts * self.seconds
        return (max(self.joules, host) if self.device == "cpu" else self.joules + host) / JOULES_PER_KWH

    @property
    def price(self) -> float | None:
        """None without a price of a kilowatt-hour."""
        price = self.power.price_per_kwh
        return None if price is None or self.kwh is None else self.kwh * price

    @property
    def of_devices(self) -> str:
        """The energy of the devices, such as: 0.41 kWh of the GPUs."""
        return f"{energy(self.joules)} of the {DEVICES[self.device]}" if self.joules is not None else ""

    @property
    def planned(self) -> str:
        """The plan's bound, such as: planned at most 0.72 kWh."""
        if self.planned_kwh is None:
            return ""
        return f"planned at most {energy(self.planned_kwh * JOULES_PER_KWH)} without evaluation"

    @property
    def text(self) -> str:
        """All of it in one line."""
        if self.kwh is None:
            return f"unknown: {self.unknown}"
        each = "" if self.joules_per_token is None else f", {number(self.joules_per_token)} J a token"
        price = "" if self.price is None else f", {self.price:.2f} at {self.power.price_per_kwh:g} a kWh"
        whole = f"{energy(self.kwh * JOULES_PER_KWH)} with {self.power.host_watts:g} W of the host{price}"
        return "; ".join(filter(None, (f"{self.of_devices}{each}", whole, self.planned)))


def energy_of(run: Run, events: list[dict[str, Any]]) -> Energy | None:
    """Returns the energy of a run with these events, up to its end or its last checkpoint; None if it logged none."""
    last = next((event for event in reversed(events) if event["event"] == "energy"), None)
    if last is None:
        return None
    power = Power.model_validate(recipe_text.read(run.recipe_file).get("power") or {})
    predicted = (read_json(run.plan_file) or {}).get("predicted") or {}
    steps = [event for event in events if event["event"] == "step"]
    return energy_in(last, joules_per_token(steps), power, predicted.get("kwh"))


def energy_in(event: dict[str, Any], each: float | None, power: Power, planned_kwh: float | None = None) -> Energy:
    """Returns what an `energy` event says. `each`: joules per token."""
    return Energy(
        event["device"], event["joules"], event["seconds"], event.get("unknown", ""), each, power, planned_kwh
    )


def joules_per_token(steps: list[dict[str, Any]]) -> float | None:
    """Returns the joules per token of the steps whose joules are known; None without any."""
    measured = [step for step in steps if step.get("joules") is not None]
    tokens = sum(step["tokens"] for step in measured)
    return sum(step["joules"] for step in measured) / tokens if tokens else None
