"""Counts the bytes of tensors that are alive while a piece of code runs, for real or on tensors without storage."""

import weakref
from collections import Counter

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within `with live:` every storage that an operation makes is counted from then on until it is freed, as one of
    the current `part`. Views share their storage. Operations see the number 1 where they read a fake tensor's float."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.part = ""
        self.parts: Counter[str] = Counter()
        """Bytes alive now, by part."""
        self.at_peak: dict[str, int] = {}
        """Bytes at the peak, by part."""
        self._known: dict[int, tuple[str, int]] = {}  # part and bytes of a storage, by address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            if args[0].dtype.is_floating_point:  # a norm or a learning rate, which decides about no memory
                return 1.0
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
            part, before = self._known.get(key, (self.part, 0))
            if key not in self._known:
                weakref.finalize(storage, self._free, key).atexit = False
            self._known[key] = part, nbytes
            if nbytes != before:  # new, or resized
                self._add(part, nbytes - before)

    def begin(self, part: str) -> None:
        """From now on the peak is a new one, and new storages are of this part."""
        self.part, self.peak, self.at_peak = part, self.now, dict(self.parts)

    def _free(self, key: int) -> None:
        part, nbytes = self._known.pop(key)
        self._add(part, -nbytes)

    def _add(self, part: str, nbytes: int) -> None:
        self.now += nbytes
        self.parts[part] += nbytes
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self.parts)
