"""How much memory this process has used at most, and how much there is."""

import gc
import resource
import sys
from pathlib import Path

import torch

from tunesmith.machine import memory


def peak_bytes(device: torch.device) -> int:
    """Of the card if the device is one, else of the process."""
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


def give_back() -> None:
    """Leaves what is free of a card to others: another process, or what comes next in a notebook."""
    if torch.cuda.is_available():
        gc.collect()  # first what holds itself, as a job does
        torch.cuda.empty_cache()


def free_bytes(device: torch.device) -> int:
    """What this process could take beside what it has."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return memory()[1]
