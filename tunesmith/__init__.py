"""Tunesmith: fine-tune language models on the workstation you own.

Example:
    from tunesmith import Recipe, train

    if __name__ == "__main__":  # Tunesmith starts processes, which import the script
        run = train(Recipe.load("recipe.yaml"))
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.cli.progress import resume, train
    from tunesmith.recipe import Recipe

# CUDA reads this when it starts, so it is set before any module can start CUDA. By default CUDA numbers GPUs fastest
# first, while NVML, nvidia-smi and the plan number them by PCI bus.
os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")

__all__ = ["Recipe", "resume", "train"]
_HOMES = {"Recipe": "tunesmith.recipe", "train": "tunesmith.cli.progress", "resume": "tunesmith.cli.progress"}


def __getattr__(name: str) -> Any:
    """Imported when asked for: `tunesmith --help` waits for none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
