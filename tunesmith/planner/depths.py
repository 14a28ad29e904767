"""The memory of a training step at all layers, from traces of a few.

A model of many layers is traced at two small depths, of layers whose kinds repeat. The peak of each stage of a step,
such as the backward pass of the last layer, grows by the same bytes with every layer. So each stage has a line through
two depths, and the largest of them is the peak at all layers. In a walk (training/walk.py) it grows by the same bytes
with every micro-batch too, from the second or third one on, and a layer that is kept adds its own weights to every
stage. Only an update in chunks of small weights is traced at all layers, because where a chunk ends depends on their
number.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from tunesmith.model import load
from tunesmith.model.text import decoder_layers
from tunesmith.plan import Plan
from tunesmith.planner.trace import UPDATE, Stage, Traced, trace_several, trace_update
from tunesmith.recipe import Recipe
from tunesmith.training.home import REST, SLOTS
from tunesmith.training.layer_transforms import is_spread
from tunesmith.training.offload import LAYER_INPUTS
from tunesmith.training.optimizer_parts import CHUNK_ELEMENTS

FEW_BATCHES = 2, 3
FEW_WITH_OFFLOAD = 3, 4  # the inputs of two micro-batches are on their way while one computes


def trace_step(
    recipe: Recipe, plan: Plan, config: Any, lengths: list[int], capability: tuple[int, int] | None = None
) -> Traced:
    """A training step at all layers, which are on the device. For the arguments see `trace`."""
    return _all_layers(recipe, plan, config, lengths, capability)[1]


def trace_walks(
    recipe: Recipe,
    plan: Plan,
    config: Any,
    lengths: list[int],
    numbers: Sequence[int],
    capability: tuple[int, int] | None = None,
) -> dict[int, Traced]:
    """A training step of a process that keeps no layer, for each of these numbers of micro-batches in a walk.
    `with_kept` adds layers that it keeps. For the other arguments see `trace`."""
    return _all_layers(recipe, plan, config, lengths, capability, 0, numbers)


def numbers_to_trace(batches: int, plan: Plan) -> tuple[int, ...]:
    """Numbers of micro-batches whose walks give that of so many (`at_batches`)."""
    few = FEW_WITH_OFFLOAD if plan.activation_offload else FEW_BATCHES
    return few if batches > few[-1] else (batches,)


def at_batches(walks: dict[int, Traced], batches: int) -> Traced:
    """The walk of so many micro-batches."""
    if batches in walks:
        return walks[batches]
    (few, at_few), (many, at_many) = walks.items()
    found = _on_line(at_few, at_many, (batches - few) / (many - few), {*at_few.stages})
    return replace(found, at_home=at_few.at_home)


def host_bytes(recipe: Recipe, walks: Sequence[Traced], kept: Sequence[int], layers: int) -> int:
    """Bytes that processes which keep so many of the layers each take in host memory, all together. `walks`: of each,
    as `trace_walks`."""
    whole, walked = recipe.adapter.kind == "full", walks[0]
    shared = {part: nbytes for part, nbytes in walked.host.items() if part != LAYER_INPUTS}
    if not whole:
        away = [n for n in walked.at_home if not all(is_spread(n, count, layers) for count in kept)]
        shared["weights"] = sum(walked.at_home[n].nbytes for n in away)
    inputs = [one.host.get(LAYER_INPUTS, 0) for one, count in zip(walks, kept) if whole or count < layers]
    return sum(shared.values()) + sum(inputs)


def with_kept(walked: Traced, kept: int, layers: int, whole: bool) -> Traced:
    """A walk through all layers, with so many of them kept. These have slots of their own if the model trains whole
    (training/home.py); else they are as they were loaded."""
    layouts = {n: layout for n, layout in walked.at_home.items() if n != REST}
    away = [layout.nbytes for n, layout in layouts.items() if not is_spread(n, kept, layers)]
    stay = [
        layout.nbytes if whole else layout.nbytes_apart for n, layout in layouts.items() if is_spread(n, kept, layers)
    ]
    slots, before = (SLOTS * max(sizes, default=0) for sizes in (away, [x.nbytes for x in layouts.values()]))
    more = sum(stay) + slots - before
    stages = {stage: parts | {"weights": parts["weights"] + more} for stage, parts in walked.stages.items()}
    return replace(walked, stages=stages)


def _all_layers(
    recipe: Recipe,
    plan: Plan,
    config: Any,
    lengths: list[int],
    capability: tuple[int, int] | None,
    kept: int | None = None,
    numbers: Sequence[int] = (1,),
) -> dict[int, Traced]:
    """Returns the bytes that `trace_several` would find at all layers."""

    def at(config: Any) -> dict[int, Traced]:
        return trace_several(recipe, plan, config, lengths, capability, kept, numbers)

    kinds = layer_kinds(config)
    begin, period = repetition(kinds)
    margin = period if kept is None else 2 * period  # in a walk the first and last layers have one neighbour on its way
    few = begin + margin + (len(kinds) - begin - 1) % period + 1  # so that the last layers are of the same kinds
    many = few + period
    is_even = isinstance(plan.gradient_checkpointing, str)  # else which layers recompute depends on their number
    if len(kinds) <= many or not (is_even or kept is not None):
        return at(config)
    at_few, at_many = at(shallow(config, few)), at(shallow(config, many))
    at_home = {
        n: at_few[numbers[0]].at_home.get(n if n < few else begin + (n - begin) % period) for n in range(len(kinds))
    }
    at_home = {n: layout for n, layout in at_home.items() if layout}
    scale = (len(kinds) - few) / period
    found = {}
    for number in numbers:
        ends = {stage for stage in at_few[number].stages if -margin <= stage[1] < begin + margin}
        found[number] = replace(_on_line(at_few[number], at_many[number], scale, ends), at_home=at_home)
    if recipe.adapter.kind != "full" or (plan.weights == "float32" and kept is None) or all(map(_has_chunk, kinds)):
        return found
    update = trace_update(recipe, plan, config, capability, kept)
    return {number: _with_update(one, update) for number, one in found.items()}


def _with_update(found: Traced, update: Traced) -> Traced:
    """A step with the memory of another one's update."""
    parts = found.stages[UPDATE] | {"optimizer": update.stages[UPDATE]["optimizer"]}
    return replace(found, stages=found.stages | {UPDATE: parts}, host=found.host | update.host)


