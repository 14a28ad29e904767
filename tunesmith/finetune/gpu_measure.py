"""Measures one GPU: its link to the host, whether bytes arrive unchanged, and its products.

`tunesmith.finetune.gpu_check` starts this file as a process for each GPU: `python -m tunesmith.finetune.gpu_measure
CONNECTION PRECISION`. The process carries out one task after the other, as the messages on the connection ask, so
that the other process decides what GPUs do at the same time.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import Any

import torch

from tunesmith.errors import first_line
from tunesmith.finetune.launch import HARDWARE_ERROR
from tunesmith.finetune.speed import gpu_speeds, rate, synchronize
from tunesmith.machine import state_of
from tunesmith.model.memory import is_out_of_memory, pin

FIRST_NUMBERS, MOST_NUMBERS = 2**17, 2**23  # int64, of one copy: 1 MiB and 64 MiB
FIRST_WIDTH, MOST_WIDTH = 512, 8192  # of a square matrix
LONG_ENOUGH_SECONDS = 0.005  # for one copy or product, so that starting it takes no time in comparison
SMALL_WIDTH = 256  # of a product that is compared with the CPU's

ADVICE = "check its riser, slot and power"

# Architectures of boards that share no binary code with others of their major version (Jetson, Drive).
EMBEDDED = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1)}
RENAMED = {(10, 1): (11, 0)}

Copy = Callable[[torch.Tensor, torch.Tensor], Any]
Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Faulty(Exception):
    """The GPU cannot be used. The message completes the sentence "GPU 0: …"."""


def copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)


class Link:
    """The buffers of a GPU and of the host, and copies between them. It finds how much one copy must be."""

    def __init__(self, device: torch.device, copy: Copy = copy):
        self.device, self.copy = device, copy
        generator = torch.Generator().manual_seed(0)
        self.host = torch.randint(-(2**63), 2**63 - 1, (MOST_NUMBERS,), generator=generator)
        self.returned = torch.zeros_like(self.host)
        self.arrived = torch.zeros(MOST_NUMBERS, dtype=torch.int64, device=device)
        self.sent = torch.zeros_like(self.arrived)
        self._to_gpu_stream, self._to_host_stream = _stream(device), _stream(device)
        self.is_pinned = device.type == "cuda" and all([pin(self.host, device), pin(self.returned, device)])
        self.numbers = FIRST_NUMBERS
        self.to_gpu()  # the first copy takes longer than others
        while self.numbers < MOST_NUMBERS and _seconds(self.to_gpu) < LONG_ENOUGH_SECONDS:
            self.numbers *= 2

    def to_gpu(self) -> int:
        """Copies to the GPU and returns the number of bytes."""
        self.copy(self.arrived[: self.numbers], self.host[: self.numbers])
        synchronize(self.device)
        return 8 * self.numbers

    def to_host(self) -> int:
        self.copy(self.returned[: self.numbers], self.sent[: self.numbers])
        synchronize(self.device)
        return 8 * self.numbers

    def both(self) -> int:
        """Copies in both directions at once and returns the number of bytes in both."""
        with _on(self._to_gpu_stream):
            self.copy(self.arrived[: self.numbers], self.host[: self.numbers])
        with _on(self._to_host_stream):
            self.copy(self.returned[: self.numbers], self.sent[: self.numbers])
        synchronize(self.device)
        return 16 * self.numbers


def check_bytes(link: Link, seconds: float) -> dict[str, float]:
    """Copies random bytes to the GPU and back, for so many seconds. Raises Faulty if any changed on the way."""
    host, arrived, returned = (x[: link.numbers] for x in (link.host, link.arrived, link.returned))
    weights = torch.arange(1, 2 * link.numbers, 2)
    weights_on_gpu = torch.arange(1, 2 * link.numbers, 2, device=link.device)
    checksums = [int((pattern * weights).sum()) for pattern in (host, ~host)]
    began, rounds = time.perf_counter(), 0
    # Two rounds at least: the second sends the complement, so that a copy that does nothing is found.
    while time.perf_counter() - began < seconds or rounds < 2:
        link.copy(arrived, host)
        synchronize(link.device)
        has_arrived = int((arrived * weights_on_gpu).sum()) == checksums[rounds % 2]
        link.copy(returned, arrived)
        synchronize(link.device)
        has_returned = torch.equal(returned, host)
        if not has_arrived:
            what = "a checksum of bytes that it received is wrong"
            raise Faulty(f"{what if has_returned else 'bytes that are copied to it arrive changed'}; {ADVICE}")
        if not has_returned:
            wrong = int((returned.view(torch.uint8) != host.view(torch.uint8)).sum())
            raise Faulty(f"{wrong:,} of {8 * link.numbers:,} bytes that are copied from it arrive changed; {ADVICE}")
        host.bitwise_not_()
        rounds += 1
    return {}


def measure_link(link: Link, seconds: float) -> dict[str, Any]:
    """Returns bytes per second in each direction and in both at once, each measured for so many seconds; and the fields
    of the GPU that are those of a GPU at work."""
    return {
        "to_gpu_bytes_per_second": rate(link.to_gpu, seconds),
        "to_host_bytes_per_second": rate(link.to_host, seconds),
        "both_bytes_per_second": rate(link.both, seconds),
        "gpu": state_of(os.environ["CUDA_VISIBLE_DEVICES"]) if link.device.type == "cuda" else {},
    }


def measure_products(device: torch.device, dtype: torch.dtype, multiply: Multiply, seconds: float) -> dict[str, float]:
    """Returns the operations per second of products of matrices. Raises Faulty if a small product is not the CPU's."""
    check_product(device, dtype, multiply)
    width = FIRST_WIDTH
    while True:
        left, right = (torch.randn(width, width, dtype=dtype, device=device) for _ in range(2))

        def product(left=left, right=right) -> int:
            multiply(left, right)
            synchronize(device)
            return 2 * len(left) ** 3

        product()  # the first product of a shape takes longer than others
        if width >= MOST_WIDTH or _seconds(product) >= LONG_ENOUGH_SECONDS:
            break
        width *= 2
    reached = rate(product, seconds)
    check_product(device, dtype, multiply)  # again, after the GPU has been at work
    return {"flops_per_second": reached}


