"""Host memory that all training processes of a machine see. On a machine with a GPU it is pinned for faster copies."""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch

from tunesmith.model.memory import pin
from tunesmith.training import distributed
from tunesmith.training.planned_device import host_memory

ALIGNMENT = 256  # bytes, as of torch's allocator
Object = TypeVar("Object")


@dataclass(frozen=True)
class Layout:
    """Places of several tensors in one region of bytes."""

    tensors: tuple[tuple[torch.Size, torch.dtype], ...]

    @classmethod
    def of(cls, tensors: Iterable[torch.Tensor]) -> "Layout":
        return cls(tuple((tensor.shape, tensor.dtype) for tensor in tensors))

    @property
    def nbytes(self) -> int:
        return sum(_aligned(shape, dtype) for shape, dtype in self.tensors)

    @property
    def nbytes_apart(self) -> int:
        """Bytes of the same tensors without a region."""
        return sum(shape.numel() * dtype.itemsize for shape, dtype in self.tensors)

    def views(self, region: torch.Tensor) -> list[torch.Tensor]:
        starts = accumulate((_aligned(shape, dtype) for shape, dtype in self.tensors), initial=0)
        return [
            region[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for (shape, dtype), start in zip(self.tensors, starts)
        ]


def _aligned(shape: torch.Size, dtype: torch.dtype) -> int:
    return -(-shape.numel() * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def one_each(nbytes: int, device: torch.device) -> list[torch.Tensor]:
    """A region of bytes for each process, in rank order, on all of them."""
    file, own = _file(nbytes)
    regions = [_mapped(path, nbytes, device) for path in distributed.gather(own)]
    _close(file, own)
    return regions


def one(nbytes: int, device: torch.device, part: str) -> torch.Tensor:
    """One region of bytes for all processes, which holds this part of a run."""
    if distributed.world() == 1 and device.type == "cpu":  # no other process shares it
        with host_memory(part):
            return torch.empty(nbytes, dtype=torch.uint8)
    file, own = _file(nbytes) if distributed.rank() == 0 else (None, "")
    region = _mapped(distributed.gather(own)[0], nbytes, device)
    _close(file, own)
    return region


def copied_to_all(value: Object | None) -> Object:
    """The first process's object for all of them, by pickle. The others map its tensors, and copy only those that they
    write to."""
    file, own = _file() if distributed.rank() == 0 else (None, "")
    if file is not None:
        torch.save(value, own)
    path = distributed.gather(own)[0]
    if file is None:
        value = torch.load(path, mmap=True, weights_only=False)  # a file that this run has written in memory just now
    _close(file, own)
    assert value is not None
    return value


def _file(nbytes: int = 0) -> tuple[int, str]:
    """An open file in memory and its path. Not in /dev/shm, which Docker limits to 64 MB."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("tunesmith")
        path = f"/proc/{os.getpid()}/fd/{file}"
    else:  # macOS
        file, path = tempfile.mkstemp(prefix="tunesmith-")
    os.ftruncate(file, nbytes)
    return file, path


def _mapped(path: str, nbytes: int, device: torch.device) -> torch.Tensor:
    file = os.open(path, os.O_RDWR)
    try:
        memory = mmap.mmap(file, nbytes)
    finally:
        os.close(file)
    region = torch.frombuffer(memory, dtype=torch.uint8)
    if device.type == "cuda" and pin(region, device):
        weakref.finalize(memory, torch.cuda.cudart().cudaHostUnregister, region.data_ptr())
    return region


def _close(file: int | None, path: str) -> None:
    """Closes a file that all processes have mapped. Its memory is freed with the last mapping."""
    distributed.wait()
    if file is not None:
        os.close(file)
        if not path.startswith("/proc/"):
            os.unlink(path)
