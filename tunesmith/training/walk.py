"""Trains through a model's decoder layers one at a time, each for all micro-batches of a step. Where the layers' inputs
of all do not fit in memory, a step is several walks.

So a layer whose weights are not on the device is brought there twice a step, for the forward and for the backward pass,
however many micro-batches there are. The model's own forward is not rewritten. A pass of it with layers that return
their input records what each layer is given. Then the walk calls the layers itself. Last, a pass whose final layer
returns the walked state finishes the forward pass, so that the loss is computed as without a walk.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from tunesmith.errors import UserError, first_line
from tunesmith.model.memory import is_out_of_memory
from tunesmith.model.text import base_of, decoder_layers
from tunesmith.training.batch import Batch, collate
from tunesmith.training.home import REST, Home
from tunesmith.training.loss import forward
from tunesmith.training.offload import Offload
from tunesmith.training.progress_marks import mark, mark_layer

TRIAL = [(np.arange(1, 13), np.ones(12, bool))]  # a row


Loss = Callable[[Batch], torch.Tensor]
RouterLoss = Callable[[Batch], torch.Tensor | float]
Seed = Callable[[Batch], None]


def backward(walk: "Walk | None", batches: list[Batch], loss: Loss, router_loss: RouterLoss, seed: Seed) -> None:
    """Adds the gradients of the batches' losses to the parameters, batch after batch, or layer after layer with a walk.

    `loss` computes a batch's loss with the model, `router_loss` that of the routers that ran since it was last called.
    `seed` sets the random numbers of a batch.
    """
    if walk:
        walk.backward(batches, loss, router_loss, seed)
        return
    for batch in batches:
        seed(batch)
        (loss(batch) + router_loss(batch)).backward()


def in_walks(batches: list[Batch], most_tokens: int | None) -> list[list[Batch]]:
    """Divides batches into walks of at most so many tokens, padding included, and at least one batch."""
    walks: list[list[Batch]] = []
    tokens = 0
    for batch in batches:
        tokens += batch.input_ids_BT.numel()
        if not walks or (most_tokens is not None and tokens > most_tokens):
            walks.append([])
            tokens = batch.input_ids_BT.numel()
        walks[-1].append(batch)
    return walks


class Walk:
    """Replaces the forward of each decoder layer on the instance. Outside of `backward` the model works as before."""

    def __init__(
        self,
        model: nn.Module,
        home: Home,
        precision: Callable[[], AbstractContextManager],
        packed: bool,
        offload: Offload | None = None,
        most_tokens: int | None = None,
    ):
        """`precision`: the context of forward passes. `offload`: where the inputs of layers wait for the backward pass,
        if not on the device. `most_tokens`: of one walk; only for adapters. Raises UserError for a model whose layers
        cannot be computed one at a time."""
        self.home, self._precision, self._offload = home, precision, offload
        self._most_tokens = most_tokens
        self._random = _RandomState(home.device)
        self._decoder = base_of(model).get_decoder()
        self._layers = [_Layer(index, layer) for index, layer in enumerate(decoder_layers(model))]
        self._trains = [any(p.requires_grad for p in layer.module.parameters()) for layer in self._layers]
        trial = collate(TRIAL, np.array([0]), packed).to(home.device)
        self._check_form(type(base_of(model)).__name__, trial)
        self._check_backward(trial)
        model.zero_grad(set_to_none=True)

    def backward(self, batches: list[Batch], loss: Loss, router_loss: RouterLoss, seed: Seed) -> None:
        """As the function above; a parameter's gradients are added in the same order."""
        for walked_together in in_walks(batches, self._most_tokens):
            self._walk(walked_together, loss, router_loss, seed)
        if self.home.gradients:
            self.home.gradients.finish()

    def _walk(self, batches: list[Batch], loss: Loss, router_loss: RouterLoss, seed: Seed) -> None:
        gradients = self.home.gradients
        mark("forward")
        passes = [self._record(batch, seed) for batch in batches]
        for layer in self._layers:
            self._forward(layer, passes)
        for one in passes:
            self._finish(one, loss)
        learns = any(one.has_graph for one in passes)  # the embedding, for one
        for layer in reversed(self._layers):
            needs_gradient = learns or any(self._trains[: layer.index])
            if needs_gradient or self._trains[layer.index]:
                self._backward(layer, passes, needs_gradient, router_loss)
        mark("backward")
        for one in passes:
            one.backward_before_layers()
        if gradients:
            gradients.collect(REST)

    def _record(self, batch: Batch, seed: Seed) -> "_Pass":
        seed(batch)
        one = _Pass(batch)

        def note(layer: _Layer, hidden, args, kwargs):
            if layer.index == 0:
                one.first, hidden = hidden, hidden.detach()
            one.given.append((args, kwargs))
            return layer.as_output(hidden)

        with self._standing_in(note), self._precision():
            forward(self._decoder, batch)
        one.hidden, one.random = one.first.detach(), self._random.get()
        return one

    def _forward(self, layer: "_Layer", passes: list["_Pass"]) -> None:
        """Runs a layer for all batches and keeps its inputs. The last batch comes first: so the backward pass takes the
        inputs in the reverse order, as Offload brings them back."""
        self.home.use(layer.index)
        mark_layer("forward", layer.index + 1)
        for one in reversed(passes):
            args, kwargs = one.given[layer.index]
            one.inputs.append((self._offload.keep(one.hidden) if self._offload else one.hidden, one.random))
            self._random.set(one.random)
            with torch.no_grad(), self._precision():
                one.hidden = layer.run(one.hidden, *args, **kwargs)
            one.random = self._random.get()

    def _finish(self, one: "_Pass", loss: Loss) -> None:
        """Computes the loss from the walked state on, and its gradient by that state."""
        mark("loss")
        walked = one.hidden.detach().requires_grad_()

        def hand_on(layer: _Layer, hidden, args, kwargs):
            if layer is not self._layers[-1]:
                return layer.as_output(hidden)
            self._random.set(one.random)
            return layer.as_output(walked.view_as(walked))

        with self._standing_in(hand_on):
            loss(one.batch).backward()
        one.gradient, one.hidden = walked.grad, None

    def _backward(self, layer: "_Layer", passes: list["_Pass"], needs_gradient: bool, router_loss: RouterLoss) -> None:
        """Recomputes a layer for each batch and takes its gradients."""
        gradients = self.home.gradients
        self.home.use(layer.index, forwards=False)
        mark_layer("backward", layer.index + 1)
        for one in passes:
            kept, random = one.inputs.pop()
            hidden = (self._offload.take(kept) if self._offload else kept).detach().requires_grad_(needs_gradient)
            (args, kwargs), collect = one.leaves(layer.index)
            self._random.set(random)
            with torch.enable_grad(), self._precision():
                # A view, because autocast converts a leaf once for all that use it, and adds their gradients up so.
                out = layer.run(hidden.view_as(hidden), *args, **kwargs)
                router = router_loss(one.batch)
            if isinstance(router, torch.Tensor):
                torch.autograd.backward((out, router), (one.gradient, None))
            else:
                out.backward(one.gradient)
            one.gradient = hidden.grad
            collect()
            if gradients:
                gradients.collect(layer.index)
        if gradients:
            gradients.deliver(layer.index)

    @contextmanager
    def _standing_in(self, function: Callable) -> Iterator[None]:
        """Within it each layer gives what `function(layer, hidden, args, kwargs)` returns."""
        self.home.paused = True
        for layer in self._layers:
            layer.stand_in = function
        try:
            yield
        finally:
            self.home.paused = False
            for layer in self._layers:
                layer.stand_in = None

    def _check_form(self, name: str, trial: Batch) -> None:
        """Runs the model once, to see that each layer's input is the output of the one before and nothing else passes
        from layer to layer."""
        last, called, given, beside = None, [], [], []

        def observe(layer: _Layer, hidden, args, kwargs):
            nonlocal last
            if layer.index and hidden is not last:
                called.append(-1)
            called.append(layer.index)
            given.append((args, kwargs))
            self.home.use(layer.index)
            out = layer.inner(hidden, *args, **kwargs)
            layer.tuple_length = len(out) if isinstance(out, tuple) else None
            last, *others = out if isinstance(out, tuple) else (out,)
            beside.extend(id(tensor) for tensor in _tensors(others))
            return out

        try:
            with torch.no_grad(), self._standing_in(observe), self._precision():
                forward(self._decoder, trial)
        except TypeError:  # the hidden state is not the first argument
            called = []
        shared = any(isinstance(value, dict) and value for _, kwargs in given for value in kwargs.values())
        shared = shared or any(id(tensor) in beside for tensor in _tensors(given))
        if called != list(range(len(self._layers))) or shared:
            raise UserError(
                f"train.kept_layers: the layers of {name} cannot be computed one at a time, because more than the "
                "hidden state passes between them; use a model that fits on the GPU whole, or model.quantize: nf4"
            )

    def _check_backward(self, trial: Batch) -> None:
        """Runs a backward pass, which kernels for packed examples may lack on some GPUs."""

        def loss(batch: Batch) -> torch.Tensor:
            with self._precision():
                return forward(self._decoder, batch).last_hidden_state.float().sum()

        try:
            self.backward([trial], loss, lambda batch: 0.0, lambda batch: None)
        except (NotImplementedError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"data.packing: the model has no backward pass here ({first_line(error)}); set it to false"
            ) from None


