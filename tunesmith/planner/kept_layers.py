"""How many decoder layers each GPU keeps. The others stay in host memory and are brought to the GPU when they compute.

The rule here estimates memory from the shapes in the base's files. It rather keeps a layer too few than too many.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.machine import Machine
from tunesmith.model import load
from tunesmith.model.files import shapes
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe
from tunesmith.units import size

USED_SHARE = 0.9  # of the memory that is free, on a GPU and in the host
CONTEXT_BYTES = 600 * 2**20  # of CUDA and its libraries
LOGITS_BYTES = 2**26 * 10  # a chunk of logits (training/loss.py), its gradient and a copy in float32
NF4_BYTES = 0.53  # a weight, with its scales
STATE_BYTES = {"adamw": 8, "adamw_8bit": 2.1, "paged_adamw_8bit": 2.1, "adafactor": 0.01, "muon": 4}  # of a weight
CHUNK_ELEMENTS = 2**24  # of weights that are updated together, of one matrix at least
SLOTS = 2  # layers of which there is room on a GPU that does not keep all
TRAINED_BYTES = 16  # an adapter's weight: float32 with gradient and AdamW's moments
PRECISION_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32_BYTES = 8  # of a bfloat16 weight that is updated: float32 stand-ins of weight and gradient
INPUTS_SHARE = 0.2  # of a GPU's memory, beyond which the inputs of layers wait in host memory


Shape = list[int]


@dataclass(frozen=True)
class Sizes:
    """Bytes on a GPU, unless they are at home in host memory."""

    layers: int
    layer: int
    """The largest layer's weights as they come to the GPU."""
    rest: int
    """Weights outside of the layers, and what trains with its gradients and moments."""
    working: int
    """A micro-batch in a layer and in the output layer; CUDA."""
    input: int
    """Inputs of all layers for a token."""
    tokens: int
    """Most tokens of a process in a step."""
    at_home: int
    """Host memory for each layer that does not stay on a GPU. If the model trains whole, for every layer: with masters,
    gradients and moments."""
    rest_at_home: int
    """The same of weights outside of the layers."""
    whole: int
    """With all layers on a GPU, and their gradients and moments if they train."""
    trained: int
    """Weights that train."""

    def kept(self, free_bytes: int) -> int:
        """How many layers fit; negative if not even the slots do."""
        left = free_bytes * USED_SHARE - self.rest - self.working
        if left >= self.layers * self.layer:
            return self.layers
        return math.floor((left - SLOTS * self.layer) / self.layer)


def with_kept_layers(plan: Plan, recipe: Recipe, config: Any, base: Path, machine: Machine) -> Plan:
    """The plan with the layers that each GPU keeps. Raises UserError where a GPU or the host is too small."""
    asked, layers = recipe.train.kept_layers, config.get_text_config().num_hidden_layers
    if asked == "all" or (asked == "auto" and (plan.device == "cpu" or recipe.model.quantize == "int8")):
        return plan
    whole, gpus = recipe.adapter.kind == "full", machine.gpus[: plan.processes]
    found = sizes(plan, recipe, config, base)
    if isinstance(asked, int):
        counts, why = [min(asked, layers)] * plan.processes, "train.kept_layers"
    else:
        counts = [min(layers, found.kept(gpu.free_bytes)) for gpu in gpus]
        why = f"as fit by their sizes; all need {size(found.whole)} on a GPU"
    fits = asked == "auto" and all(found.whole <= gpu.free_bytes * USED_SHARE for gpu in gpus)
    if fits or (not whole and all(count == layers for count in counts)):
        return plan
    for gpu, count in zip(gpus, counts):
        _check_gpu(gpu, found, count, recipe)
    return with_counts(plan, recipe, found, counts, why, machine)


