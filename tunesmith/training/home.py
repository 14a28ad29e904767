"""Weights that a GPU does not keep.

They are at home in host memory, once for all processes, and on the GPU only while their layer computes. A layer's
weights are one flat region at home, and views of one of two slots on the GPU. While a layer computes, the next one is
copied to the other slot on a side stream. Without a GPU the same code makes plain copies.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch
from torch import nn

from tunesmith.model.memory import trim_heap
from tunesmith.training import distributed, shared_memory
from tunesmith.training.host_gradients import HostGradients
from tunesmith.training.layer_transforms import decoder_layers, is_spread
from tunesmith.training.planned_device import move
from tunesmith.training.shared_memory import Layout

SLOTS = 2
PACKED = "packed"  # where a stack of quantised experts (model/quantize.py) has its numbers
REST = -1  # the group of what is in no layer, or in several


@dataclass(frozen=True)
class _Weight:
    """A parameter by its place in the model."""

    module: nn.Module
    name: str

    @property
    def parameter(self) -> nn.Parameter:
        return self.module._parameters[self.name]

    @property
    def tensor(self) -> torch.Tensor:
        return getattr(self.parameter, PACKED, self.parameter.data)

    @property
    def is_converted(self) -> bool:
        """Whether autocast converts it. Stacked experts, for one, compute in the precision of their weights."""
        return type(self.module).forward is nn.Linear.forward and self.parameter.ndim > 1

    def bind(self, tensor: torch.Tensor) -> None:
        """Lets the parameter use this memory."""
        if hasattr(self.parameter, PACKED):
            setattr(self.parameter, PACKED, tensor)
        else:
            self.parameter.data = tensor


@dataclass
class _Group:
    """Weights that are brought together: those of a layer."""

    weights: list[_Weight]
    layout: Layout
    region: torch.Tensor

    def bind(self, memory: torch.Tensor) -> None:
        for weight, view in zip(self.weights, self.layout.views(memory)):
            weight.bind(view)


@dataclass
class _Slot:
    """Memory on the device for one group at a time."""

    memory: torch.Tensor
    group: int | None = None
    arrived: torch.cuda.Event | None = None
    views: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # by group


class Home:
    """Brings the frozen weights of decoder layers to the device, in the order in which they are used."""

    gradients: HostGradients | None = None
    """Takes the gradients of weights at home, if they train."""

    def __init__(self, layers: list[nn.Module], kept: list[int], device: torch.device):
        """Moves frozen weights of the layers to shared host memory. The layers must be in host memory, in the first
        process at least (load_once). `kept`: how many layers each process keeps; they lie evenly among the others."""
        self._begin(device)
        for index, (layer, weights) in enumerate(zip(layers, _frozen(layers))):
            away = [not is_spread(index, count, len(layers)) for count in kept]
            if not weights or (len(kept) == 1 and not any(away)):
                continue
            group = _shared(weights, Layout.of(weight.tensor for weight in weights), device, "weights")
            group.bind(group.region)
            trim_heap()
            if not any(away):
                move(layer, device)  # so that the region is freed
            elif away[distributed.rank()]:
                self._groups[index] = group
                self._bring_before(index, layer)

    def _begin(self, device: torch.device) -> None:
        self.device, self.brought_bytes, self.paused = device, 0, False
        self._reported_bytes = 0
        self._side: torch.cuda.Stream | None = None
        self._groups: dict[int, _Group] = {}
        self._slots: list[_Slot] = []
        self._hooks: list = []

    def _bring_before(self, index: int, layer: nn.Module) -> None:
        self._hooks.append(layer.register_forward_pre_hook(partial(self._before, index)))

    @property
    def nbytes(self) -> int:
        return sum(group.region.nbytes for group in self._groups.values())

    @property
    def layouts(self) -> dict[int, Layout]:
        """The layout of the weights that come to the device together, by layer."""
        return {index: group.layout for index, group in self._groups.items()}

    def newly_brought_bytes(self) -> int:
        """Bytes that have come to the device since this was last called."""
        new, self._reported_bytes = self.brought_bytes - self._reported_bytes, self.brought_bytes
        return new

    @property
    def pinned(self) -> bool:
        return self.device.type == "cpu" or all(group.region.is_pinned() for group in self._groups.values())

    def place(self, model: nn.Module) -> None:
        """Moves the rest of the model to the device, and takes the slots there."""
        for group in self._groups.values():
            for weight in group.weights:
                weight.bind(torch.empty(0, dtype=weight.tensor.dtype))
        move(model, self.device)
        if self._groups:
            self._slots = [self._slot([*self._groups]) for _ in range(SLOTS)]
            self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def close(self) -> None:
        """Leaves the weights in host memory, as those of a model like any other."""
        for hook in self._hooks:
            hook.remove()
        for group in self._groups.values():
            group.bind(group.region)
        self._slots = []

    def _slot(self, groups: list[int]) -> _Slot:
        """Room for each of these groups."""
        most = max(self._groups[index].layout.nbytes for index in groups)
        slot = _Slot(torch.empty(most, dtype=torch.uint8, device=self.device))
        slot.views = {index: self._groups[index].layout.views(slot.memory) for index in groups}
        return slot

    def _before(self, index: int, layer: nn.Module, args: tuple) -> None:
        """Before a layer's own forward runs."""
        if not self.paused:
            learns = torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args)
            assert not learns, "the weights will not be there in the backward pass, which Walk takes"
            self.use(index)

    def use(self, index: int, forwards: bool = True) -> None:
        """Binds a layer's parameters to their weights on the device, and starts to bring the next layer's. `forwards`:
        the next has the next higher index, else the next lower one."""
        if index not in self._groups:
            return
        slot = self._slot_with(index) or self._fetch(index, self._slot_for(index))
        if self._side:
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)
        for weight, view in zip(self._groups[index].weights, slot.views[index]):
            weight.bind(view)
        following = self._following(index, forwards)
        if following is not None and not self._slot_with(following):
            self._fetch(following, self._slot_for(following, slot))

    def _following(self, index: int, forwards: bool) -> int | None:
        if forwards:
            return min((i for i in self._groups if i > index), default=None)
        return max((i for i in self._groups if i < index), default=None)

    def _slot_with(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.group == index), None)

    def _slot_for(self, index: int, in_use: _Slot | None = None) -> _Slot:
        return next(slot for slot in self._slots if index in slot.views and slot is not in_use)

    def _fetch(self, index: int, slot: _Slot) -> _Slot:
        """Copies a group to a slot, once everything that was given to the device so far has been computed: among it the
        layer that used the slot before."""
        region = self._groups[index].region
        if self._side:
            self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            slot.memory[: region.nbytes].copy_(region, non_blocking=True)
            slot.arrived = self._side.record_event() if self._side else None
        slot.group = index
        self.brought_bytes += region.nbytes
        return slot


