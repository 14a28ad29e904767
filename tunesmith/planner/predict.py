"""Predicts whether a recipe fits on a machine and how fast it trains, before anything is loaded."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError, first_line
from tunesmith.machine import Gpu, Machine
from tunesmith.model.check import check_config
from tunesmith.model.load import BITSANDBYTES
from tunesmith.model.positions import limit_of, trained_positions
from tunesmith.plan import Plan
from tunesmith.planner.beside import with_beside, with_cost
from tunesmith.planner.beside_steps import ANSWERING
from tunesmith.planner.correction import kind_of_run, ratio_of
from tunesmith.planner.decide import choose, within
from tunesmith.planner.disk import disk_by_sizes
from tunesmith.planner.fit import UNKNOWN_POSITIONS, Measured, Shapes, fitted, is_measured, layers_key
from tunesmith.planner.kept_layers import numbers_of, sizes, with_kept_layers
from tunesmith.planner.layouts import WORTH, Layout, Layouts
from tunesmith.planner.prediction import Alternative, Prediction, places_of, resting
from tunesmith.planner.quality import price_in_quality
from tunesmith.planner.rows import training
from tunesmith.recipe import Recipe

MOST_ALTERNATIVES, MOST_REMEDIES = 3, 2
MOST_SCORES = 512  # keys of a query whose scores are kept for the backward pass on a CPU
MOST_ROWS = 32  # of a pass on a CPU of which training measures the size: to trace a row takes time there
SHORTEST = 512  # tokens: a remedy does not make examples shorter than that
FEWEST_NEW_TOKENS = 128  # nor answers


def by_sizes(recipe: Recipe, machine: Machine, config: Any, base: Path) -> Plan:
    """The plan by rules and by the sizes of weights, without a trace. Raises UserError where the recipe does not fit
    the machine or the model."""
    return with_kept_layers(without_memory(recipe, machine, config), recipe, config, base, machine)


def without_memory(recipe: Recipe, machine: Machine, config: Any) -> Plan:
    """The part of the plan that does not depend on memory."""
    plan = choose(recipe, machine)
    positions = trained_positions(config)
    if positions and plan.sequence_length > positions:
        plan = within(plan, recipe, limit_of(config))
    return plan


def surely_fits(recipe: Recipe, machine: Machine, config: Any, base: Path) -> bool:
    """Whether far more memory than a step can need is free: all weights with gradients and moments in float32, and
    activations of all layers by a generous rule. To trace such a small model takes longer than it is worth."""
    plan, text = without_memory(recipe, machine, config), config.get_text_config()
    whole = sizes(plan, recipe, config, base).whole
    experts = getattr(text, "num_experts_per_tok", None) or 1
    wide = max(numbers_of(getattr(text, "intermediate_size", None)) or [4 * text.hidden_size])
    scores = (getattr(text, "num_attention_heads", None) or 1) * min(plan.sequence_length, MOST_SCORES)
    row = 40 * text.hidden_size + 12 * wide * experts + 4 * scores
    needed = 4 * (whole + 4 * plan.micro_batch_tokens * (text.num_hidden_layers * row + 4 * text.vocab_size))
    return all(needed < place.room for place in places_of(machine, plan.processes))


def predict(recipe: Recipe, machine: Machine, config: Any, base: Path) -> Prediction:
    """Chooses the plan by tracing its step, and if nothing fits, finds what would. Raises UserError as `by_sizes`
    does."""
    found = _predicted(recipe, machine, config, base)
    if found.fits is not False:
        return found
    return replace(found, remedies=_remedies(recipe, machine, config, base, found))


def with_thin_link(found: Prediction, recipe: Recipe, machine: Machine, config: Any, base: Path) -> Prediction:
    """The prediction with 4-bit weights as the first alternative, if layers that come over a link bound the step and
    a quarter of the bytes makes it faster. That takes as long as `predict`."""
    if not found.speed or found.speed.bound != "link" or found.plan.kept_layers is None:
        return found
    if recipe.adapter.kind == "full" or recipe.model.quantize != "none" or not find_spec(BITSANDBYTES):
        return found
    other = _tried({"model.quantize": "nf4"}, recipe, machine, config, base)
    if not other or (other.tokens_per_second or 0) <= WORTH * found.speed.tokens_per_second:
        return found
    return replace(found, alternatives=[other, *found.alternatives])


def _predicted(recipe: Recipe, machine: Machine, config: Any, base: Path) -> Prediction:
    check_config(recipe.model, recipe.adapter, base, config)
    plan = without_memory(recipe, machine, config)
    if is_measured(recipe):
        return _before_measuring(recipe, machine, config, base)
    try:
        amount, no_training = training(recipe, plan, base), ""
    except UserError as missing:
        amount, no_training = None, str(missing)
    layouts = Layouts(recipe, machine, config, base, plan, amount.row_tokens if amount else None)
    try:
        best = layouts.best()
        if best:
            found = replace(with_beside(_chosen(best, layouts), best, layouts, amount), no_training=no_training)
            return with_cost(_corrected(found, layouts), recipe, amount)
        if layouts.problems:
            raise layouts.problems[-1]
        smallest = layouts.smallest()
        return Prediction(smallest.plan, smallest.needs, speed=smallest.speed)
    except UserError:
        raise
    except Exception as error:  # whatever a model or kernel without a fake form raises
        return _by_sizes_alone(recipe, machine, config, base, untraceable(error))


def _before_measuring(recipe: Recipe, machine: Machine, config: Any, base: Path) -> Prediction:
    """The prediction of a run that measures what fits: that of the recipe with what should fit, by the trace."""
    plan = by_sizes(recipe, machine, config, base)
    if plan.kept_layers is not None:
        problem = "training measures what fits, and layers stay in host memory"
        return _by_sizes_alone(recipe, machine, config, base, problem)
    traced: dict[str, Measured] = {}

    def measure(plan: Plan, shapes: Shapes) -> Measured:
        return traced.setdefault(layers_key(plan), _traced_passes(recipe, plan, config, machine, shapes))

    longest = trained_positions(config) or UNKNOWN_POSITIONS
    try:
        fits, _ = fitted(recipe, plan, longest, measure)
    except UserError:  # not one row
        fits = replace(plan, sequence_length=min(plan.sequence_length, longest), gradient_checkpointing="on")
        fits = replace(fits, micro_batch_tokens=fits.sequence_length)
    except Exception as error:  # as in `_predicted`
        return _by_sizes_alone(recipe, machine, config, base, untraceable(error))
    rows = max(1, fits.micro_batch_tokens // fits.sequence_length)
    if not machine.gpus and rows > MOST_ROWS:
        problem = (
            f"training measures what fits, about {rows:,} rows in a pass, and more than {MOST_ROWS} are not traced"
        )
        return replace(_by_sizes_alone(recipe, machine, config, base, problem), traced=traced)
    asked = {
        "data.sequence_length": fits.sequence_length,
        "train.micro_batch": rows,
        "train.gradient_checkpointing": fits.gradient_checkpointing,
        "train.tiled_mlp": "on" if fits.tiled_mlp else "off",
    }
    found = _predicted(recipe.changed(asked), machine, config, base)
    return replace(found, traced=traced)


def _traced_passes(recipe: Recipe, plan: Plan, config: Any, machine: Machine, shapes: Shapes) -> Measured:
    """Passes of every second shape and the last, up to the first that does not fit."""
    from tunesmith.planner.depths import trace_step

    place = places_of(machine, plan.processes)[0]
    points: list[tuple[int, int]] = []
    flops = [0]
    few = shapes if machine.gpus else [shape for shape in shapes if shape[0] <= MOST_ROWS] or shapes[:1]
    for rows, length in [*few[:-1:2], few[-1]]:
        step = trace_step(recipe, replace(plan, sequence_length=length), config, [length] * rows, place.capability)
        points = points or [(0, sum(resting(step).values()))]
        points.append((step.tokens, step.peak_bytes))
        flops.append(step.pass_work.flops)
        if step.peak_bytes > place.room:
            break
    return Measured(points, place.room, flops=flops)


def _by_sizes_alone(recipe: Recipe, machine: Machine, config: Any, base: Path, problem: str) -> Prediction:
    """The prediction of a run that is not traced, for the given reason."""
    plan = by_sizes(recipe, machine, config, base)
    return Prediction(plan, None, problem, disk=disk_by_sizes(recipe, plan, config, base, machine))


def _corrected(found: Prediction, layouts: Layouts) -> Prediction:
    """The prediction with the speed that an earlier run of its kind reached."""
    if not found.speed:
        return found
    devices = [need.place.name for need in found.needs or ()]
    kind = kind_of_run(layouts.recipe, found.plan, devices, layouts.config)
    found = replace(found, kind=kind)
    ratio = ratio_of(kind)
    if not ratio:
        return found
    speed = replace(found.speed, step_seconds=found.speed.step_seconds / ratio)
    beside = found.beside and replace(found.beside, tokens_per_second=found.beside.tokens_per_second * ratio)
    return replace(found, speed=speed, beside=beside, correction=ratio, rates_from="an earlier run")


def _chosen(best: Layout, layouts: Layouts) -> Prediction:
    plan, machine = best.plan, layouts.machine
    reasons = {}
    if layouts.recipe.train.gradient_checkpointing == "auto":
        reasons["gradient_checkpointing"] = "the fastest that fits" if best.speed else "the least that fits"
    left_out = [gpu for gpu in machine.gpus if gpu not in best.machine.gpus]
    chosen = [gpu.uuid for gpu in best.machine.gpus] if left_out else []
    return Prediction(
        replace(plan, reasons=plan.reasons | reasons, gpus=chosen),
        best.needs,
        host_bytes=best.host_bytes,
        speed=best.speed,
        rates_from=layouts.rates_from,
        left_out={gpu.label: _why_left_out(gpu, best, layouts) for gpu in left_out},
        alternatives=_alternatives(best, layouts),
    )


def _why_left_out(gpu: Gpu, best: Layout, layouts: Layouts) -> str:
    """Compares with the fastest layout in which the GPU takes part."""
    if layouts.recipe.train.processes:
        return f"train.processes: {layouts.recipe.train.processes}"
    rates = [layout.rate for layout in layouts.seen if gpu in layout.machine.gpus]
    if not rates:
        return "with it the step does not fit"
    return f"with it {max(rates):,.0f} tokens/s instead of {best.rate:,.0f}"


def _alternatives(best: Layout, layouts: Layouts) -> list[Alternative]:
    """The fastest of the other layouts, one for each set of GPUs and way of recomputation."""
    fastest: dict[tuple, Layout] = {}
    for layout in sorted(layouts.seen, key=lambda layout: -layout.rate):
        fastest.setdefault(_differs(layout, best), layout)
    fastest.pop((), None)
    return [
        Alternative(", ".join(change), layout.rate or None, max(need.nbytes for need in layout.needs))
        for change, layout in [*fastest.items()][:MOST_ALTERNATIVES]
    ]


def _differs(layout: Layout, best: Layout) -> tuple[str, ...]:
    """How a layout differs from the best."""
    changes = []
    if layout.machine.gpus != best.machine.gpus:
        changes.append(" + ".join(gpu.name for gpu in layout.machine.gpus) + " alone" * (len(layout.machine.gpus) == 1))
    if layout.plan.gradient_checkpointing != best.plan.gradient_checkpointing:
        changes.append(f"gradient_checkpointing: {layout.plan.gradient_checkpointing}")
    if (layout.plan.kept_layers is None) != (best.plan.kept_layers is None):
        changes.append("layers in host memory" if layout.plan.kept_layers else "all layers kept")
    elif layout.plan.activation_offload != best.plan.activation_offload:
        changes.append(f"activation_offload: {str(layout.plan.activation_offload).lower()}")
    return tuple(changes)


def _remedies(recipe: Recipe, machine: Machine, config: Any, base: Path, refused: Prediction) -> list[Alternative]:
    """The first changes of the recipe with which it fits, tried."""
    found: list[tuple[dict[str, Any], Alternative]] = []
    for change in _changes(recipe, refused):
        if any(before.items() <= change.items() for before, _ in found):
            continue  # it fits without the rest
        if other := _tried(change, recipe, machine, config, base):
            found.append((change, other))
        if len(found) == MOST_REMEDIES:
            break
    return [other for _, other in found]


def _tried(change: dict[str, Any], recipe: Recipe, machine: Machine, config: Any, base: Path) -> Alternative | None:
    """The recipe with a change, and its price; None if it does not fit."""
    try:
        other = _predicted(recipe.changed(change), machine, config, base)
    except UserError:
        return None
    if not (other.fits and other.tightest):
        return None
    return Alternative(
        ", ".join(f"{key}: {value}" for key, value in change.items()),
        other.speed.tokens_per_second if other.speed else None,
        other.tightest.nbytes,
        price_in_quality(change, recipe.data.too_long),
    )


def _changes(recipe: Recipe, refused: Prediction) -> Iterator[dict[str, Any]]:
    """Changes of the recipe that need less memory, those that cost least first. With the first ones the result of
    training stays the same."""
    less: dict[str, Any] = {}
    if refused.tightest and refused.tightest.stage == ANSWERING:
        if recipe.evaluate.max_new_tokens > FEWEST_NEW_TOKENS:
            yield {"evaluate.max_new_tokens": FEWEST_NEW_TOKENS}
        none = {"evaluate.samples": 0}
        yield {"evaluate.exact_match": "off"} | none if recipe.evaluate.exact_match else none
    if recipe.train.gradient_checkpointing not in ("auto", "on"):
        less = {"train.gradient_checkpointing": "on"}
        yield less
    if isinstance(recipe.train.micro_batch, int) and recipe.train.micro_batch > 1:
        less = less | {"train.micro_batch": 1}
        yield less
    if recipe.adapter.kind == "full":
        less = less | {"adapter.kind": "lora"}
        yield less
    if recipe.model.quantize == "none" and find_spec(BITSANDBYTES):
        less = less | {"model.quantize": "nf4"}
        yield less
    length = refused.plan.sequence_length // 2
    while length >= SHORTEST:
        yield less | {"data.sequence_length": length}
        length //= 2


def untraceable(error: Exception) -> str:
    """Why the memory of a run is not predicted."""
    return f"this model's step cannot be traced ({first_line(error)})"