def with_counts(plan: Plan, recipe: Recipe, found: Sizes, counts: list[int], why: str, machine: Machine) -> Plan:
    """The plan of GPUs that keep so many layers each, for the given reason. Raises UserError where the host is too
    small, or for a setting that does not suit layers in host memory."""
    for problem in _unsuited(recipe):
        raise UserError(f"train.kept_layers: {problem}")
    whole, gpus = recipe.adapter.kind == "full", machine.gpus[: plan.processes]
    room = _room_in_host(found, max(found.layers - count for count in counts), machine, recipe)
    walking = [gpu for gpu, count in zip(gpus, counts) if whole or count < found.layers]
    inputs = found.input * found.tokens
    offload = plan.activation_offload or any(inputs > INPUTS_SHARE * gpu.free_bytes for gpu in walking)
    plan = replace(
        plan,
        kept_layers=counts,
        activation_offload=offload and plan.device == "cuda",
        reasons=plan.reasons | {"kept_layers": why},
    )
    if plan.activation_offload:
        plan = _with_walks(plan, found, len(walking), room, recipe)
    if len(walking) < len(gpus):
        return plan  # the others recompute as the plan says
    reason = {"gradient_checkpointing": "layers that are not kept are recomputed"}
    return replace(plan, gradient_checkpointing="on", reasons=plan.reasons | reason)


def _unsuited(recipe: Recipe) -> Iterator[str]:
    if recipe.model.quantize == "int8":
        yield "model.quantize: int8 needs all layers on the GPU; leave train.kept_layers out"
    if recipe.adapter.kind == "full" and recipe.train.optimizer == "paged_adamw_8bit":
        yield "the moments are in host memory without pages; set train.optimizer: adamw_8bit"


def sizes(plan: Plan, recipe: Recipe, config: Any, base: Path) -> Sizes:
    """Estimates from the shapes in the base's files, or of a model with random weights."""
    text = config.get_text_config()
    in_layers, others = _weights(_shapes(recipe, config, base), text.num_hidden_layers)
    computed = PRECISION_BYTES[plan.compute]
    wide = max(numbers_of(getattr(text, "intermediate_size", None)) or [4 * text.hidden_size])
    row = 18 * text.hidden_size + 4 * wide  # elements of a token in a layer
    tokens = plan.micro_batch_tokens
    working = tokens * row * computed + min(LOGITS_BYTES, tokens * text.vocab_size * 10) + CONTEXT_BYTES
    estimate = _trained_whole if recipe.adapter.kind == "full" else _adapted
    return estimate(
        plan,
        recipe,
        in_layers,
        others,
        layers=text.num_hidden_layers,
        working=working,
        input=input_bytes(plan, config),
        tokens=math.ceil(recipe.train.batch / plan.processes) * plan.sequence_length,
    )


def input_bytes(plan: Plan, config: Any) -> int:
    """Bytes of the inputs of all layers for a token. Where float32 weights compute in bfloat16, the embedding and what
    layers add to it stay in float32."""
    text = config.get_text_config()
    return text.hidden_size * PRECISION_BYTES[plan.weights] * text.num_hidden_layers


def _adapted(plan: Plan, recipe: Recipe, in_layers: list[list[Shape]], others: list[Shape], **known: int) -> Sizes:
    """Estimates for frozen weights with an adapter."""
    full = PRECISION_BYTES[plan.weights]
    small = NF4_BYTES if recipe.model.quantize == "nf4" else full
    layer = int(max((_bytes(layer, small, full) for layer in in_layers), default=0))
    adapted = sum(recipe.adapter.rank * sum(s[-2:]) * math.prod(s[:-2]) for layer in in_layers for s in layer if s[1:])
    rest = int(_bytes(others, full, full)) + adapted * TRAINED_BYTES
    whole = known["layers"] * layer + rest + known["working"]
    return Sizes(layer=layer, rest=rest, at_home=layer, rest_at_home=0, whole=whole, trained=adapted, **known)


def _trained_whole(
    plan: Plan, recipe: Recipe, in_layers: list[list[Shape]], others: list[Shape], **known: int
) -> Sizes:
    """Estimates for a model that trains whole (training/host_optimizer.py)."""
    full, walks = PRECISION_BYTES[plan.weights], PRECISION_BYTES[plan.compute]
    updated = 2 * full + STATE_BYTES[recipe.train.optimizer]  # a weight with gradient and moments
    copied = walks if walks != full else 0
    counts, rest = [int(_bytes(layer, 1, 1)) for layer in in_layers], int(_bytes(others, 1, 1))
    most = max(counts, default=0)
    gradients = most * full * (2 if plan.processes == 1 else 3)  # at work, leaving, and those of other processes
    largest = max((math.prod(s) for s in [*others, *(s for layer in in_layers for s in layer)]), default=0)
    stand_ins = FLOAT32_BYTES if full == 2 else 0
    update = (max(largest, CHUNK_ELEMENTS) + 2 * CHUNK_ELEMENTS) * (updated + stand_ins)
    everything = sum(counts) + rest
    whole = int(everything * updated) + known["working"]
    known["working"] = int(max(known["working"] + gradients + full * rest, update + CONTEXT_BYTES))
    return Sizes(
        layer=int(max((_bytes(layer, walks, full) for layer in in_layers), default=0)),
        rest=full * rest,
        at_home=int(most * (updated + copied)),
        rest_at_home=int(rest * updated),
        whole=whole,
        trained=everything,
        **known,
    )


