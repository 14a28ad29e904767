"""Sums gradients over all processes: on one machine through host memory that they share.

Nothing is copied from GPU to GPU: on boards without peer-to-peer access such copies are slow, and on some they hang or
give wrong bytes. Each process writes a bucket of its gradients to its own region. Then each sums one part of the bucket
over all regions, in the order of ranks, so that all processes get the same bits and a repeated run does too.

Between machines the same sums, with the same bits, go over the network: each process receives its part of the bucket
from all others, adds them up, and sends the result to all. With NCCL the GPUs add up, in an order of its own.
"""

from collections.abc import Iterator

import torch

from tunesmith.training import distributed, shared_memory
from tunesmith.training.progress_marks import mark

BUCKET_BYTES = 32 * 2**20


class Exchange:
    """Memory for buckets. With one process nothing is done, and none is taken."""

    def __init__(self, device: torch.device, network: str = "gloo"):
        """`network`: gloo or nccl, for the way between machines."""
        self._device, self._network = device, network
        self._sets: list[list[torch.Tensor]] = []  # two sets of regions, by rank: the last result is still being read

    def add_up(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replaces the gradients by their sums; a process without a micro-batch contributes zeros."""
        if distributed.world() == 1:
            return
        mark("exchanging gradients")
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif not parameter.grad.is_contiguous():
                parameter.grad = parameter.grad.contiguous()
        for pieces in _buckets([parameter.grad.view(-1) for parameter in parameters]):
            flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            if distributed.is_one_machine():
                self._sum(flat)
            elif self._network == "nccl":
                distributed.sum_with_nccl(flat)
            else:
                _sum_over_network(flat)
            if len(pieces) > 1:
                for piece, part in zip(pieces, flat.split([len(piece) for piece in pieces])):
                    piece.copy_(part)

    def _sum(self, flat: torch.Tensor) -> None:
        """Replaces a bucket by the sum of those of all processes of this machine."""
        if not self._sets:
            self._sets = [shared_memory.one_each(BUCKET_BYTES, self._device) for _ in range(2)]
        self._sets.reverse()
        regions = [region.view(flat.dtype)[: len(flat)] for region in self._sets[0]]
        regions[distributed.rank()].copy_(flat)
        distributed.wait()
        start, end = (len(flat) * place // len(regions) for place in (distributed.rank(), distributed.rank() + 1))
        own = slice(start, end)
        total = regions[0][own].float()  # a copy only of lower precisions, which would be rounded with each summand
        for region in regions[1:]:
            total += region[own]
        regions[0][own].copy_(total)
        distributed.wait()
        flat.copy_(regions[0])


def _sum_over_network(flat: torch.Tensor) -> None:
    """Replaces a bucket by the sum of those of all processes. The last part is filled up with zeros."""
    processes = distributed.world()
    bucket = torch.zeros(-(-len(flat) // processes) * processes, dtype=flat.dtype)
    bucket[: len(flat)].copy_(flat)
    own, *others = distributed.exchange_parts(bucket).chunk(processes)
    total = own.float()  # as in `_sum`
    for part in others:
        total += part
    distributed.collect_parts(total.to(flat.dtype), bucket)
    flat.copy_(bucket[: len(flat)])


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Flat gradients, in lists of one precision and of at most BUCKET_BYTES; larger ones in pieces."""
    bucket, size = [], 0
    for gradient in gradients:
        for piece in gradient.split(BUCKET_BYTES // gradient.itemsize):
            if bucket and (size + piece.nbytes > BUCKET_BYTES or piece.dtype != bucket[0].dtype):
                yield bucket
                bucket, size = [], 0
            bucket.append(piece)
            size += piece.nbytes
    if bucket:
        yield bucket
