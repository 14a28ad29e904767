"""Gradients of weights that are at home in host memory (home.py).

The backward pass takes the layers in turn. Once a layer's gradients of all micro-batches are there, they go to host
memory, where there is room for one sum. Each process waits for the one before it, adds its own, and passes the turn.
So the sum is taken in the order of ranks, and a repeated run is the same to the bit.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import nn

from tunesmith.training import distributed
from tunesmith.training.planned_device import kind_of, to_device


@dataclass
class _Leaving:
    """Gradients on their way to host memory, which stay on the device until they are there."""

    group: int
    tensors: list[torch.Tensor]
    arrived: torch.cuda.Event | None


class HostGradients:
    """`sums`: the places of gradients in shared host memory, by group, in the order of the backward pass."""

    def __init__(self, sums: dict[int, dict[nn.Parameter, torch.Tensor]], device: torch.device):
        self._sums, self._device = sums, device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._own: dict[nn.Parameter, torch.Tensor] = {}  # of the layer at work, on the device
        self._delivered: set[int] = set()
        self._turns: list[distributed.Turn] = []
        self._leaving: deque[_Leaving] = deque()
        self.is_first = distributed.rank() == 0
        """Whether no process adds up gradients before this one. The planner traces one process as any other."""
        self.are_wanted = False
        """Whether gradients are delivered; else they are dropped, as those of a trial are."""
        self.norms: dict[nn.Parameter, torch.Tensor] = {}
        """Norms of the sums, in the last process."""
        self.delivered: dict[nn.Parameter, torch.Tensor] = {}
        """The sums. With one process, a parameter that no loss depends on is missing."""

    @property
    def parameters(self) -> dict[int, list[nn.Parameter]]:
        """The parameters of each group, in the order of the backward pass."""
        return {group: [*sums] for group, sums in self._sums.items()}

    def collect(self, group: int) -> None:
        """Takes a micro-batch's gradients from the parameters, and adds them up in the precision that trains."""
        for parameter, total in self._sums[group].items():
            gradient, parameter.grad = parameter.grad, None
            if gradient is None or not self.are_wanted:
                continue
            if parameter in self._own:
                self._own[parameter].add_(gradient)
            else:
                self._own[parameter] = gradient.to(total.dtype)

    def deliver(self, group: int) -> None:
        """Adds this process's gradients of a group to those of the processes before it."""
        own, self._own = self._own, {}
        if not self.are_wanted or group in self._delivered:  # before the step ran out of memory and was repeated
            return
        self._announce()
        distributed.take_turn(group)
        before = {} if self.is_first else self._of_processes_before(group)
        gradients = {}
        for parameter, total in self._sums[group].items():
            gradient, other = own.get(parameter), before.get(parameter)
            if gradient is not None:
                gradients[parameter] = gradient if other is None else gradient.add_(other)
            elif other is not None:
                gradients[parameter] = other
            elif distributed.world() > 1:
                gradients[parameter] = torch.zeros(total.shape, dtype=total.dtype, device=self._device)
        if distributed.rank() == distributed.world() - 1:
            self.norms |= {parameter: torch.linalg.vector_norm(g) for parameter, g in gradients.items()}
        self._send(group, gradients)

    def _of_processes_before(self, group: int) -> dict[nn.Parameter, torch.Tensor]:
        return {parameter: to_device(total, self._device) for parameter, total in self._sums[group].items()}

    def _send(self, group: int, gradients: dict[nn.Parameter, torch.Tensor]) -> None:
        if self._side:
            self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            for parameter, gradient in gradients.items():
                self._sums[group][parameter].copy_(gradient, non_blocking=True)
                self.delivered[parameter] = self._sums[group][parameter]
            arrived = self._side.record_event() if self._side else None
        self._delivered.add(group)
        self._leaving.append(_Leaving(group, [*gradients.values()], arrived))
        if kind_of(self._device) == "cpu":
            self._announce()

    def _announce(self) -> None:
        """Lets the next process add its gradients to those that have arrived."""
        while self._leaving:
            leaving = self._leaving.popleft()
            if leaving.arrived:
                leaving.arrived.synchronize()
            self._turns.append(distributed.pass_turn(leaving.group))

    def finish(self) -> None:
        """At the end of a backward pass. A process without a micro-batch has delivered nothing before."""
        for group in self._sums:
            if group not in self._delivered:
                self.deliver(group)
        self._announce()
        for turn in self._turns:
            turn.wait()
        self._turns.clear()

    def drop(self) -> None:
        """Forgets what was not delivered."""
        self._own = {}
        for group in self._sums.values():
            for parameter in group:
                parameter.grad = None

    def clear(self) -> None:
        """Forgets a step's gradients, once the weights are updated."""
        self.drop()
        self._delivered.clear()
        self.norms.clear()
        self.delivered.clear()
