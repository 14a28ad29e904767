"""Progress marks: each training process writes where it is into memory that its launcher reads.

A mark is a few integers, written without a lock in about a microsecond. `finetune/watchdog.py` finds processes whose
marks no longer change. Without a launcher the marks go to memory that is not shared.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from tunesmith.model.memory import pin

PHASES = (
    "starting",
    "loading the model",
    "waiting for data",
    "forward",
    "loss",
    "backward",
    "compiling",
    "exchanging gradients",
    "updating",
    "evaluating",
    "saving",
    "paused",
    "ending",
)
CODES = {phase: code for code, phase in enumerate(PHASES)}


class Mark(ctypes.Structure):
    """The position of one process. `layer` counts from 1; 0 stands for none. `collectives` counts the exchanges with
    other processes that it has entered, and `waiting` is 1 inside of one. `gpu_layer` is the layer that the GPU has
    reached, which is behind that of the CPU: forward from 1, backward from `layers` + 1."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("count", "step", "phase", "layer", "layers", "collectives", "waiting", "gpu_layer")
    ]

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name, _ in self._fields_)

    @property
    def phase_name(self) -> str:
        return PHASES[self.phase]

    @property
    def place(self) -> str:
        """The phase and, inside the model, the layer: "layer 12 of 32, forward"."""
        phase, layer = self.phase_name, self.layer
        if self.gpu_layer and phase in ("forward", "loss", "backward"):
            backward, layer = divmod(self.gpu_layer - 1, self.layers)
            phase, layer = "backward" if backward else "forward", layer + 1
        if phase in ("forward", "backward") and layer:
            return f"layer {layer} of {self.layers}, {phase}"
        return phase


_own = Mark()
_is_read = False
_followers: list[Callable[[str, int], None]] = []
_gpu: list[torch.Tensor] = []  # the place of `gpu_layer` in memory, and each of its values on the GPU


def share(mark: Mark) -> None:
    """From now on this process writes its marks to `mark`, which its launcher reads."""
    global _own, _is_read
    _own, _is_read = mark, True


def mark(phase: str, step: int | None = None, layer: int = 0) -> None:
    """Notes that this process begins a phase, or the next layer of it."""
    _own.phase, _own.layer = CODES[phase], layer
    if step is not None:
        _own.step = step
    _own.count += 1
    for follow in _followers:
        follow(phase, layer)


@contextmanager
def followed(follow: Callable[[str, int], None]) -> Iterator[None]:
    """Within it `follow(phase, layer)` is called with each mark of this process."""
    _followers.append(follow)
    try:
        yield
    finally:
        _followers.remove(follow)


@contextmanager
def waiting() -> Iterator[None]:
    """Notes that this process waits for the others: a process that only waits is not the one that hangs."""
    _own.collectives += 1
    _own.waiting = 1
    try:
        yield
    finally:
        _own.waiting = 0
        _own.count += 1


def mark_layers(layers: Sequence[nn.Module]) -> None:
    """Lets each decoder layer mark when it is computed, forward and backward, if a launcher reads it."""
    if not _is_read:
        return
    _own.layers = len(layers)
    _gpu[:] = _gpu_marks(len(layers), next(layers[0].parameters()).device)
    for number, layer in enumerate(layers, 1):
        layer.register_forward_pre_hook(partial(_before, number))
    layers[-1].register_forward_hook(_after_last)


def mark_layer(phase: str, layer: int) -> None:
    """Notes that this process begins a layer, forward or backward, and lets the GPU note when it gets there."""
    mark(phase, layer=layer)
    if _gpu and layer:
        target, *codes = _gpu
        target.copy_(codes[layer - 1 + (_own.layers if phase == "backward" else 0)], non_blocking=True)


def mark_compiling() -> None:
    """Notes the times at which torch.compile works, which may take minutes."""
    from torch._dynamo.callback import callback_handler

    if _is_read:
        callback_handler.register_start_callback(lambda _: mark("compiling"))
        callback_handler.register_end_callback(lambda _: mark("forward"))


def _before(number: int, layer: nn.Module, inputs: tuple) -> None:
    mark_layer("forward", number)
    if inputs:  # its gradient is there when the backward pass of this layer is done
        _mark_backward(inputs[0], number - 1)


def _after_last(layer: nn.Module, inputs: tuple, output) -> None:
    mark("loss")
    _mark_backward(output if isinstance(output, torch.Tensor) else output[0], _own.layers)


def _mark_backward(hidden: torch.Tensor, next_layer: int) -> None:
    if hidden.requires_grad and torch.is_grad_enabled():
        hidden.register_hook(lambda _: mark_layer("backward", next_layer))


def _gpu_marks(layers: int, device: torch.device) -> list[torch.Tensor]:
    """The content of `_gpu`. A copy from one to the other is one more operation of the queue, so it is made when the
    GPU gets there. Empty on a CPU, and where the system refuses."""
    if device.type != "cuda":
        return []
    target = torch.frombuffer(_own, dtype=torch.int64)[-1]
    if not pin(target, device):  # a copy to memory that is not pinned would wait for the GPU
        return []
    return [target, *torch.arange(1, 2 * layers + 1, device=device).unbind()]