def check_product(device: torch.device, dtype: torch.dtype, multiply: Multiply) -> None:
    """Compares a product with the CPU's, exactly: sums of 256 numbers that are -1, 0 or 1 are not rounded in any
    precision. Raises Faulty."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randint(-1, 2, (SMALL_WIDTH, SMALL_WIDTH), generator=generator) for _ in range(2))
    product = multiply(left.to(device, dtype), right.to(device, dtype)).cpu().double()
    wrong = int((product != left.double() @ right.double()).sum())
    if wrong:
        name = str(dtype).removeprefix("torch.")
        raise Faulty(f"{wrong:,} of {product.numel():,} numbers of a product of matrices in {name} were wrong")


def supports(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Returns whether a torch that was built for these architectures (`torch.cuda.get_arch_list()`) has code for a
    GPU of this compute capability.

    Binary code (`sm_86`) runs on later minor versions of its major version, and PTX (`compute_90`) on all later
    versions. Code for one architecture (`sm_90a`) runs on that one alone, and code for a family (`sm_100f`) within the
    major version.
    """
    return any(_runs(name, capability) for name in architectures)


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    kind, _, version = architecture.partition("_")
    digits = version.rstrip("af")
    if kind not in ("sm", "compute") or not digits.isdigit():
        return False
    built_for = int(digits[:-1]), int(digits[-1])
    if version.endswith("a") or (kind == "sm" and {built_for, capability} & EMBEDDED):
        return capability in (built_for, RENAMED.get(built_for))
    if kind == "sm" or version.endswith("f"):
        return built_for[0] == capability[0] and built_for[1] <= capability[1]
    return built_for <= capability


def unsupported(architectures: Sequence[str], capability: tuple[int, int], version: str) -> str | None:
    """Returns why this torch cannot use a GPU of this compute capability, and what to do; None if it can."""
    if supports(architectures, capability):
        return None
    # CUDA 13 dropped the GPUs before 7.5, and torch 2.14 is the last with wheels for CUDA 12.
    other, build = ("'torch<2.15'", "cu126") if capability < (7, 5) else ("torch", "cu130")
    command = f"pip install --force-reinstall {other} --index-url https://download.pytorch.org/whl/{build}"
    remedy = f"install one that does ({command}), or " if capability >= (5, 0) else ""
    return (
        f"it has compute capability {capability[0]}.{capability[1]}, which this torch ({version}) does not support; "
        f"{remedy}hide it with CUDA_VISIBLE_DEVICES"
    )


def start_cuda(device: torch.device) -> None:
    """Starts CUDA in this process. Raises Faulty if this torch cannot use the GPU."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they report is in the message below
            torch.cuda.init()
            capability = torch.cuda.get_device_capability(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it is a build for CUDA
        raise Faulty(
            f"this torch ({torch.__version__}) cannot use it: {first_line(error).rstrip('.')}; install the build of "
            "torch for the CUDA version of your driver, or hide it with CUDA_VISIBLE_DEVICES"
        ) from None
    if problem := unsupported(torch.cuda.get_arch_list(), capability, torch.__version__):
        raise Faulty(problem)


def precisions_of(device: torch.device) -> list[str]:
    """Returns the precisions that training may compute in on a GPU."""
    has_bfloat16 = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    return ["bfloat16"] * has_bfloat16 + ["float16", "float32"]


def answer(connection: Any, device: torch.device, compute: str, copy: Copy = copy, multiply: Multiply = torch.matmul):
    """Carries out tasks until the other end closes the connection or the GPU fails in one."""
    torch.set_num_threads(1)
    try:
        if device.type == "cuda":
            start_cuda(device)
        link = Link(device, copy)
        dtype = getattr(torch, compute)
        check_product(device, dtype, multiply)
        tasks: dict[str, Callable[[float], dict[str, Any]]] = {
            "bytes": lambda seconds: check_bytes(link, seconds),
            "products": lambda seconds: measure_products(device, dtype, multiply, seconds),
            "link": lambda seconds: measure_link(link, seconds),
            # The other GPUs copy at the same time.
            "together": lambda seconds: {"together_bytes_per_second": rate(link.to_gpu, seconds)},
            "together to host": lambda seconds: {"together_to_host_bytes_per_second": rate(link.to_host, seconds)},
            "speeds": lambda seconds: {"speeds": gpu_speeds(device, precisions_of(device), seconds)},
        }
        connection.send(("ready", {"pinned": link.is_pinned}))
        while True:
            task, seconds = connection.recv()
            connection.send(("rates", tasks[task](seconds)))
    except EOFError:
        return
    except Faulty as faulty:
        connection.send(("problem", str(faulty)))
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            connection.send(("note", "it could not be checked, because too little of its memory is free"))
        elif HARDWARE_ERROR.match(str(error)):
            connection.send(("problem", first_line(error)))
        else:
            connection.send(("note", f"it could not be checked: {type(error).__name__}: {first_line(error)}"))


def _stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def _on(stream: Any) -> Any:
    return torch.cuda.stream(stream) if stream else nullcontext()


def _seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    connection.send(("started", {}))
    answer(connection, torch.device("cuda", 0), sys.argv[2])


if __name__ == "__main__":
    main()
