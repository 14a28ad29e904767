"""Counts the bytes of tensors that are alive while a piece of code runs, for real or on tensors without storage."""

import weakref
from collections import Counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunesmith.training.planned_device import host_part

aten = torch.ops.aten
# Operations that give code a number; in inference mode the last two are not made of the first.
READING = (aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default)


class LiveBytes(TorchDispatchMode):
    """Within `with live:` every storage that an operation makes is counted from then on until it is freed, as one of
    the current `part`. Views share their storage. Host memory of a device (training/planned_device.py) is counted
    apart.

    Where code reads a number from a fake tensor, it gets 1 for a float, such as a norm, and False for a bool. Neither
    decides about memory in a training step. Other code may need other numbers: see `reads`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[torch.dtype, bool | int] = {torch.bool: False}
        """By type of a fake tensor: the number that code reads from it. One of a type that is missing has none."""
        self.now = self.peak = 0
        self.part = ""
        self.parts: Counter[str] = Counter()
        """Bytes alive now, by part."""
        self.at_peak: dict[str, int] = {}
        """Bytes at the peak, by part."""
        self.host_parts: Counter[str] = Counter()
        """Bytes in host memory now, by part."""
        self.host_peaks: dict[str, int] = {}
        """The most there ever were of each part."""
        self._known: dict[int, tuple[str, int, bool]] = {}  # part, bytes, whether in host memory; by address

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = _fake(func, args, self.reads) if isinstance(args[0] if args else None, FakeTensor) else None
        if made is None:
            made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return made

    def count(self, *tensors: torch.Tensor) -> None:
        """Counts tensors that were there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, nbytes = storage._cdata, storage.nbytes()
            host = host_part()
            part, before, on_host = self._known.get(key, (host or self.part, 0, host is not None))
            if key not in self._known:
                weakref.finalize(storage, self._free, key).atexit = False
            self._known[key] = part, nbytes, on_host
            if nbytes != before:  # new, or resized
                self._add(part, nbytes - before, on_host)

    def begin(self, part: str) -> None:
        """From now on the peak is a new one, and new storages are of this part."""
        self.part, self.peak, self.at_peak = part, self.now, dict(self.parts)

    def _free(self, key: int) -> None:
        part, nbytes, on_host = self._known.pop(key)
        self._add(part, -nbytes, on_host)

    def _add(self, part: str, nbytes: int, on_host: bool) -> None:
        if on_host:
            self.host_parts[part] += nbytes
            self.host_peaks[part] = max(self.host_peaks.get(part, 0), self.host_parts[part])
            return
        self.now += nbytes
        self.parts[part] += nbytes
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self.parts)


def _fake(func: Any, args: tuple, reads: dict[torch.dtype, bool | int]) -> Any:
    """Returns the result of an operation on fake tensors for which torch has no fake form; None for all others."""
    if func in READING:
        return 1.0 if args[0].dtype.is_floating_point else reads.get(args[0].dtype)
    if func is aten._grouped_mm.default and args[0].dtype != torch.bfloat16:  # as the kernels of a CPU take it
        matrices = [torch.empty_strided(x.shape, x.stride(), dtype=torch.bfloat16) for x in args[:2]]
        return func(*matrices, *args[2:]).to(args[0].dtype)
    return None
