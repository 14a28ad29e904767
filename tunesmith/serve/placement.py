"""Chooses the GPUs that models are loaded onto for answers, so that they never take the memory of a training."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.files import read_json
from tunesmith.leases import Holder, Use, holders, queued_job, using
from tunesmith.machine import Gpu, find_gpus
from tunesmith.model.files import shapes, weight_bytes
from tunesmith.recipe import Model
from tunesmith.run import Run
from tunesmith.units import size

ROOM = 1.25  # memory that weights need with keys, values and activations, as a multiple of their bytes
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "nf4": 0.52, "int8": 1.0}  # of a weight, with its scales


@dataclass(frozen=True)
class Placement:
    """The GPUs that models may be loaded onto, the one with most free memory first; none: the CPU."""

    gpus: list[Gpu]
    kv_bytes: int | None = None
    """Most bytes of keys and values, where other processes have a part of the GPU's memory."""


def choose(gpus: Sequence[Gpu], others: Sequence[Holder], weight_bytes: int) -> Placement:
    """Chooses among GPUs, from the processes that hold some of them and the bytes of the weights to load: GPUs that no
    process holds, if the weights fit on one; else the GPU with most room beside processes that share it; else several
    that no process holds. Without other processes it is all GPUs. A GPU that is held exclusively is never chosen.
    Raises UserError if there is no room."""
    held_by = {gpu.uuid: [one for one in others if one.device == gpu.uuid] for gpu in gpus}
    unheld = sorted((gpu for gpu in gpus if not held_by[gpu.uuid]), key=lambda gpu: -gpu.free_bytes)
    needed = int(ROOM * weight_bytes)
    if len(unheld) == len(gpus) or (unheld[:1] and unheld[0].free_bytes >= needed):
        return Placement(unheld)
    shared = [(room_on(gpu, held_by[gpu.uuid]), gpu) for gpu in gpus if held_by[gpu.uuid]]
    room, roomiest = max(shared, key=lambda pair: pair[0])
    if room >= needed:
        return Placement([roomiest], room - weight_bytes)
    if sum(gpu.free_bytes for gpu in unheld) >= needed:
        return Placement(unheld)
    found = [_told(gpu, held_by[gpu.uuid]) for gpu in gpus]
    raise UserError(
        f"the models need {size(needed)} of GPU memory: {'; '.join(found)}; wait for the others' end, serve smaller "
        "models, or compute on the CPU with --cpu"
    )


def room_on(gpu: Gpu, others: Sequence[Holder]) -> int:
    """Returns the bytes of a GPU that are free and that none of its holders has asked for; 0 if one of them trains or
    wants the GPU for itself."""
    if any(one.exclusive or (one.use == "training" and one.nbytes is None) for one in others):
        return 0
    asked = sum(one.nbytes or 0 for one in others)
    return max(0, min(gpu.free_bytes, gpu.total_bytes - asked))


def _told(gpu: Gpu, others: Sequence[Holder]) -> str:
    who = " and ".join(map(str, others))
    room = room_on(gpu, others)
    if others and not room:
        return f"{gpu.label} is held by {who}"
    return f"{gpu.label} has {size(room)} of {size(gpu.total_bytes)} left" + (f" beside {who}" if others else "")


@contextmanager
def placed(paths: Sequence[Path], use: Use, on_cpu: bool) -> Iterator[Placement]:
    """Hides all GPUs from this process, which has used none yet, except those that models may be loaded onto, and holds
    the first of them until the block ends. `on_cpu`: hides all. Raises UserError if there is no room."""
    gpus = [] if on_cpu else find_gpus()[1]
    job = queued_job()
    others = [one for one in holders(gpu.uuid for gpu in gpus) if one.pid != os.getpid() and not one.is_of_job(job)]
    nbytes = _weight_bytes(paths) if others else 0
    placement = choose(gpus, others, nbytes) if others else Placement([*gpus])
    if on_cpu or others:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in placement.gpus)
    with using({gpu.uuid: int(ROOM * nbytes) for gpu in placement.gpus[:1] if others}, use, paths[0]):
        yield placement


def _weight_bytes(paths: Sequence[Path]) -> int:
    """Returns the bytes of the weights of runs, model folders and GGUF files in memory. Runs share their base."""
    parts: dict[tuple[Path, str], float] = {}
    for path in paths:
        if path.suffix == ".gguf":
            parts[path, ""] = path.stat().st_size if path.exists() else 0
        elif Run(path).exists:
            run = Run(path)
            quantize = run.recipe.model.quantize
            if run.recipe.adapter.kind == "lora":
                parts[run.result, ""] = sum(file.stat().st_size for file in run.result.glob("*.safetensors"))
                parts[run.base.resolve(), quantize] = _base_bytes(run.base, run.plan.weights, quantize)
            else:
                parts[run.result, ""] = _base_bytes(run.result, run.plan.compute, "none")
        else:
            from tunesmith.model.load import resolve

            parts[path, ""] = weight_bytes(resolve(Model(path=str(path))))
    return int(sum(parts.values()))


def _base_bytes(folder: Path, precision: str, quantize: str) -> float:
    """Returns the bytes of a model folder's weights once they are loaded. Embeddings and vectors are not quantised."""
    config = read_json(folder / "config.json") or {}
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    total = 0.0
    for shape in shapes(folder).values():
        is_small = quantize != "none" and len(shape) >= 2 and shape[0] != vocabulary
        total += math.prod(shape) * BYTES[quantize if is_small else precision]
    return total
