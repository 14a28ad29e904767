"""The memory of a training step, found by running the step itself on tensors without storage.

The model is built on torch's meta device, adapted and transformed by the functions that training calls, and its
parameters become fake tensors. Then two steps run, the second of which has the optimizer's states, while every storage
that is alive is counted. Memory that no dispatcher sees is not among it: temporaries inside of kernels, workspaces,
fragments of an allocator.

A model of many layers is traced at two small depths, of layers whose kinds repeat. The peak of each stage of a step,
such as the backward pass of the last layer, grows by the same bytes with every layer. So each stage has a line through
two depths, and the largest of them is the peak at all layers.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tunesmith.methods import Method
from tunesmith.model import load
from tunesmith.model.adapt import adapt
from tunesmith.model.text import decoder_layers
from tunesmith.plan import Plan
from tunesmith.planner.cost import Work
from tunesmith.planner.live_bytes import LiveBytes
from tunesmith.planner.work import CountWork
from tunesmith.recipe import Recipe
from tunesmith.training import packed_attention
from tunesmith.training.batch import Batch, collate
from tunesmith.training.build import Facts, Trainable, transform
from tunesmith.training.loss import autocast, head_by_form, method_loss
from tunesmith.training.planned_device import plan_for_gpu
from tunesmith.training.walk import backward

STEPS = 2  # the first has no moments yet
PARTS = ("weights", "batch", "activations", "gradients", "optimizer")
Stage = tuple[str, int]  # of a step; the number of the layer, from 0 on or from -1 down, or 0


@dataclass(frozen=True)
class Step:
    """A training step with one micro-batch."""

    stages: dict[Stage, dict[str, int]]
    """Bytes by part at the peak of each stage."""
    tokens: int
    """Tokens of the micro-batch."""
    pass_work: Work
    """Work of the forward and backward pass."""
    update_work: Work

    @property
    def stage(self) -> Stage:
        """The stage with the most bytes."""
        return max(self.stages, key=lambda stage: sum(self.stages[stage].values()))

    @property
    def peak(self) -> dict[str, int]:
        """Bytes by part in that stage."""
        return self.stages[self.stage]

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values())


def trace_step(
    recipe: Recipe, plan: Plan, config: Any, lengths: list[int], capability: tuple[int, int] | None = None
) -> Step:
    """Traces a training step of a model with all its layers. For the arguments see `trace`."""
    kinds = layer_kinds(config)
    begin, period = repetition(kinds)
    few, many = begin + 2 * period, begin + 3 * period
    is_even = isinstance(plan.gradient_checkpointing, str)  # else which layers recompute depends on their number
    if len(kinds) <= many or not is_even:
        return trace(recipe, plan, config, lengths, capability)
    at_few, at_many = (trace(recipe, plan, shallow(config, n), lengths, capability) for n in (few, many))
    scale = (len(kinds) - few) / (many - few)
    stages = {
        stage: {
            part: round(bytes_few + (at_many.stages[stage][part] - bytes_few) * scale)
            for part, bytes_few in parts.items()
        }
        for stage, parts in at_few.stages.items()
        if -period <= stage[1] < begin + period
    }
    return Step(
        stages,
        at_few.tokens,
        at_few.pass_work + (at_many.pass_work - at_few.pass_work) * scale,
        at_few.update_work + (at_many.update_work - at_few.update_work) * scale,
    )


def trace(
    recipe: Recipe,
    plan: Plan,
    config: Any,
    lengths: list[int],
    capability: tuple[int, int] | None = None,
) -> Step:
    """Traces a step whose micro-batch has sequences of these lengths. Each layer's stage is there twice, counted from
    the first layer on and from the last one down.

    `config`: that of transformers. `capability`: of the GPU that is planned, if one is. Raises UserError for a setting
    that does not suit the model.
    """
    mode = FakeTensorMode()
    dtype, attention = getattr(torch, plan.weights), packed_attention.choose(config, plan.packing)
    with torch.device("meta"):
        model = load.with_random_weights(config, dtype, attention)
        if recipe.model.quantize == "nf4":
            from tunesmith.model import quantize

            quantize.quantize_nf4(model, dtype)
        model = adapt(model, recipe.adapter, [], 0)
    plan = replace(plan, device="cpu")  # where the fake tensors are
    with mode, plan_for_gpu(capability) if capability else nullcontext():
        without_storage(model)
        built = transform(model, recipe, plan, Facts(None, head_by_form(model)), _ignore)
        return observe(built, Method(recipe.method), batch_of(lengths, plan.packing))


def observe(built: Trainable, method: Method, batch: Batch) -> Step:
    """Runs two steps, on real or fake tensors: the peaks of both, and the work of the second."""
    live, model, optimizer = LiveBytes(), built.model, built.optimizer
    model.train()
    live.begin("weights")
    live.count(*_tensors(model))
    live.begin("batch")
    live.count(*(value for value in vars(batch).values() if isinstance(value, torch.Tensor)))
    stages = _Stages(live, len(decoder_layers(model)))

    def loss(batch: Batch) -> torch.Tensor:
        with autocast(built.plan):
            total, _ = method_loss(method, model, batch, built.head)
        stages.begin(("backward of the loss", 0), "gradients")
        return total / batch.supervised_tokens

    with live, stages.marked(decoder_layers(model)):
        for step in range(STEPS):
            stages.begin(("before the layers", 0), "activations")
            with CountWork() as in_pass:
                backward(None, [batch], loss, lambda batch: built.routing.loss(batch, 1.0), lambda batch: None)
            stages.begin(("update", 0), "optimizer")
            with CountWork() as in_update:
                optimizer.clip(1.0)
                optimizer.step((0, step))
                optimizer.zero_grad()
    stages.begin(("end", 0), "")
    return Step(stages.peaks, batch.input_ids_BT.numel(), in_pass.done, in_update.done)


class _Stages:
    """Divides a step into stages, and keeps the largest peak of each."""

    def __init__(self, live: LiveBytes, layers: int):
        self._live, self._layers = live, layers
        self._stage: Stage | None = None
        self.peaks: dict[Stage, dict[str, int]] = {}

    def begin(self, stage: Stage, part: str) -> None:
        """Ends a stage, and begins another, whose new storages are of this part."""
        if self._stage:
            found = {name: self._live.at_peak.get(name, 0) for name in PARTS}
            before = self.peaks.get(self._stage, found)
            self.peaks[self._stage] = max(before, found, key=lambda parts: sum(parts.values()))
            name, number = self._stage
            if "layer" in name.split():
                self.peaks[name, number - self._layers] = self.peaks[self._stage]
        self._stage = stage
        self._live.begin(part)

    @contextmanager
    def marked(self, layers: list[nn.Module]) -> Iterator[None]:
        """Within it the layers begin stages: of their forward pass and, when the gradient by their input is there, of
        the backward pass of the layer before. That of the last layer is one stage with that of the loss."""

        def before_layer(number: int, args: tuple) -> None:
            self.begin(("forward of layer", number), "activations")
            following = ("backward of layer", number - 1) if number else ("backward before the layers", 0)
            if args and isinstance(args[0], torch.Tensor) and args[0].requires_grad:
                args[0].register_hook(lambda _: self.begin(following, "gradients"))

        def after_layers(*_: Any) -> None:
            self.begin(("loss", 0), "activations")

        hooks = [
            layer.register_forward_pre_hook(lambda _, args, number=number: before_layer(number, args))
            for number, layer in enumerate(layers)
        ]
        hooks.append(layers[-1].register_forward_hook(after_layers))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


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


def batch_of(lengths: list[int], packed: bool) -> Batch:
    """A batch of sequences of these lengths, all of whose tokens are learned. On fake tensors under a fake mode."""
    tokens = [(np.zeros(length, np.int64), np.ones(length, bool)) for length in lengths]
    batch = collate(tokens, np.arange(len(lengths)), packed)
    tensors: dict[str, Any] = {
        name: torch.empty_like(x) for name, x in vars(batch).items() if isinstance(x, torch.Tensor)
    }
    return replace(batch, **tensors)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers, and the scales of quantised parameters."""
    yield from model.buffers()
    for parameter in model.parameters():
        yield getattr(parameter, "packed", parameter)
        if _is_quantized(parameter):
            from tunesmith.model import quantize

            yield from quantize.scales(parameter)


def _is_quantized(tensor: torch.Tensor) -> bool:
    return getattr(tensor, "quant_state", None) is not None or hasattr(tensor, "packed")


def without_storage(model: nn.Module) -> None:
    """Replaces parameters and buffers on the meta device by fake ones on the CPU, where all kernels have a fake form. A
    fake GPU would need a build of torch for it."""
    made: dict[torch.Tensor, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)

    for module in model.modules():
        owned: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in owned:
            for name, tensor in tensors.items():
                if tensor is None or tensor.device.type != "meta":
                    continue
                if tensor in made:
                    tensors[name] = made[tensor]
                    continue
                if _is_quantized(tensor):
                    from tunesmith.model import quantize

                    new = quantize.with_other_tensors(tensor, fake)
                else:
                    is_parameter = isinstance(tensor, nn.Parameter)
                    new = nn.Parameter(fake(tensor), tensor.requires_grad) if is_parameter else fake(tensor)
                tensors[name] = made[tensor] = new


def _ignore(event: str, **values: Any) -> None:
    """Warnings are for the run itself."""
