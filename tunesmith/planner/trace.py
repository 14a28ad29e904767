"""The memory of a training step, found by running the step itself on tensors without storage.

The model is built on torch's meta device, adapted and transformed by the functions that training calls, and its
parameters become fake tensors. Then two steps run, the second of which has the optimizer's states, while every storage
that is alive is counted. Memory that no dispatcher sees is not among it: temporaries inside of kernels, workspaces,
fragments of an allocator.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
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
from tunesmith.training.build import Facts, Trainable, place, transform
from tunesmith.training.home import Home, TrainedHome
from tunesmith.training.host_optimizer import HostOptimizer
from tunesmith.training.loss import autocast, head_by_form, method_loss
from tunesmith.training.optimizer import Optimizer, build_optimizer
from tunesmith.training.planned_device import plan_for_gpu
from tunesmith.training.progress_marks import followed
from tunesmith.training.shared_memory import Layout
from tunesmith.training.walk import backward

CPU = torch.device("cpu")
STEPS = 2  # the first has no moments yet
PARTS = ("weights", "batch", "activations", "gradients", "optimizer")
Stage = tuple[str, int]  # of a step; the number of the layer, from 0 on or from -1 down, or 0
UPDATE: Stage = ("update", 0)
ROUNDS_TOGETHER = "LLM.int8 rounds the tokens of all examples together"


@dataclass(frozen=True)
class Traced:
    """Two steps of one process: their bytes, and the work of the second."""

    stages: dict[Stage, dict[str, int]]
    """On the device by part, at the peak of each stage. Each layer's stage is there twice, counted from the first layer
    on and from the last one down."""
    host: dict[str, int]
    """In host memory, the most of each part."""
    at_home: dict[int, Layout]
    """The weights of each layer that is at home in host memory, and home.REST."""
    tokens: int = 0
    """Tokens of all micro-batches."""
    pass_work: Work = field(default=Work(), compare=False)
    """Work of the forward and backward pass of all micro-batches. Of a walk it is not counted, nor of its update."""
    update_work: Work = field(default=Work(), compare=False)

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


def trace(
    recipe: Recipe,
    plan: Plan,
    config: Any,
    lengths: list[int],
    capability: tuple[int, int] | None = None,
    kept: int | None = None,
    batches: int = 1,
    passes: int = 1,
) -> Traced:
    """Runs two steps of so many micro-batches, which all have sequences of these lengths.

    `config`: that of transformers. `capability`: of the GPU that is planned, if one is. `kept`: how many layers it
    keeps; None: all of them, and their gradients and moments too. `passes`: see `steps`. Raises UserError for a setting
    that does not suit the model.
    """
    return trace_several(recipe, plan, config, lengths, capability, kept, [batches], passes)[batches]


def trace_several(
    recipe: Recipe,
    plan: Plan,
    config: Any,
    lengths: list[int],
    capability: tuple[int, int] | None,
    kept: int | None,
    numbers: Sequence[int],
    passes: int = 1,
) -> dict[int, Traced]:
    """As `trace`, for each of these numbers of micro-batches, of which none is less than the one before."""
    with fake_model(recipe, plan, config, capability) as (model, live):
        not_packed = ROUNDS_TOGETHER if quantized_as(recipe, config) == "int8" else None
        built = build(live, model, recipe, plan, kept, lambda model, plan: Facts(not_packed, head_by_form(model)))
        method = Method(recipe.method)
        found: dict[int, Traced] = {}
        for number in numbers:
            made = [batch_of(lengths, built.plan.packing) for _ in range(number)]
            # Once the optimizer has its states, one step shows all that a step needs.
            found[number] = steps(live, built, method, made, passes, first=STEPS - 1 if found else 0)
            built.routing.forget()
            del made
        return found


def trace_update(
    recipe: Recipe,
    plan: Plan,
    config: Any,
    capability: tuple[int, int] | None = None,
    kept: int | None = None,
) -> Traced:
    """Runs two updates alone, as if all gradients were there. For the arguments see `trace`."""
    plan = replace(plan, device="cpu", kept_layers=None if kept is None else [kept])
    with fake_model(recipe, plan, config, capability) as (model, live), live:
        live.begin("weights")
        live.count(*_tensors(model))
        home = place(model, plan, CPU, _ignore, trains_whole=True)
        optimizer = (
            HostOptimizer(model, home, recipe.train)
            if isinstance(home, TrainedHome)
            else build_optimizer(model, recipe.train)
        )
        stages = _Stages(live, 0)
        for step in range(STEPS):
            stages.begin(("before the update", 0), "gradients")
            give_gradients(model, home)
            stages.begin(UPDATE, "optimizer")
            update(optimizer, step)
        stages.begin(("end", 0), "")
        return Traced(stages.peaks, dict(live.host_peaks), {})


def give_gradients(model: nn.Module, home: Home | None) -> None:
    """Gives each parameter that trains a gradient, as a backward pass would."""
    gradients = home.gradients if home else None
    groups = gradients.parameters if gradients else {0: [p for p in model.parameters() if p.requires_grad]}
    for group, parameters in groups.items():
        if home:
            home.use(group, forwards=False)
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        if gradients:
            gradients.collect(group)
            gradients.deliver(group)
    if gradients:
        gradients.finish()


@contextmanager
def fake_model(
    recipe: Recipe, plan: Plan, config: Any, capability: tuple[int, int] | None
) -> Iterator[tuple[nn.Module, LiveBytes]]:
    """The adapted model on tensors without storage and a count of its bytes. Within it all tensors have no storage."""
    dtype, attention = getattr(torch, plan.weights), packed_attention.choose(config, plan.packing)
    config, new_ids = _with_new_tokens(config, len(recipe.model.new_tokens))
    with torch.device("meta"):
        model = load.with_random_weights(config, dtype, attention)
        _quantize(model, quantized_as(recipe, config), stored_by_bitsandbytes(recipe, config), dtype)
        model = adapt(model, recipe.adapter, new_ids, 0)
    with FakeTensorMode(), plan_for_gpu(capability) if capability else nullcontext():
        without_storage(model)
        yield model, LiveBytes()


def quantized_as(recipe: Recipe, config: Any) -> str:
    """none, nf4 or int8, by the recipe or the base's own files."""
    if not stored_by_bitsandbytes(recipe, config):
        return recipe.model.quantize
    return "int8" if load.stored_in_8_bits(config) else "nf4"