def _bytes(shapes: list[Shape], matrices: float, vectors: float) -> float:
    """Sums up weights with so many bytes an element."""
    return sum(math.prod(s) * (matrices if len(s) > 1 else vectors) for s in shapes)


def _shapes(recipe: Recipe, config: Any, base: Path) -> dict[str, Shape]:
    if recipe.model.initialize == "pretrained" and any(base.glob("*.safetensors")):
        return shapes(base)
    return {name: [*p.shape] for name, p in load.empty(config).named_parameters()}


def _weights(shapes: dict[str, Shape], layers: int) -> tuple[list[list[Shape]], list[Shape]]:
    """Shapes of the weights of each text layer, and of all others. Text layers are the numbered modules, as many as the
    configuration says, with the most weights."""
    numbered: dict[str, dict[int, list[Shape]]] = defaultdict(lambda: defaultdict(list))
    others = {}
    for name, shape in shapes.items():
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


def numbers_of(value: Any) -> list[int]:
    """A number of a configuration, which some models have for each layer."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _check_gpu(gpu: Any, found: Sizes, kept: int, recipe: Recipe) -> None:
    if kept < 0:
        needed = found.rest + found.working + SLOTS * found.layer
        smaller = "adapter.kind: lora" if recipe.adapter.kind == "full" else "model.quantize: nf4"
        raise UserError(
            f"train.kept_layers: {gpu.name} has {size(gpu.free_bytes)} free, and {size(int(needed / USED_SHARE))} are "
            f"needed even if no layer stays on it; lower data.sequence_length or train.micro_batch, or use {smaller}"
        )


def _with_walks(plan: Plan, found: Sizes, walking: int, room: int, recipe: Recipe) -> Plan:
    """The plan whose walks are so short that the inputs of layers, of so many processes that walk, have room in host
    memory."""
    needed = found.input * recipe.train.batch * plan.sequence_length
    if needed <= room:
        return plan
    tokens, needs = room // (found.input * walking), f"the layers' inputs of a step need {size(needed)} of host memory"
    if recipe.adapter.kind == "full":
        raise UserError(
            f"train.batch: {needs}, and {size(room)} are free beside weights, gradients and moments; lower train.batch "
            "or data.sequence_length"
        )
    is_fixed = isinstance(recipe.train.micro_batch, int)
    if tokens < (plan.micro_batch_tokens if is_fixed else plan.sequence_length):
        raise UserError(
            f"{'train.micro_batch' if is_fixed else 'data.sequence_length'}: the layers' inputs of {tokens:,} tokens "
            f"fit in host memory, where {size(room)} are free beside the weights; lower it"
        )
    reason = {"walk_tokens": f"{needs}, and {size(room)} are free beside the weights"}
    passes = min(tokens, plan.micro_batch_tokens)
    return replace(plan, walk_tokens=tokens, micro_batch_tokens=passes, reasons=plan.reasons | reason)


def _room_in_host(found: Sizes, away: int, machine: Machine, recipe: Recipe) -> int:
    """Bytes of host memory that are left beside what stays there. Raises UserError if it is too small for that."""
    whole, free = recipe.adapter.kind == "full", machine.free_memory_bytes
    needed = (found.layers if whole else away) * found.at_home + found.rest_at_home
    if needed <= free * USED_SHARE:
        return int(free * USED_SHARE) - needed
    if whole:
        raise UserError(
            f"adapter.kind: full: the model does not fit on a GPU with its gradients and moments, and they need "
            f"{size(needed)} of host memory; {size(free)} are free; train.weights: bfloat16 with train.optimizer: "
            "adafactor needs 4 bytes a weight, adapter.kind: lora far less"
        )
    smaller = "" if recipe.model.quantize == "nf4" else "model.quantize: nf4 needs about a quarter; "
    raise UserError(
        f"model.path: {away} of {found.layers} layers do not fit on a GPU, and need {size(needed)} of host memory; "
        f"{size(free)} are free; {smaller}use a smaller model"
    )
