"""The memory that a run of the queue must find free before it starts. If it does not, but would on the machine with all
its memory free, the run waits instead of failing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.errors import Ending, NotNow, UserError
from tunesmith.leases import CPU, queued_job
from tunesmith.machine import Gpu, Machine, memory
from tunesmith.planner.apart import NotPredicted, predict_apart
from tunesmith.planner.prediction import Prediction
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.units import size


def or_later(refusal: UserError, predicted: Prediction | None, recipe: Recipe, machine: Machine, base: Path) -> Ending:
    """NotNow in place of the refusal of a recipe, if the queue started it and it fits once all memory is free; else the
    refusal. `predicted`: the prediction that was refused, if there is one."""
    if queued_job() is None:
        return refusal
    emptied = replace(
        machine,
        free_memory_bytes=machine.memory_bytes,
        gpus=[replace(gpu, free_bytes=gpu.total_bytes) for gpu in machine.gpus],
    )
    try:
        found = predict_apart(recipe, emptied, base)
    except (UserError, NotPredicted):
        return refusal
    if not found.fits:
        return refusal
    least = predicted.needed_bytes if predicted else {}  # the fastest plan of an emptied machine may need more
    totals = {CPU: machine.memory_bytes} | {gpu.uuid: gpu.total_bytes for gpu in machine.gpus}
    is_enough = least and all(nbytes <= totals[device] for device, nbytes in least.items())
    return NotNow(str(refusal), least if is_enough else found.needed_bytes)


def check_room(run: Run, gpus: Sequence[Gpu]) -> None:
    """Raises NotNow if the queue continues a run and less memory is free than the run needs by its prediction. `gpus`:
    those that it may use."""
    needed: dict[str, int] = dict(run.plan.predicted.get("needed_bytes") or {})  # none of an older run
    if queued_job() is None or not needed:
        return
    planned = [device for device in needed if device != CPU]
    if not {*planned} <= {gpu.uuid for gpu in gpus}:  # it continues on others
        needed |= {gpu.uuid: needed.pop(device) for device, gpu in zip(planned, gpus)}
    total, free = memory()
    there = {CPU: ("the host", total, free)} | {gpu.uuid: (gpu.label, gpu.total_bytes, gpu.free_bytes) for gpu in gpus}
    found = [(nbytes, *there[device]) for device, nbytes in needed.items() if device in there]
    if any(nbytes > total for nbytes, _, total, _ in found):
        return  # it was forced
    for nbytes, name, _, free in found:
        if nbytes > free:
            raise NotNow(f"{name}: the run needs {size(nbytes)} of memory, and {size(free)} are free", needed)