def _has_chunk(kind: tuple) -> bool:
    """Whether a layer has a weight that is updated alone. The chunks after it are the same in each layer."""
    return any(shape.numel() >= CHUNK_ELEMENTS for shape in kind if isinstance(shape, torch.Size))


def _on_line(few: Traced, many: Traced, scale: float, stages: set[Stage]) -> Traced:
    """The point on the line through two others, so many times as far from the first as the second is."""

    def reach(few: dict[str, int], many: dict[str, int]) -> dict[str, int]:
        return {part: round(few[part] + (many[part] - few[part]) * scale) for part in few}

    return Traced(
        {stage: reach(few.stages[stage], many.stages[stage]) for stage in stages},
        reach(few.host, many.host),
        {},
        round(few.tokens + (many.tokens - few.tokens) * scale),
        few.pass_work + (many.pass_work - few.pass_work) * scale,
        few.update_work + (many.update_work - few.update_work) * scale,
    )


def layer_kinds(config: Any) -> list[tuple]:
    """A key for each layer, equal for layers of one kind: the shapes of its weights, and its entries in lists of the
    config."""
    with torch.device("meta"):
        layers = decoder_layers(load.with_random_weights(config))
    lists = _lists_by_layer(config).values()
    return [
        (*(str(entries[n]) for entries in lists), *(p.shape for p in layer.parameters()))
        for n, layer in enumerate(layers)
    ]


def repetition(kinds: Sequence) -> tuple[int, int]:
    """The first layers that are not repeated, such as dense ones before mixtures of experts, and after how many layers
    the kinds of all others are. Of all such pairs, the one with the shallowest models to trace."""
    pairs = (
        (begin, period)
        for period in range(1, len(kinds) + 1)
        for begin in range(len(kinds) - period + 1)
        if all(kinds[n] == kinds[n - period] for n in range(begin + period, len(kinds)))
    )
    return min(pairs, key=lambda pair: (pair[0] + 3 * pair[1], pair[1]))


def shallow(config: Any, layers: int) -> Any:
    """The config of the same model with fewer layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name, entries in _lists_by_layer(config).items():
        setattr(text, name, entries[:layers])
    text.num_hidden_layers = layers
    return config


def _lists_by_layer(config: Any) -> dict[str, list]:
    """Settings of the config that have an entry for each layer."""
    text = config.get_text_config()
    return {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, list) and len(value) == text.num_hidden_layers
    }
