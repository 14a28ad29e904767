"""The memory and work of a run beside its training steps, and the bytes that it saves, without storage or numbers.

The model is built as it trains (trace.py), and takes an update so that its optimizer has its states. Then it computes
held-out rows, and answers prompts with the code that answers them in a run. All of that grows by the same bytes with
every layer, so it is traced at two small depths.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tunesmith.inference.generate import PREFILL_TOKENS, computed_together, most_likely
from tunesmith.inference.loaded_model import Part
from tunesmith.inference.transformers_model import TorchWeights, borrowed
from tunesmith.model.adapt import parameter_counts
from tunesmith.model.load import saved_dtype
from tunesmith.model.positions import limit
from tunesmith.plan import Plan
from tunesmith.planner import depths, trace
from tunesmith.planner.beside_steps import ANSWERING, EVALUATING, Asked, Beside
from tunesmith.planner.cost import Work
from tunesmith.planner.live_bytes import LiveBytes
from tunesmith.planner.work import CountWork
from tunesmith.recipe import Recipe
from tunesmith.training.batch import Batch
from tunesmith.training.build import Facts, Trainable
from tunesmith.training.checkpoint import Contents, State
from tunesmith.training.loss import autocast, head_by_form, token_losses

KEYS = "keys and values"
PARTS = ("batch", "activations", KEYS)
# The numbers that code reads from tensors without storage: each trial succeeds, and every token is the first.
READS: dict[torch.dtype, bool | int] = {torch.bool: True, torch.int64: 0}

Figures = dict[tuple[str, ...], int]


def trace_beside(
    recipe: Recipe, plan: Plan, config: Any, asked: Asked, capability: tuple[int, int] | None = None
) -> Beside:
    """Traces a process that keeps all layers. `capability`: of the GPU that is planned, if one is."""

    def figures(config: Any) -> Figures:
        with trace.fake_model(recipe, plan, config, capability) as (model, live):
            live.reads = READS
            not_packed = trace.ROUNDS_TOGETHER if trace.quantized_as(recipe, config) == "int8" else None
            return measure(live, model, recipe, plan, asked, lambda model, plan: Facts(not_packed, head_by_form(model)))

    found = _at_all_layers(figures, config)
    answering = [
        {part: found[stage, part] for part in PARTS} for stage in ("prompts", "tokens") if (stage, KEYS) in found
    ]
    stages = {EVALUATING: {part: found[EVALUATING, part] for part in PARTS}}
    if answering:
        stages[ANSWERING] = max(answering, key=lambda parts: sum(parts.values()))
    weights, elements = found["weights",], found["elements",]
    products = found["token", "flops"] / 2  # weights that products use, each as often as there are tokens
    # In the precision of computing, and of a mixture of experts not all.
    in_compute = elements * getattr(torch, plan.compute).itemsize
    read = round(min(weights, in_compute) * min(1.0, products / elements))
    together = _together(asked)
    kept = found.get((KEYS,), 0) * (asked.row_tokens + asked.new_tokens // 2)  # of an answer that is half done
    whole, saved = recipe.adapter.kind == "full", elements * saved_dtype(recipe.model, config).itemsize
    return Beside(
        stages,
        pass_tokens=found["pass", "tokens"],
        pass_work=Work(found["pass", "flops"], found["pass", "moved"]),
        token_work=Work(found["token", "flops"], found["token", "moved"] + together * kept),
        token_read_bytes=read,
        together=together,
        checkpoint_bytes=found["checkpoint",],
        result_bytes=saved if whole else found["trained",],
        base_bytes=saved,
    )


def measure(
    live: LiveBytes,
    model: nn.Module,
    recipe: Recipe,
    plan: Plan,
    asked: Asked,
    inspect: Callable[[nn.Module, Plan], Facts],
) -> Figures:
    """Bytes and work of a model of real or fake tensors that is not built yet: by stage and part, or by name."""
    built = trace.build(live, model, recipe, plan, None, inspect)
    found: Figures = {("weights",): live.now, ("elements",): parameter_counts(built.model)[1]}
    with live:
        trace.give_gradients(built.model, None)
        trace.update(built.optimizer, 0)
    built.model.eval()
    contents = Contents.of(built.optimizer, State())
    found["checkpoint",] = contents.nbytes
    found["trained",] = sum(tensor.nbytes for tensor in contents.trained.values())
    long, mean = plan.sequence_length, min(asked.row_tokens, plan.sequence_length)
    with live:
        live.begin("batch")
        batch = trace.batch_of([long] * max(1, plan.micro_batch_tokens // long), built.plan.packing)
        live.begin("activations")
        with torch.inference_mode(), autocast(built.plan):
            token_losses(built.model, batch, built.head)
        found |= _peak(live, EVALUATING)
        del batch
        if asked.prompts:
            found |= _answering(live, built, asked, long)
        found |= _work(built, [mean] * max(1, plan.micro_batch_tokens // mean), "pass")
        found |= _work(built, [_together(asked) + 1], "token")
    return found


def _together(asked: Asked) -> int:
    """How many answers of mean length are computed together."""
    return min(asked.prompts or 1, computed_together(asked.row_tokens + asked.new_tokens))


def _peak(live: LiveBytes, stage: str) -> Figures:
    return {(stage, part): live.at_peak.get(part, 0) for part in PARTS}


def _answering(live: LiveBytes, built: Trainable, asked: Asked, longest_row: int) -> Figures:
    """The peaks of passes over prompts and over tokens of answers, of the longest sequences that there may be."""
    found: Figures = {}
    longest = longest_row + asked.new_tokens
    longest = min(longest, limit(built.model) or longest)
    sequences = min(asked.prompts, computed_together(longest))
    with autocast(built.plan), borrowed(built.model) as weights, torch.inference_mode():
        found[KEYS,] = weights.bytes_per_token
        live.begin(KEYS)
        for stage, parts in _passes(weights, sequences, min(longest_row, longest - 1), longest):
            logits_NV = weights.logits(None, parts)
            if stage:
                most_likely(logits_NV)
                found |= _peak(live, stage)
            del logits_NV
            live.begin("activations")
    return found


def _passes(weights: TorchWeights, sequences: int, prompt: int, longest: int) -> Iterator[tuple[str, list[Part]]]:
    """Passes over prompts with tokens of all other answers, and over a token of each answer; and without a name those
    after which the keys and values for them are there. All sequences have a prompt of `prompt` tokens."""
    new_kv = weights.kv_maker(sequences, longest)
    kvs = [new_kv() for _ in range(sequences)]
    tokens = [Part(kv, longest - 1, [0], True) for kv in kvs]
    if not weights.divides:  # all prompts are computed whole, in one pass
        yield "prompts", [Part(kv, 0, [0] * prompt, True) for kv in kvs]
        if longest > prompt + 1:
            yield "", [Part(kv, prompt, [0] * (longest - 1 - prompt), True) for kv in kvs]
    else:
        whole, rest = divmod(PREFILL_TOKENS, prompt)
        counts = [prompt] * min(whole, sequences) + [rest] * (whole < sequences and rest > 0)
        parts = [Part(kv, prompt - count, [0] * count, True) for kv, count in zip(kvs, counts)]
        yield "", parts
        yield "prompts", parts + tokens[len(parts) :]
    yield "tokens", tokens


def _work(built: Trainable, lengths: list[int], name: str) -> Figures:
    """The work of a forward pass. Without gradients, but not in inference mode, which hides products."""
    batch: Batch = trace.batch_of(lengths, built.plan.packing)
    with CountWork() as count, torch.no_grad(), autocast(built.plan):
        token_losses(built.model, batch, built.head)
    tokens = batch.input_ids_BT.numel()
    return {(name, "tokens"): tokens, (name, "flops"): count.done.flops, (name, "moved"): count.done.moved_bytes}


def _at_all_layers(measure: Callable[[Any], Figures], config: Any) -> Figures:
    """Returns the figures of `measure` at all layers: the point on the line through two depths."""
    kinds = depths.layer_kinds(config)
    begin, period = depths.repetition(kinds)
    few = begin + period + (len(kinds) - begin - 1) % period + 1  # so that the last layers are of the same kinds
    if len(kinds) <= few + period:
        return measure(config)
    at_few, at_many = (measure(depths.shallow(config, layers)) for layers in (few, few + period))
    scale = (len(kinds) - few) / period
    return {key: round(at_few[key] + (at_many[key] - at_few[key]) * scale) for key in at_few}
