"""Predicts whether a recipe fits on a machine, before anything is loaded: the plan, and the peak of its memory."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError, first_line
from tunesmith.machine import Machine
from tunesmith.model.check import check_config
from tunesmith.model.positions import limit_of, trained_positions
from tunesmith.plan import Plan
from tunesmith.planner.decide import choose, within
from tunesmith.planner.kept_layers import USED_SHARE, with_kept_layers
from tunesmith.recipe import Recipe
from tunesmith.units import size

# Bytes of a process beside tensors: of CUDA and its libraries on a GPU, of Python and torch in host memory. Estimates.
BESIDE_BYTES = {"cuda": 600 * 2**20, "cpu": 450 * 2**20}


@dataclass(frozen=True)
class Prediction:
    """A plan and the peak of a device's memory in a training step, by part."""

    plan: Plan
    parts: dict[str, int] | None
    """Bytes at the peak; None if this kind of run is not traced."""
    stage: str
    """When the peak is, or why the step is not traced."""
    beside_bytes: int
    free_bytes: list[int]
    """Memory of each process: what is free on its GPU, or its part of what is free in the host."""
    remedy: str | None = None
    """If the step does not fit: the bytes that it needs with a change of the recipe, and that change."""
    walks: list[int] | None = None
    """If layers stay in host memory: bytes at the peak of each process, of which `parts` has the largest."""
    host_parts: dict[str, int] | None = None
    """The same in host memory, for all processes together."""

    @property
    def needed_bytes(self) -> int | None:
        return None if self.parts is None else sum(self.parts.values()) + self.beside_bytes

    @property
    def fits(self) -> bool | None:
        """Whether the step fits in the memory of every process; None if it is not traced."""
        if self.needed_bytes is None:
            return None
        peaks = [peak + self.beside_bytes for peak in self.walks or []] or [self.needed_bytes] * len(self.free_bytes)
        return all(needed <= USED_SHARE * free for needed, free in zip(peaks, self.free_bytes))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"needed_bytes": self.needed_bytes, "fits": self.fits}


def decide(recipe: Recipe, machine: Machine, config: Any, base: Path) -> Plan:
    """The plan for a model, as its configuration and files describe it. Raises UserError where the recipe does not fit
    the machine or the model."""
    plan = choose(recipe, machine)
    positions = trained_positions(config)
    if positions and plan.sequence_length > positions:
        plan = within(plan, recipe, limit_of(config))
    return with_kept_layers(plan, recipe, config, base, machine)


def predict(recipe: Recipe, machine: Machine, config: Any, base: Path) -> Prediction:
    """Traces the step of the plan and, if it does not fit, of what would. Raises UserError as `decide` does."""
    check_config(recipe.model, recipe.adapter, base, config)
    found = _traced(recipe, machine, config, base)
    if found.fits is not False:
        return found
    for change in _remedies(recipe, found.plan):
        settings = recipe.model_dump(mode="json")
        for key, value in change.items():
            section, name = key.split(".")
            settings[section][name] = value
        other = _traced(Recipe.model_validate(settings), machine, config, base)
        if other.fits:
            text = ", ".join(f"{key}: {value}" for key, value in change.items())
            return replace(found, remedy=f"{size(other.needed_bytes or 0)} with {text}")
    return found


def _traced(recipe: Recipe, machine: Machine, config: Any, base: Path) -> Prediction:
    plan = decide(recipe, machine, config, base)
    parts, stage, walks, host = None, not_traced(recipe), None, None
    if not stage:
        from tunesmith.planner.depths import step_peak, walk_peaks

        capability = machine.gpus[0].capability if machine.gpus else None
        lengths = micro_batch(recipe, plan)
        try:
            if plan.kept_layers is None:
                peak = step_peak(recipe, plan, config, lengths, capability)
            else:
                batches = batches_of_walk(recipe, plan)
                peaks, host = walk_peaks(recipe, plan, config, lengths, plan.kept_layers, batches, capability)
                peak, walks = max(peaks, key=lambda peak: peak.nbytes), [peak.nbytes for peak in peaks]
            parts, stage = peak.parts, peak.stage[0]
        except UserError:
            raise
        except Exception as error:  # whatever a model or kernel without a fake form raises
            stage = f"this model's step cannot be traced ({first_line(error)})"
    gpus = machine.gpus[: plan.processes]
    free = [gpu.free_bytes for gpu in gpus] or [machine.free_memory_bytes // plan.processes] * plan.processes
    return Prediction(plan, parts, stage, BESIDE_BYTES[plan.device], free, walks=walks, host_parts=host)


def _remedies(recipe: Recipe, plan: Plan) -> Iterator[dict[str, Any]]:
    """Changes of the recipe that need less memory, those that cost least first. The result of training stays the
    same with the first two."""
    less: dict[str, Any] = {}
    if plan.gradient_checkpointing == "off":
        less = {"train.gradient_checkpointing": "on"}
        yield less
    if plan.micro_batch_tokens > plan.sequence_length:
        less = less | {"train.micro_batch": 1}
        yield less
    if recipe.adapter.kind == "full":
        less = less | {"adapter.kind": "lora"}
        yield less
    if recipe.model.quantize == "none" and find_spec("bitsandbytes"):
        yield less | {"model.quantize": "nf4"}


def not_traced(recipe: Recipe) -> str:
    """Why the memory of this kind of run is not predicted yet; empty if it is."""
    if recipe.data.sequence_length == "max" or recipe.train.micro_batch == "auto":
        return "training measures what fits: data.sequence_length or train.micro_batch is left to it"
    return ""


def micro_batch(recipe: Recipe, plan: Plan) -> list[int]:
    """The lengths of the sequences of the largest micro-batch."""
    return [plan.sequence_length] * max(1, min(plan.micro_batch_tokens // plan.sequence_length, _rows(recipe, plan)))


def batches_of_walk(recipe: Recipe, plan: Plan) -> int:
    """How many such micro-batches a process takes through its layers together."""
    of_batch = len(micro_batch(recipe, plan))
    most = plan.walk_tokens // (of_batch * plan.sequence_length) if plan.walk_tokens else _rows(recipe, plan)
    return max(1, min(most, math.ceil(_rows(recipe, plan) / of_batch)))


def _rows(recipe: Recipe, plan: Plan) -> int:
    """Sequences of a process in a step, if all have the same share."""
    return math.ceil(recipe.train.batch / plan.processes)
