"""How much memory this process has used at most."""

import resource
import sys

import torch


def peak_bytes(device: torch.device) -> int:
    """Of the card if the device is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
