"""Plan: what was decided from the recipe and the machine, as plan.json keeps it."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """`weights` and `compute` are torch dtype names; `micro_batch_tokens` bounds one forward pass."""

    device: str
    processes: int
    weights: str
    compute: str
    sequence_length: int
    micro_batch_tokens: int
    gradient_checkpointing: str | float
    activation_offload: bool
    tiled_mlp: bool
    compile: bool
    packing: bool
    threads: int
    reasons: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
