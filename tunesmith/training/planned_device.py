"""Which kind of device a piece of code computes for: that of its tensors, or a planned one.

The planner runs the training step on tensors without storage (planner/trace.py). They are on the CPU, whatever is
planned, because a build of torch for the CPU knows no others. What depends on the device, such as the size of a chunk,
asks here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_planned: ContextVar[tuple[int, int] | None] = ContextVar("planned", default=None)


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


def capability_of(device: torch.device) -> tuple[int, int]:
    """Returns the compute capability of the GPU; (0, 0) for a CPU."""
    planned = _planned.get()
    return planned or (torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0))
