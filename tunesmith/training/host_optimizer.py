"""Updates weights that are at home in host memory (home.py), on the device and with the optimizers of any other run.

Parts of the model are dealt to the processes. Each brings the master weights, gradients and moments of a part to its
device, updates them there, and sends them back, while the next part is on its way. Nothing is approximate or late: the
result is that of a model whose parameters are on the device.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tunesmith.recipe import Train
from tunesmith.training import distributed, shared_memory
from tunesmith.training.home import TrainedHome
from tunesmith.training.optimizer import Optimizer, make_parts
from tunesmith.training.optimizer_parts import Part, States
from tunesmith.training.planned_device import kind_of, to_device, to_host
from tunesmith.training.progress_marks import mark
from tunesmith.training.shared_memory import Layout

PARTS_ON_DEVICE = 2  # beside the one that is updated

Slot = tuple[str, str]  # a parameter's name and the key of a tensor among its states


@dataclass
class _Brought:
    """A part's tensors on the device."""

    number: int
    part: Part
    weights: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    gradients: dict[nn.Parameter, torch.Tensor] = field(default_factory=dict)
    states: dict[Slot, torch.Tensor] = field(default_factory=dict)
    arrived: torch.cuda.Event | None = None


@dataclass
class _Sent:
    """An updated part's tensors, which stay on the device until they are in host memory."""

    tensors: list[torch.Tensor]
    arrived: torch.cuda.Event | None


