"""Sums of gradients over three processes, of one machine or of two: those of the same numbers added up in one, in the
order of ranks."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.finetune import launch
from tunesmith.training import distributed, exchange
from tunesmith.training.exchange import Exchange

PROCESSES = 3
SHAPES = [(7,), (300, 5), (1,), (), (64, 64), (0, 3), (2, 2, 2)]  # buckets of many, and a tensor of several buckets
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradients(rank: int, step: int) -> list[torch.Tensor | None]:
    """None where a process has no micro-batch. They are so unlike in size that the order of a sum shows."""
    generator = torch.Generator().manual_seed(step * 10 + rank)
    made = []
    for dtype in TYPES:
        for number, shape in enumerate(SHAPES):
            values = torch.randn(shape, generator=generator) * 10.0 ** (rank * 2 - 2)
            made.append(None if rank == number % 5 else values.to(dtype))
    made[4] = made[4].T if made[4] is not None else None  # not contiguous
    return made


def process(folder: Path, machines: int) -> None:
    """`machines`: on how many the processes are, by their own account."""
    exchange.BUCKET_BYTES = 4096
    os.environ[distributed.MACHINE] = str(int(os.environ["RANK"]) % machines)
    device = distributed.join("cpu")
    shared, told = Exchange(device), {}
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for dtype in TYPES for shape in SHAPES]
    for step in range(3):
        for parameter, gradient in zip(parameters, gradients(distributed.rank(), step)):
            parameter.grad = gradient
        shared.add_up(parameters)
        told |= {f"{step} {number}": parameter.grad for number, parameter in enumerate(parameters)}
    save_file(told, folder / f"{distributed.rank()}.safetensors")


@pytest.mark.parametrize("machines", [1, 2])
def test_all_processes_get_the_same_sums_in_the_order_of_ranks(tmp_path, machines):
    launch.launch(process, PROCESSES, tmp_path, machines)
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(PROCESSES)]
    for step in range(3):
        each = [gradients(rank, step) for rank in range(PROCESSES)]
        for number, own in enumerate(zip(*each)):
            like = next(gradient for gradient in own if gradient is not None)
            total = torch.zeros(like.shape)
            for gradient in own:
                total += 0 if gradient is None else gradient.float()
            for told in found:
                assert torch.equal(told[f"{step} {number}"], total.to(like.dtype))


def test_one_process_keeps_its_gradients():
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))]
    parameters[0].grad = kept = torch.ones(3)
    Exchange(torch.device("cpu")).add_up(parameters)
    assert parameters[0].grad is kept and parameters[1].grad is None
