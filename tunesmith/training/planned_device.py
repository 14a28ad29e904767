"""Which kind of device a piece of code computes for, that of its tensors or a planned one, and which memory it takes.

The planner runs the training step on tensors without storage (planner/trace.py). They are on the CPU, whatever is
planned, because a build of torch for the CPU knows no others. What depends on the device, such as the size of a chunk,
asks here. Copies between host memory and the device are made here as well, because a planned GPU makes them although
both are the CPU, and host memory is taken within `host_memory`, so that it is counted apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_planned: ContextVar[tuple[int, int] | None] = ContextVar("planned", default=None)
_host_part: ContextVar[str | None] = ContextVar("host_part", default=None)


@contextmanager
def plan_for_gpu(capability: tuple[int, int]) -> Iterator[None]:
    """Meanwhile all code computes for a GPU of this compute capability."""
    token = _planned.set(capability)
    try:
        yield
    finally:
        _planned.reset(token)


def kind_of(device: torch.device) -> str:
    """Returns the type of the device that computes: "cpu" or "cuda"."""
    return "cuda" if _planned.get() else device.type


def is_planned() -> bool:
    """Whether the device that computes is a planned GPU, which has no kernels here."""
    return _planned.get() is not None


def capability_of(device: torch.device) -> tuple[int, int]:
    """Returns the compute capability of the GPU; (0, 0) for a CPU."""
    planned = _planned.get()
    return planned or (torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0))


@contextmanager
def host_memory(part: str) -> Iterator[None]:
    """Within it all new tensors are in host memory, where they hold this part of a run, such as its gradients."""
    token = _host_part.set(part)
    try:
        yield
    finally:
        _host_part.reset(token)


def host_part() -> str | None:
    """Returns the part of the `host_memory` that this code is in, if it is in one."""
    return _host_part.get()


def move(module: torch.nn.Module, device: torch.device) -> None:
    """Moves a module to the device, if any of it is elsewhere. Tensors without storage cannot be moved."""
    if any(tensor.device != device for tensor in (*module.parameters(), *module.buffers())):
        module.to(device)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Starts to copy a tensor from host memory to the device. On a CPU it is the tensor itself."""
    return tensor.clone() if _planned.get() else tensor.to(device, non_blocking=True)


def to_host(tensor: torch.Tensor, part: str) -> torch.Tensor:
    """Copies a tensor to host memory. On a CPU it is the tensor itself."""
    with host_memory(part):
        return tensor.clone() if _planned.get() else tensor.to("cpu")
