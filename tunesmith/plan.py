"""Plan: what was decided from the recipe and the machine, as plan.json keeps it."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tunesmith.files import read_json


@dataclass(frozen=True)
class Plan:
    """`weights` and `compute` are torch dtype names; `micro_batch_tokens` bounds one forward pass. The fields from
    `base` on are known once the base model and the data have been read."""

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
    shares: str = "equal"
    """Each process's share of a step's tokens: equal, or by its measured speed."""
    kept_layers: list[int] | None = None
    """How many decoder layers each process keeps on its GPU, the others staying in host memory; None: all."""
    walk_tokens: int | None = None
    """Most tokens of a process that go through the layers together (training/walk.py); None: all of a step."""
    gpus: list[str] = field(default_factory=list)
    """UUIDs of the GPUs that were chosen, one for each process; empty: the first ones of all."""
    predicted: dict[str, Any] = field(default_factory=dict)
    """Memory, speed, time and energy that were predicted (planner/prediction.py); empty if nothing was."""
    reasons: dict[str, str] = field(default_factory=dict)
    base: str = ""
    """Folder of the base model."""
    day: str | None = None
    """The date that chat templates write, in ISO format."""
    template: str | None = None
    """Name of the chat template: own, plain, chatml or a file's."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Variables for the chat template."""
    stop_ids: list[int] = field(default_factory=list)
    """Tokens that end an answer."""
    system_prompts: dict[str, float] = field(default_factory=dict)
    """The most common system prompts ("" for none) and their share of the conversations."""
    formats: list[str | None] = field(default_factory=list)
    """Data format of each training source."""
    ledger: dict[str, Any] = field(default_factory=dict)
    """Summary of ledger.jsonl."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """By source: files beside its own that were not read."""

    @classmethod
    def read(cls, file: Path) -> "Plan":
        """Reads plan.json. Keys that other versions of Tunesmith write are left out."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in read_json(file).items() if key in known})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
