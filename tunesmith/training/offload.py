"""Activations that wait for the backward pass in host memory.

The copies run on a side stream, beside the layers' work: out during the forward pass, back one layer ahead of the
backward pass. Without a card the same code makes plain copies, which is how the tests run it.
"""

import weakref
from dataclasses import dataclass

import torch


@dataclass(eq=False)
class _Kept:
    """A tensor in host memory; `before` is the one kept just before it, which the backward pass needs next."""

    host: torch.Tensor
    before: weakref.ref | None
    back: torch.Tensor | None = None
    arrived: torch.cuda.Event | None = None


class Offload:
    """Within `with offload.hooks():` what autograd saves goes to host memory and comes back when it is needed."""

    def __init__(self, device: torch.device):
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: weakref.ref | None = None
        self.sent_bytes = 0

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor) -> _Kept | torch.Tensor:
        if tensor.device != self._device or not tensor.is_floating_point():
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._side is not None)
        if self._side:
            self._side.wait_stream(torch.cuda.current_stream(self._device))
            tensor.record_stream(self._side)  # its memory is not used anew before the copy is made
        with torch.cuda.stream(self._side):
            host.copy_(tensor, non_blocking=True)
        kept = _Kept(host, self._last)
        self._last = weakref.ref(kept)
        self.sent_bytes += host.nbytes
        return kept

    def _unpack(self, kept: _Kept | torch.Tensor) -> torch.Tensor:
        if isinstance(kept, torch.Tensor):
            return kept
        self._fetch(kept)
        before = kept.before() if kept.before else None
        if before:
            self._fetch(before)
        if self._side:
            here = torch.cuda.current_stream(self._device)
            here.wait_event(kept.arrived)
            kept.back.record_stream(here)
        tensor, kept.back = kept.back, None
        return tensor

    def _fetch(self, kept: _Kept) -> None:
        """Starts the copy back, once."""
        if kept.back is not None:
            return
        with torch.cuda.stream(self._side):
            kept.back = kept.host.to(self._device, non_blocking=True, copy=True)
            kept.arrived = self._side.record_event() if self._side else None
