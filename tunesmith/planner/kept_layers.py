"""How many decoder layers each GPU keeps. The others stay in host memory and are brought to the GPU when they compute.

The rule here estimates memory from the shapes in the base's files. It rather keeps a layer too few than too many.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.machine import Machine
from tunesmith.model.files import shapes
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe
from tunesmith.units import size

USED_SHARE = 0.9  # of the memory that is free, on a GPU and in the host
CONTEXT_BYTES = 600 * 2**20  # of CUDA and its libraries
LOGITS_BYTES = 2**26 * 10  # a chunk of logits (training/loss.py), its gradient and a copy in float32
NF4_BYTES = 0.53  # a weight, with its scales
SLOTS = 2  # layers of which there is room on a GPU that does not keep all
TRAINED_BYTES = 16  # an adapter's weight: float32 with gradient and AdamW's moments
INPUTS_SHARE = 0.2  # of a GPU's memory, beyond which the inputs of layers wait in host memory


@dataclass(frozen=True)
class Sizes:
    """Bytes on a GPU."""

    layers: int
    layer: int
    """The largest layer's frozen weights."""
    rest: int
    """Weights outside of the layers, and what trains with its gradients and moments."""
    working: int
    """A micro-batch in a layer and in the output layer; CUDA."""
    inputs: int
    """Inputs of all layers in a step."""

    @property
    def whole(self) -> int:
        return self.layers * self.layer + self.rest + self.working

    def kept(self, free_bytes: int) -> int:
        """How many layers fit; negative if not even the slots do."""
        left = free_bytes * USED_SHARE - self.rest - self.working
        if left >= self.layers * self.layer:
            return self.layers
        return math.floor((left - SLOTS * self.layer) / self.layer)


def with_kept_layers(plan: Plan, recipe: Recipe, config: Any, base: Path, machine: Machine) -> Plan:
    """The plan with the layers that each GPU keeps. Raises UserError where a GPU or the host is too small."""
    asked, layers = recipe.train.kept_layers, config.get_text_config().num_hidden_layers
    pretrained = recipe.model.initialize == "pretrained" and recipe.adapter.kind == "lora"
    if isinstance(asked, int):
        counts, why = [min(asked, layers)] * plan.processes, "train.kept_layers"
    elif plan.device == "cuda" and pretrained and recipe.model.quantize != "int8":
        found = sizes(plan, recipe, config, base)
        counts = [min(layers, found.kept(gpu.free_bytes)) for gpu in machine.gpus[: plan.processes]]
        why = f"as fit by their sizes; all need {size(found.whole)} on a GPU"
    else:
        return plan
    if all(count == layers for count in counts):
        return plan
    if not pretrained or recipe.model.quantize == "int8":
        key = "model.quantize: int8" if pretrained else "adapter.kind: full"
        raise UserError(f"train.kept_layers: {key} needs all layers on the GPU; leave train.kept_layers out")
    found = sizes(plan, recipe, config, base)
    for gpu, count in zip(machine.gpus, counts):
        _check_gpu(gpu, found, count)
    _check_host(found, max(layers - count for count in counts), machine, recipe)
    offload = plan.activation_offload or any(found.inputs > INPUTS_SHARE * gpu.free_bytes for gpu in machine.gpus)
    reasons = {"kept_layers": why, "gradient_checkpointing": "layers that are not kept are recomputed"}
    return replace(
        plan,
        kept_layers=counts,
        gradient_checkpointing="on",
        activation_offload=offload and plan.device == "cuda",
        reasons=plan.reasons | reasons,
    )


def sizes(plan: Plan, recipe: Recipe, config: Any, base: Path) -> Sizes:
    """Estimates from the shapes in the base's files."""
    text = config.get_text_config()
    in_layers, others = _weights(base, text.num_hidden_layers)
    full = 2 if plan.weights == "bfloat16" else 4
    small = NF4_BYTES if recipe.model.quantize == "nf4" else full
    layer = max((sum(math.prod(s) * (small if len(s) > 1 else full) for s in layer) for layer in in_layers), default=0)
    adapted = sum(recipe.adapter.rank * sum(s[-2:]) * math.prod(s[:-2]) for layer in in_layers for s in layer if s[1:])
    computed = 2 if plan.compute == "bfloat16" else 4
    wide = max(_numbers(getattr(text, "intermediate_size", None)) or [4 * text.hidden_size])
    row = 18 * text.hidden_size + 4 * wide  # elements of a token in a layer
    tokens, step = plan.micro_batch_tokens, math.ceil(recipe.train.batch / plan.processes) * plan.sequence_length
    return Sizes(
        layers=text.num_hidden_layers,
        layer=int(layer),
        rest=sum(math.prod(s) * full for s in others) + adapted * TRAINED_BYTES,
        working=tokens * row * computed + min(LOGITS_BYTES, tokens * text.vocab_size * 10) + CONTEXT_BYTES,
        inputs=step * text.hidden_size * computed * text.num_hidden_layers,
    )


def _weights(base: Path, layers: int) -> tuple[list[list[list[int]]], list[list[int]]]:
    """Shapes of the weights of each text layer, and of all others. Text layers are the numbered modules, as many as the
    configuration says, with the most weights."""
    numbered: dict[str, dict[int, list[list[int]]]] = defaultdict(lambda: defaultdict(list))
    others = {}
    for name, shape in shapes(base).items():
        place = re.match(r"(.*?)\.(\d+)\.", name)
        if place:
            numbered[place[1]][int(place[2])].append(shape)
        else:
            others[name] = shape
    chosen = max(
        (prefix for prefix, found in numbered.items() if len(found) == layers),
        key=lambda prefix: sum(math.prod(s) for layer in numbered[prefix].values() for s in layer),
        default=None,
    )
    beside = [s for prefix, found in numbered.items() if prefix != chosen for layer in found.values() for s in layer]
    return [*numbered[chosen].values()] if chosen else [], [*others.values(), *beside]


def _numbers(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _check_gpu(gpu: Any, found: Sizes, kept: int) -> None:
    if kept < 0:
        needed = found.rest + found.working + SLOTS * found.layer
        raise UserError(
            f"train.kept_layers: {gpu.name} has {size(gpu.free_bytes)} free, and {size(int(needed / USED_SHARE))} are "
            f"needed even if no layer stays on it; lower data.sequence_length or train.micro_batch, or use "
            "model.quantize: nf4"
        )


def _check_host(found: Sizes, away: int, machine: Machine, recipe: Recipe) -> None:
    needed, free = found.layer * away, int(machine.free_memory_bytes * USED_SHARE)
    if needed > free:
        smaller = "" if recipe.model.quantize == "nf4" else "model.quantize: nf4 needs about a quarter; "
        raise UserError(
            f"model.path: {away} of {found.layers} layers do not fit on a GPU, and need {size(needed)} of host memory; "
            f"{size(machine.free_memory_bytes)} are free; {smaller}use a smaller model"
        )