class TrainedHome(Home):
    """Brings the weights of a model that trains whole, and has them updated in host memory (host_optimizer.py).

    All weights are at home. A layer that is kept has a slot of its own, from where it serves until the next update,
    and so has what is in no layer. Linear layers come in the precision of computing, as autocast would round them:
    `copies`. `masters` are in the precision that trains, which may be the same memory.
    """

    gradients: HostGradients

    def __init__(
        self,
        model: nn.Module,
        layers: list[nn.Module],
        kept: list[int],
        device: torch.device,
        weights: torch.dtype,
        compute: torch.dtype,
    ):
        """`weights`: the least precision of masters. `compute`: that of computing. For the others see Home."""
        self._begin(device)
        self.masters: dict[nn.Parameter, torch.Tensor] = {}
        self.copies: dict[nn.Parameter, torch.Tensor] = {}
        several = _parameters_of_several(layers)
        count = kept[distributed.rank()]
        self._kept = [REST, *(index for index in range(len(layers)) if is_spread(index, count, len(layers)))]
        gradients: dict[int, dict[nn.Parameter, torch.Tensor]] = {}
        for index, layer in reversed([*enumerate(layers)]):
            own = [weight for weight in _weights([layer]) if weight.parameter not in several]
            if own:
                gradients[index] = self._move_in(index, own, weights, compute)
                self._bring_before(index, layer)
        rest = [weight for weight in _weights([model]) if weight.parameter not in self.masters]
        gradients[REST] = self._move_in(REST, rest, weights, None)
        self.gradients = HostGradients(gradients, device)

    def _move_in(
        self, index: int, weights: list[_Weight], least: torch.dtype, matrices: torch.dtype | None
    ) -> dict[nn.Parameter, torch.Tensor]:
        """Moves weights to shared host memory in this precision at least, with copies of the matrices in another one.
        Returns places of their gradients."""
        tensors = [(weight.tensor.shape, torch.promote_types(weight.tensor.dtype, least)) for weight in weights]
        copied = [(s, matrices if matrices and w.is_converted else p) for w, (s, p) in zip(weights, tensors)]
        layout, masters = Layout(tuple(copied)), Layout(tuple(tensors))
        same = layout == masters
        group = _shared(weights, layout, self.device, "weights" if same else "copies")
        other = group.region if same else _shared(weights, masters, self.device, "weights").region
        gradients = shared_memory.one(masters.nbytes, self.device, "gradients")
        parameters = [weight.parameter for weight in weights]
        self._groups[index] = group
        self.masters |= zip(parameters, masters.views(other))
        self.copies |= zip(parameters, layout.views(group.region))
        for parameter in parameters:  # frees what was loaded
            parameter.data = self.masters[parameter]
        trim_heap()
        return {p: view for p, view in zip(parameters, masters.views(gradients)) if p.requires_grad}

    def place(self, model: nn.Module) -> None:
        super().place(model)
        away = [index for index in self._groups if index not in self._kept]
        self._slots = [self._slot(away) for _ in range(SLOTS)] if away else []
        self._slots += [self._slot([index]) for index in self._kept]
        self.renew()

    def at_rest(self) -> None:
        """Binds all parameters to their masters, in host memory."""
        for parameter, master in self.masters.items():
            parameter.data = master

    def renew(self) -> None:
        """After the weights at home have changed, no slot holds what is at home any more."""
        for slot in self._slots:
            slot.group = None
        self.use(REST)

    def close(self) -> None:
        super().close()
        self.at_rest()

    def _following(self, index: int, forwards: bool) -> int | None:
        """Without groups that are kept and there."""
        there = [slot.group for slot in self._slots if slot.group in self._kept]
        if forwards:
            return min((i for i in self._groups if i > index and i not in there), default=None)
        return max((i for i in self._groups if REST < i < index and i not in there), default=None)


