"""The tools that Tunesmith is compared with, and the settings of each that are tried: the fastest is compared.

`rows`: rows in one forward pass; None: packed to SEQUENCE_LENGTH. The rest goes to the tool itself. This file imports
nothing, as each tool has an environment of its own.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SAME, BY_LENGTH = "padded, same rows a step", "padded, group_by_length"
WHOLE, PACKED = "padded, group_by_length, whole batch", "packed"

VARIANTS = {
    "trl": {
        SAME: dict(rows=8, train_sampling_strategy="sequential"),
        BY_LENGTH: dict(rows=8, train_sampling_strategy="group_by_length"),
        WHOLE: dict(rows=32, train_sampling_strategy="group_by_length"),
        PACKED: dict(rows=None, packing=True, packing_strategy="bfd"),
    },
    "llama_factory": {
        SAME: dict(rows=8, disable_shuffling=True),
        BY_LENGTH: dict(rows=8, train_sampling_strategy="group_by_length"),
        WHOLE: dict(rows=32, train_sampling_strategy="group_by_length"),
        PACKED: dict(rows=None, neat_packing=True),
    },
    "axolotl": {
        SAME: dict(rows=8, shuffle_merged_datasets=False, curriculum_sampling=True),
        BY_LENGTH: dict(rows=8, group_by_length=True),
        WHOLE: dict(rows=32, group_by_length=True),
        PACKED: dict(rows=None, sample_packing=True, pad_to_sequence_len=False),
    },
}


def python_of(tool: str) -> Path | None:
    """The interpreter that runs a tool; None if `make bench-peers` has not installed it."""
    if tool in ("tunesmith", "trl"):
        return Path(sys.executable)
    found = ROOT / f".venv-{tool}" / "bin" / "python"
    return found if found.exists() else None