class _Layer:
    """A decoder layer's forward, which another function may replace for a pass."""

    def __init__(self, index: int, module: nn.Module):
        self.index, self.module, self.inner = index, module, module.forward
        self.stand_in: Callable | None = None
        self.tuple_length: int | None = None
        """Length of the layer's output; None if that is the hidden state alone."""
        module.forward = self

    def __call__(self, hidden: torch.Tensor, *args, **kwargs):
        return self.stand_in(self, hidden, args, kwargs) if self.stand_in else self.inner(hidden, *args, **kwargs)

    def run(self, hidden: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """The next hidden state, from weights that are on the device."""
        out = self.inner(hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def as_output(self, hidden: torch.Tensor):
        return hidden if self.tuple_length is None else (hidden, *(None,) * (self.tuple_length - 1))


@dataclass(eq=False)
class _Pass:
    """A batch on its way through the layers."""

    batch: Batch
    given: list[tuple[tuple, dict]] = field(default_factory=list)
    """Arguments of each layer beside the hidden state."""
    first: torch.Tensor | None = None
    """The first hidden state, in the graph of what comes before the layers."""
    hidden: torch.Tensor | None = None
    random: torch.Tensor | None = None
    """State of the random numbers."""
    inputs: list[tuple[Any, torch.Tensor]] = field(default_factory=list)
    """Hidden and random state before each layer, until the backward pass takes them."""
    gradient: torch.Tensor | None = None
    """By the hidden state."""
    gradients_of_given: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Tensors beside the hidden state and their gradients, by id."""

    @property
    def has_graph(self) -> bool:
        return any(tensor.requires_grad for tensor in (self.first, *_tensors(self.given)))

    def leaves(self, index: int) -> tuple[tuple[tuple, dict], Callable[[], None]]:
        """Arguments of a layer without their graph, and a function that collects their gradients."""
        pairs = []

        def cut(value):
            if not (isinstance(value, torch.Tensor) and value.requires_grad):
                return value
            pairs.append((value, value.detach().requires_grad_()))
            return pairs[-1][1]

        def collect() -> None:
            for value, leaf in pairs:
                if leaf.grad is not None:
                    before = self.gradients_of_given.get(id(value))
                    self.gradients_of_given[id(value)] = value, leaf.grad if before is None else before[1] + leaf.grad

        return tree_map(cut, self.given[index]), collect

    def backward_before_layers(self) -> None:
        ends = [*self.gradients_of_given.values()]
        if self.first.requires_grad:
            ends.append((self.first, self.gradient))
        if ends:
            torch.autograd.backward(*zip(*ends))


class _RandomState:
    """The state of a device's random numbers, of which dropout draws."""

    def __init__(self, device: torch.device):
        self._device = device

    def get(self) -> torch.Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()

    def set(self, state: torch.Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
