"""Activations that wait for the backward pass in host memory.

The copies run on a side stream, beside the layers' work: out during the forward pass, back one layer ahead of the
backward pass. Without a GPU the same code makes plain copies, which is how the tests run it.
"""

import weakref
from collections import deque
from dataclasses import dataclass

import torch

from tunesmith.training.planned_device import host_memory

PIECE_BYTES = 2**26  # pinned memory comes in powers of two, and is kept: pieces waste little and serve any length
LAYER_INPUTS = "layer inputs"  # as the planner counts them
AHEAD = 2  # layers that the CPU may be ahead of the GPU, whose memory is free only once the GPU is there


@dataclass(eq=False)
class _Kept:
    """A tensor in host memory, in pieces; `before` is the one kept just before it, which the backward pass needs
    next."""

    host: list[torch.Tensor]
    shape: torch.Size
    before: weakref.ref | None
    back: torch.Tensor | None = None
    arrived: torch.cuda.Event | None = None


class Offload:
    """Within `with offload.hooks():` what autograd saves goes to host memory and comes back when it is needed."""

    def __init__(self, device: torch.device):
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._last: weakref.ref | None = None
        self._passed: deque[torch.cuda.Event] = deque()
        self.sent_bytes = 0

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(self.keep, self.take)

    def keep(self, tensor: torch.Tensor) -> _Kept | torch.Tensor:
        """Starts to copy a tensor to host memory."""
        if tensor.device != self._device or not tensor.is_floating_point():
            return tensor
        pieces = tensor.flatten().split(PIECE_BYTES // tensor.itemsize)
        with host_memory(LAYER_INPUTS):
            host = [torch.empty(piece.shape, dtype=piece.dtype, pin_memory=self._side is not None) for piece in pieces]
        if self._side:
            self._side.wait_stream(torch.cuda.current_stream(self._device))
            for piece in pieces:
                piece.record_stream(self._side)  # its memory is not reused before the copy is made
        with torch.cuda.stream(self._side):
            for there, piece in zip(host, pieces):
                there.copy_(piece, non_blocking=True)
            self._wait_for(self._side)
        kept = _Kept(host, tensor.shape, self._last)
        self._last = weakref.ref(kept)
        self.sent_bytes += tensor.nbytes
        return kept

    def take(self, kept: _Kept | torch.Tensor) -> torch.Tensor:
        """The tensor on the device again. Starts to copy the one that was kept just before it."""
        if isinstance(kept, torch.Tensor):
            return kept
        here = torch.cuda.current_stream(self._device) if self._side else None
        self._wait_for(here)
        self._fetch(kept)
        before = kept.before() if kept.before else None
        if before:
            self._fetch(before)
        if here:
            here.wait_event(kept.arrived)
            kept.back.record_stream(here)
        tensor, kept.back = kept.back, None
        return tensor

    def _fetch(self, kept: _Kept) -> None:
        """Starts the copy back, once."""
        if kept.back is not None:
            return
        with torch.cuda.stream(self._side):
            kept.back = torch.empty(kept.shape, dtype=kept.host[0].dtype, device=self._device)
            for piece, host in zip(kept.back.view(-1).split(PIECE_BYTES // kept.back.itemsize), kept.host):
                piece.copy_(host, non_blocking=True)
            kept.arrived = self._side.record_event() if self._side else None

    def _wait_for(self, stream) -> None:
        """Until a GPU has done what `stream` was given AHEAD calls ago."""
        if stream:
            self._passed.append(stream.record_event())
            if len(self._passed) > AHEAD:
                self._passed.popleft().synchronize()
