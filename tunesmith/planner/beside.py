"""Adds to a prediction of steps what a run does beside them: its memory, its time and its bytes on disk."""

import math
from dataclasses import replace
from pathlib import Path

from tunesmith.errors import first_line
from tunesmith.model.files import weight_bytes
from tunesmith.plan import Plan
from tunesmith.planner.beside_steps import (
    Asked,
    Beside,
    BesideSpeed,
    Device,
    beside_speed,
    occasions_of,
    prompts_of,
    seconds_by_part,
)
from tunesmith.planner.cost import Speed, cost_of
from tunesmith.planner.disk import disk_of
from tunesmith.planner.kept_layers import sizes
from tunesmith.planner.layouts import Layout, Layouts
from tunesmith.planner.prediction import Need, Prediction
from tunesmith.planner.rates import DiskRates, disk_rates, host_rates, rates_of
from tunesmith.planner.rows import Training
from tunesmith.recipe import Recipe

Traced = dict[tuple[int, int] | None, Beside]  # by compute capability


def with_beside(found: Prediction, best: Layout, layouts: Layouts, amount: Training | None) -> Prediction:
    """The prediction with the memory of evaluation and answers, the disk, and how fast what is beside the steps is."""
    recipe, plan = layouts.recipe, best.plan
    asked = _asked(recipe, plan, amount)
    try:
        from tunesmith.planner.beside_trace import trace_beside

        traced = {
            place.capability: trace_beside(recipe, plan, layouts.config, asked, place.capability)
            for place in {need.place.capability: need.place for need in best.needs}.values()
        }
    except Exception as error:  # whatever a model or kernel without a fake form raises
        return replace(found, not_beside=f"they cannot be traced ({first_line(error)})")
    first = traced[best.needs[0].place.capability]
    return replace(
        found,
        needs=[_with_stages(need, recipe, traced) for need in best.needs],
        beside=_speed(best, best.speed, layouts, traced) if best.speed else None,
        disk=disk_of(recipe, best.machine, layouts.base, first.checkpoint_bytes, first.result_bytes),
    )


def with_cost(found: Prediction, recipe: Recipe, amount: Training | None) -> Prediction:
    """The prediction with the time, the energy and the disk of a run of this amount."""
    if not amount:
        return found
    power, cost, disk = recipe.power, None, found.disk
    if found.speed:
        parts = seconds_by_part(recipe, found.speed, found.beside, amount)
        cost = cost_of(found.speed, parts, power.host_watts, power.price_per_kwh)
    if disk and not amount.no_held_out:
        disk = disk.of_run(recipe, occasions_of(recipe, amount).checkpoints, amount.held_out_rows > 0)
    return replace(found, training=amount, cost=cost, disk=disk)


def _asked(recipe: Recipe, plan: Plan, amount: Training | None) -> Asked:
    """The rows that a process evaluates and answers; as many and as long as may be where that is not known."""
    prompts: float = max(prompts_of(recipe)) if recipe.data.eval or recipe.data.eval_share else 0
    if amount and not amount.no_held_out:
        prompts = min(prompts, amount.held_out_rows)
    row_tokens = (amount.held_out_row_tokens or amount.row_tokens) if amount else plan.sequence_length
    most = max(1, min(round(row_tokens), plan.sequence_length))
    return Asked(most, math.ceil(prompts / plan.processes), recipe.evaluate.max_new_tokens)


def _with_stages(need: Need, recipe: Recipe, traced: Traced) -> Need:
    beside = traced[need.place.capability]
    stages = beside.stages
    grows = recipe.adapter.kind == "full" and beside.result_bytes > need.resting["weights"]
    if grows and need.kept_layers is None:  # the trained model is measured in the precision in which it is saved
        stages = {stage: parts | {"weights": beside.result_bytes} for stage, parts in stages.items()}
    return need.with_stages(stages)


def _speed(best: Layout, step: Speed, layouts: Layouts, traced: Traced) -> BesideSpeed:
    """How fast the devices of a layout are beside its steps, whose speed is `step`."""
    recipe, plan, machine = layouts.recipe, best.plan, best.machine
    layers = layouts.config.get_text_config().num_hidden_layers
    layer_bytes = sizes(plan, recipe, layouts.config, layouts.base).layer if plan.kept_layers else 0
    is_away = recipe.adapter.kind == "full" and plan.kept_layers is not None
    devices = [
        Device(
            traced[need.place.capability],
            rate,
            lane.tokens / step.tokens,
            layers,
            0 if need.kept_layers is None else (layers - need.kept_layers) * layer_bytes,
            not is_away,
        )
        for need, rate, lane in zip(best.needs, rates_of(machine, plan.compute), step.lanes)
    ]
    base_bytes = _base_bytes(recipe, layouts.base, devices[0].beside)
    reading, writing = disk_rates(machine, layouts.base), disk_rates(machine, recipe.output)
    disk = DiskRates(writing.write_bytes_per_second, reading.read_bytes_per_second)
    return beside_speed(devices, host_rates(machine), disk, base_bytes)


def _base_bytes(recipe: Recipe, base: Path, traced: Beside) -> int:
    """Bytes of the base's files, which need not be there."""
    if recipe.model.initialize == "random":
        return 0
    return weight_bytes(base) if any(base.glob("*.safetensors")) else traced.base_bytes