class HostOptimizer(Optimizer):
    """An Optimizer over a TrainedHome."""

    def __init__(self, model: nn.Module, home: TrainedHome, settings: Train):
        home.at_rest()
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        super().__init__(trained, make_parts(model, trained, settings, small=True))
        self._home, self._device, self._scale = home, home.device, 1.0
        self._moments: list[States] = [{} for _ in self._parts]  # in shared host memory
        self._numbers: States = {}
        cuda = self._device.type == "cuda"
        self._incoming = torch.cuda.Stream(self._device) if cuda else None
        self._outgoing = torch.cuda.Stream(self._device) if cuda else None
        self._sent: deque[_Sent] = deque()
        home.gradients.are_wanted = True
        home.renew()

    @property
    def to_exchange(self) -> list[nn.Parameter]:
        return []  # host_gradients.py has summed them

    @property
    def _own(self) -> list[int]:
        """Numbers of the parts that this process updates."""
        return [*range(distributed.rank(), len(self._parts), distributed.world())]

    def clip(self, max_norm: float, loss_scale: float = 1.0) -> float:
        """As of any Optimizer, but the gradients are scaled when they are used."""
        own, norms = None, self._home.gradients.norms
        if distributed.rank() == distributed.world() - 1:
            norm = torch.linalg.vector_norm(torch.stack([norms[p] for _, p in self._trained if p in norms]))
            norm = norm / loss_scale
            own = norm.item(), torch.clamp(max_norm / (norm + 1e-6), max=1.0).item()  # as clip_grad_norm_ does
        norm, share = distributed.gather(own)[-1]
        self._scale = share / loss_scale
        return norm

    @torch.no_grad()
    def step(self, seed: tuple[int, ...] = (0,)) -> None:
        waiting = iter(self._own)
        coming = self._bring(next(waiting, None))
        while coming:
            brought = coming
            self._bind(brought)
            coming = self._bring(next(waiting, None))
            brought.part.step(seed)
            self._send(brought)
        if self._outgoing:
            self._outgoing.synchronize()
        self._sent.clear()
        self._share_states()
        self.skip()
        self._home.renew()

    def skip(self) -> None:
        self._home.gradients.clear()
        self._scale = 1.0

    def zero_grad(self) -> None:
        self._home.gradients.drop()

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: self._home.masters[parameter] for name, parameter in self._trained}

    def states(self) -> States:
        return {name: values | self._numbers.get(name, {}) for part in self._moments for name, values in part.items()}

    @torch.no_grad()
    def load(self, weights: dict[str, torch.Tensor], states: States | None = None) -> None:
        self._home.at_rest()
        if distributed.rank() == 0:
            for name, parameter in self._trained:
                self._home.masters[parameter].copy_(weights[name])
                self._home.copies[parameter].copy_(weights[name])
        distributed.wait()
        if states is not None:
            self._moments = [{} for _ in self._parts]
            for number in self._own:
                self._parts[number].load(states)
            self._share_states()
        self._home.renew()

    def _bring(self, number: int | None) -> _Brought | None:
        """Starts to copy a part to the device."""
        if number is None:
            return None
        if len(self._sent) > PARTS_ON_DEVICE:
            sent = self._sent.popleft()
            if sent.arrived:
                sent.arrived.synchronize()
        mark("updating")
        part, home = self._parts[number], self._home
        brought = _Brought(number, part)
        with torch.cuda.stream(self._incoming):
            for _, parameter in part.named:
                if parameter in home.gradients.delivered:
                    brought.weights[parameter] = to_device(home.masters[parameter], self._device)
                    brought.gradients[parameter] = to_device(home.gradients.delivered[parameter], self._device)
            for name, state in part.states.items():
                for key, tensor in _tensors(state).items():
                    if tensor.ndim or part.param_groups[0].get("fused"):  # other optimizers count steps in host memory
                        brought.states[name, key] = to_device(tensor, self._device)
            brought.arrived = self._incoming.record_event() if self._incoming else None
        return brought

    def _bind(self, brought: _Brought) -> None:
        """Gives a part's optimizer what has arrived."""
        if self._incoming:
            here = torch.cuda.current_stream(self._device)
            here.wait_event(brought.arrived)
            for tensors in (brought.weights, brought.gradients, brought.states):
                for tensor in tensors.values():
                    tensor.record_stream(here)
        for _, parameter in brought.part.named:
            parameter.grad = None
        for parameter, weight in brought.weights.items():
            parameter.data, parameter.grad = weight, brought.gradients[parameter].mul_(self._scale)
        states = brought.part.states
        for (name, key), tensor in brought.states.items():
            states[name][key] = tensor

    def _send(self, brought: _Brought) -> None:
        """Starts to copy an updated part back."""
        home, copies = self._home, []
        for parameter in brought.weights:
            here, master, copy = parameter.data, home.masters[parameter], home.copies[parameter]
            copies.append((master, here))
            if not _is_same_memory(copy, master):
                copies.append((copy, here.to(copy.dtype)))
            parameter.data, parameter.grad = master, None
        moments = self._moments[brought.number]
        for name, state in brought.part.states.items():
            for key, tensor in _tensors(state).items():
                if key in moments.get(name, {}):
                    copies.append((moments[name][key], tensor))
                    state[key] = moments[name][key]
                else:  # after the first step
                    state[key] = to_host(tensor, "moments")
        if self._outgoing:
            self._outgoing.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._outgoing):
            for there, here in copies:
                if not _is_same_memory(there, here):  # without a GPU they may be
                    there.copy_(here, non_blocking=True)
            arrived = self._outgoing.record_event() if self._outgoing else None
        if kind_of(self._device) == "cuda":
            self._sent.append(_Sent([here for _, here in copies], arrived))

    def _share_states(self) -> None:
        """Moves states that are new to memory that all processes see, and tells them the states that are numbers."""
        new: dict[int, dict[Slot, tuple[torch.Size, torch.dtype]]] = {}
        numbers: States = {}
        for number in self._own:
            for name, state in self._parts[number].states.items():
                numbers[name] = {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
                for key, tensor in _tensors(state).items():
                    if key not in self._moments[number].get(name, {}):
                        new.setdefault(number, {})[name, key] = tensor.shape, tensor.dtype
        told = distributed.gather((new, numbers))
        self._numbers = {name: values for _, numbers in told for name, values in numbers.items()}
        for number, slots in [item for new, _ in told for item in new.items()]:
            layout = Layout(tuple(slots.values()))
            region = shared_memory.one(layout.nbytes, self._device, "moments")
            for (name, key), view in zip(slots, layout.views(region)):
                if number in self._own:
                    state = self._parts[number].states[name]
                    view.copy_(state[key])
                    state[key] = view
                self._moments[number].setdefault(name, {})[key] = view
        distributed.wait()


def _tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}


def _is_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two views of whole tensors are of the same one. Tensors without storage have no address to compare."""
    storages = one.untyped_storage(), other.untyped_storage()
    return storages[0]._cdata == storages[1]._cdata and one.storage_offset() == other.storage_offset()
