"""The weights of decoder layers that a GPU does not keep.

They are at home in host memory, once for all processes, and on the GPU only while their layer computes. A layer's
weights are one flat region at home, and views of one of two slots on the GPU. While a layer computes, the next one is
copied to the other slot on a side stream. Without a GPU the same code makes plain copies.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from tunesmith.training import distributed, shared_memory
from tunesmith.training.layer_transforms import is_spread

SLOTS = 2
PACKED = "packed"  # where a stack of quantised experts (model/quantize.py) has its numbers
ALIGNMENT = 256  # bytes, as of torch's allocator


@dataclass
class _Weight:
    """A parameter of a layer, and its place in the layer's region."""

    module: nn.Module
    name: str
    start: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def end(self) -> int:
        return self.start + self.shape.numel() * self.dtype.itemsize

    def within(self, region: torch.Tensor) -> torch.Tensor:
        return region[self.start : self.end].view(self.dtype).view(self.shape)

    @property
    def tensor(self) -> torch.Tensor:
        return _numbers(self.module._parameters[self.name])

    def bind(self, tensor: torch.Tensor) -> None:
        """Lets the parameter use this memory."""
        parameter = self.module._parameters[self.name]
        if hasattr(parameter, PACKED):
            setattr(parameter, PACKED, tensor)
        else:
            parameter.data = tensor


@dataclass
class _Layer:
    weights: list[_Weight]
    region: torch.Tensor


@dataclass
class _Slot:
    memory: torch.Tensor
    layer: int | None = None
    arrived: torch.cuda.Event | None = None
    views: dict[int, list[torch.Tensor]] = field(default_factory=dict)  # by layer


class Home:
    """Brings the weights of decoder layers to the device, in the order in which they are used."""

    def __init__(self, layers: list[nn.Module], kept: list[int], device: torch.device):
        """Moves frozen weights to shared host memory, of all layers that any process does not keep. The layers must be
        in host memory. `kept`: how many layers each process keeps; they lie evenly among the others."""
        self.device, self.brought_bytes, self.paused = device, 0, False
        self._side: torch.cuda.Stream | None = None
        self._slots: list[_Slot] = []
        self._layers: dict[int, _Layer] = {}
        several = _parameters_of_several(layers)
        for index, layer in enumerate(layers):
            away = [not is_spread(index, count, len(layers)) for count in kept]
            weights = _weights(layer, several) if any(away) else []
            if not weights:
                continue
            moved = _Layer(weights, _shared(weights, device))
            if away[distributed.rank()]:
                self._layers[index] = moved
                layer.register_forward_pre_hook(partial(self._before, index))

    @property
    def nbytes(self) -> int:
        return sum(layer.region.nbytes for layer in self._layers.values())

    @property
    def pinned(self) -> bool:
        return self.device.type == "cpu" or all(layer.region.is_pinned() for layer in self._layers.values())

    def place(self, model: nn.Module) -> None:
        """Moves the rest of the model to the device, and takes the slots there."""
        for layer in self._layers.values():
            for weight in layer.weights:
                weight.bind(torch.empty(0, dtype=weight.dtype))
        model.to(self.device)
        if not self._layers:
            return
        most = max(layer.region.nbytes for layer in self._layers.values())
        self._slots = [_Slot(torch.empty(most, dtype=torch.uint8, device=self.device)) for _ in range(SLOTS)]
        for slot in self._slots:
            for index, layer in self._layers.items():
                slot.views[index] = [weight.within(slot.memory) for weight in layer.weights]
        self._side = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def _before(self, index: int, layer: nn.Module, args: tuple) -> None:
        """Before a layer's own forward runs."""
        if not self.paused:
            learns = torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args)
            assert not learns, "the weights will not be there in the backward pass, which Walk takes"
            self.use(index)

    def use(self, index: int, forwards: bool = True) -> None:
        """Binds a layer's parameters to their weights on the device, and starts to bring the next layer's. `forwards`:
        the next has the next higher index, else the next lower one."""
        if index not in self._layers:
            return
        slot = self._slot_with(index) or self._fetch(index, self._slots[0])
        if self._side:
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)
        for weight, view in zip(self._layers[index].weights, slot.views[index]):
            weight.bind(view)
        following = self._following(index, forwards)
        if following is not None and not self._slot_with(following):
            self._fetch(following, next(other for other in self._slots if other is not slot))

    def _following(self, index: int, forwards: bool) -> int | None:
        if forwards:
            return min((i for i in self._layers if i > index), default=None)
        return max((i for i in self._layers if i < index), default=None)

    def _slot_with(self, index: int) -> _Slot | None:
        return next((slot for slot in self._slots if slot.layer == index), None)

    def _fetch(self, index: int, slot: _Slot) -> _Slot:
        """Copies a layer to a slot, once everything that was given to the device so far has been computed: among it the
        layer that used the slot before."""
        region = self._layers[index].region
        if self._side:
            self._side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._side):
            slot.memory[: region.nbytes].copy_(region, non_blocking=True)
            slot.arrived = self._side.record_event() if self._side else None
        slot.layer = index
        self.brought_bytes += region.nbytes
        return slot


def _weights(layer: nn.Module, several: set[int]) -> list[_Weight]:
    """The frozen parameters of a layer, except those in `several`, in the order of a region."""
    weights, start = [], 0
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad and id(parameter) not in several:
                numbers = _numbers(parameter)
                weights.append(_Weight(module, name, start, numbers.dtype, numbers.shape))
                start = -(-weights[-1].end // ALIGNMENT) * ALIGNMENT
    return weights


def _numbers(parameter: torch.Tensor) -> torch.Tensor:
    return getattr(parameter, PACKED, parameter.data)


def _shared(weights: list[_Weight], device: torch.device) -> torch.Tensor:
    """A region with these weights, those of the first process, which all processes use from now on."""
    region = shared_memory.one(weights[-1].end, device)
    for weight in weights:
        if distributed.rank() == 0:
            weight.within(region).copy_(weight.tensor)
        weight.bind(weight.within(region))
    distributed.wait()
    return region


def _parameters_of_several(layers: list[nn.Module]) -> set[int]:
    """Parameters that more than one layer uses, which stay on the device."""
    counts: dict[int, int] = {}
    for layer in layers:
        for parameter in layer.parameters():
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return {key for key, count in counts.items() if count > 1}
