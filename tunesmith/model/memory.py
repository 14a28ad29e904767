"""How much memory this process has used at most, and how much there is."""

import gc
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from tunesmith.errors import NotEnoughMemory
from tunesmith.machine import memory

# As others than torch's allocator say it: the host, the driver, what makes a handle for matmuls, Triton's kernels.
NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)


def peak_bytes(device: torch.device) -> int:
    """Of the GPU if the device is one, else of the process."""
    if device.type == "cuda":  # with what another stream still uses, as in offload
        return torch.cuda.memory_stats(device).get("active_bytes.all.peak", 0)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak(device: torch.device) -> None:
    """From now on `peak_bytes` is the peak since now; where the system cannot do that it stays what it was."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    control = Path("/proc/self/clear_refs")
    if control.exists():  # on Linux
        control.write_text("5")


def release_memory() -> None:
    """Leaves what is free of a GPU to others: another process, or what comes next in a notebook."""
    if torch.cuda.is_available():
        gc.collect()  # first what holds itself, as a job does
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """What this process could take beside what it has."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return memory()[1]


def is_out_of_memory(error: RuntimeError) -> bool:
    """On a GPU, or on the host where it refuses memory, pinned or not, rather than ending the process."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


@contextmanager
def explain_out_of_memory(what: str, remedy: str):
    """Outside of a step, where nothing can be made smaller: raises NotEnoughMemory in one line."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemory(f"{what} does not fit in memory; {remedy}") from None
