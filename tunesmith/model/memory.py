"""Peak, free and pinned memory of this process, on a GPU or the host, and out-of-memory errors."""

import ctypes
import gc
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.errors import NotEnoughMemory
from tunesmith.machine import memory

SECONDS_BETWEEN_LOOKS = 0.02

# Texts of out-of-memory errors that do not come from torch's allocator: the host, the driver, cuBLAS, Triton.
NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)


def peak_bytes(device: torch.device) -> int:
    """Returns the peak memory on the GPU if the device is one, else the peak resident memory of the process."""
    if device.type == "cuda":  # active, not allocated, to count memory that another stream still uses, as in offload
        return torch.cuda.memory_stats(device).get("active_bytes.all.peak", 0)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak(device: torch.device) -> None:
    """Resets the peak of `peak_bytes`. Has no effect on the host where the system does not support it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    control = Path("/proc/self/clear_refs")
    if control.exists():  # on Linux
        control.write_text("5")


@dataclass
class HostMemory:
    """Bytes of this process in host memory: its `own`, and what it `shares` with other processes. Files that it maps
    are not counted, because the system can drop them at any time."""

    own: int = 0
    shared: int = 0

    @classmethod
    def now(cls) -> "HostMemory":
        try:
            fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
            own, shared = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))
        except (OSError, KeyError, ValueError):  # not Linux
            return cls(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
        return cls(own, shared)


@contextmanager
def peak_host_memory() -> Iterator[HostMemory]:
    """The peak in this block, of which `own + shared` is largest, found by looking every 20 ms."""
    peak, ended = HostMemory.now(), threading.Event()

    def look() -> None:
        now = HostMemory.now()
        if now.own + now.shared > peak.own + peak.shared:
            peak.own, peak.shared = now.own, now.shared

    def watch() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        look()


def release_memory() -> None:
    """Returns torch's cached GPU memory to the driver, for other processes or the next cell of a notebook."""
    if torch.cuda.is_available():
        gc.collect()  # reference cycles, such as a job's, keep tensors alive
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Returns freed host memory to the system. glibc keeps freed blocks of up to 32 MB, such as weights, for the
    process."""
    with suppress(AttributeError, OSError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes(device: torch.device) -> int:
    """Returns how many more bytes this process could allocate on the device."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return memory()[1]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that a GPU, or the host, has no memory left. The host may also kill the process
    instead."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


@contextmanager
def explain_out_of_memory(what: str, remedy: str):
    """Turns an out-of-memory error in this block into NotEnoughMemory. For code outside of training steps, where the
    out-of-memory fallback does not apply."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemory(f"{what} does not fit in memory; {remedy}") from None


def pin(region: torch.Tensor, device: torch.device) -> bool:
    """Registers host memory with a GPU, which then copies it in the background and in half the time. Returns False
    where the system refuses, as WSL2 may: copies work all the same."""
    runtime = torch.cuda.cudart()
    if runtime.cudaHostRegister(region.data_ptr(), region.nbytes, 0) == runtime.cudaError.success:
        return True
    with suppress(RuntimeError):
        torch.zeros(1, device=device)  # raises the error that CUDA still holds, which nothing else must find
    return False