def stored_by_bitsandbytes(recipe: Recipe, config: Any) -> dict | None:
    """How the base's own files are quantised; None if they are not, or not for training."""
    is_read = recipe.model.initialize == "pretrained" and load.stored_as(config) == load.BITSANDBYTES
    return load.stored_settings(config) if is_read else None


def _quantize(model: nn.Module, kind: str, stored: dict | None, dtype: torch.dtype) -> None:
    """Quantises a model on the meta device."""
    if kind == "none":
        return
    from tunesmith.model import quantize

    if kind == "nf4":
        quantize.quantize_nf4(model, dtype, stored)
    else:
        quantize.quantize_int8(model, stored)


def _with_new_tokens(config: Any, count: int) -> tuple[Any, list[int]]:
    """The config of the model with so many more tokens, and their ids. As if its embedding had no spare rows."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    first = text.vocab_size
    text.vocab_size += count
    return config, [*range(first, first + count)]


def build(
    live: LiveBytes,
    model: nn.Module,
    recipe: Recipe,
    plan: Plan,
    kept: int | None,
    inspect: Callable[[nn.Module, Plan], Facts],
) -> Trainable:
    """The model of real or fake tensors as it trains, whose bytes are counted from here on."""
    plan = replace(plan, device="cpu", kept_layers=None if kept is None else [kept])  # where the tensors are
    live.begin("weights")
    live.count(*_tensors(model))
    with live:
        home = place(model, plan, CPU, _ignore, recipe.adapter.kind == "full")
        if home and home.gradients:
            home.gradients.is_first = plan.processes == 1  # the others hold the sum of those before them as well
        return transform(model, recipe, plan, inspect(model, plan), _ignore, home)


def steps(
    live: LiveBytes, built: Trainable, method: Method, batches: list[Batch], passes: int = STEPS, first: int = 0
) -> Traced:
    """Two steps on real or fake tensors, or those from the first one on. `passes`: how many of them have a forward and
    backward pass. If only the second has one, the first has gradients of no meaning, which give the optimizer its
    states in less time."""
    model, walk, layers = built.model, built.walk, decoder_layers(built.model)
    model.train()
    live.begin("batch")
    live.count(*(value for batch in batches for value in vars(batch).values() if isinstance(value, torch.Tensor)))
    stages = _Stages(live, len(layers))

    def loss(batch: Batch) -> torch.Tensor:
        with autocast(built.plan):
            total, _ = method_loss(method, model, batch, built.head)
        stages.begin(("backward of the loss", 0), "gradients")
        return total / batch.supervised_tokens

    in_pass, in_update = CountWork(), CountWork()
    for_nothing = nullcontext()  # the work of a walk is that of a step without one
    with live, followed(stages.follow) if walk else stages.marked(layers):
        for step in range(first, STEPS):
            is_last = step == STEPS - 1 and not walk
            with in_pass if is_last else for_nothing:
                if step < STEPS - passes:
                    live.begin("gradients")
                    give_gradients(model, walk.home if walk else None)
                else:
                    stages.begin(("before the layers", 0), "activations")
                    backward(walk, batches, loss, lambda batch: built.routing.loss(batch, 1.0), lambda batch: None)
            stages.begin(UPDATE, "optimizer")
            with in_update if is_last else for_nothing:
                update(built.optimizer, step)
    stages.begin(("end", 0), "")
    return Traced(
        stages.peaks,
        dict(live.host_peaks),
        walk.home.layouts if walk else {},
        sum(batch.input_ids_BT.numel() for batch in batches),
        in_pass.done,
        in_update.done,
    )


def update(optimizer: Optimizer, step: int) -> None:
    """Clips and updates as training does."""
    optimizer.clip(1.0)
    optimizer.step((0, step))
    optimizer.zero_grad()


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

    def follow(self, phase: str, layer: int) -> None:
        """Begins the stages of a walk, which marks them (training/progress_marks.py)."""
        if phase == "loss":
            self.begin(("loss", 0), "activations")
        elif phase == "forward":
            self.begin(("forward of layer", layer - 1) if layer else ("before the layers", 0), "activations")
        elif phase == "backward":
            self.begin(("backward of layer", layer - 1) if layer else ("backward before the layers", 0), "gradients")

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
    return any(getattr(tensor, name, None) is not None for name in ("quant_state", "packed", "SCB"))


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