def load_once(load: Callable[[], nn.Module], trains_whole: bool) -> nn.Module:
    """The model that `load` returns in the first process, for all of them. In the others, weights that a home will
    share have the right shape and no memory."""
    if distributed.world() == 1:
        return load()
    if distributed.rank():
        return shared_memory.copied_to_all(None)
    model = load()
    weights = _weights([model]) if trains_whole else [*chain.from_iterable(_frozen(decoder_layers(model)))]
    tensors = [weight.tensor for weight in weights]
    for weight, tensor in zip(weights, tensors):
        weight.bind(torch.empty_strided(tensor.shape, (0,) * tensor.ndim, dtype=tensor.dtype))
    shared_memory.copied_to_all(model)
    for weight, tensor in zip(weights, tensors):
        weight.bind(tensor)
    return model


def _frozen(layers: list[nn.Module]) -> list[list[_Weight]]:
    """Frozen weights of each layer, without those that several layers use."""
    several = _parameters_of_several(layers)
    return [
        [w for w in _weights([layer]) if not w.parameter.requires_grad and w.parameter not in several]
        for layer in layers
    ]


def _weights(modules: Iterable[nn.Module]) -> list[_Weight]:
    """The parameters of modules, each once."""
    found: dict[nn.Parameter, _Weight] = {}
    for outer in modules:
        for module in outer.modules():
            for name, parameter in module.named_parameters(recurse=False):
                found.setdefault(parameter, _Weight(module, name))
    return [*found.values()]


def _shared(weights: list[_Weight], layout: Layout, device: torch.device, part: str) -> _Group:
    """A region with these weights, those of the first process, for all processes. `part`: as host memory is counted."""
    region = shared_memory.one(layout.nbytes, device, part)
    if distributed.rank() == 0:
        for weight, view in zip(weights, layout.views(region)):
            view.copy_(weight.tensor)
    distributed.wait()
    return _Group(weights, layout, region)


def _parameters_of_several(layers: list[nn.Module]) -> set[nn.Parameter]:
    """Parameters that more than one layer uses, which stay on the device."""
    counts: dict[nn.Parameter, int] = {}
    for layer in layers:
        for parameter in layer.parameters():
            counts[parameter] = counts.get(parameter, 0) + 1
    return {parameter for parameter, count in counts.items() if count > 1}
