"""Plan: what is decided from the recipe and the machine before anything runs."""

from dataclasses import asdict, dataclass, field
from importlib.util import find_spec

from tunesmith.errors import UserError
from tunesmith.machine import Machine
from tunesmith.recipe import Recipe

# Tokens of one forward pass where nothing else is asked for: enough to fill a device, small enough for its memory.
CPU_TOKENS, CARD_TOKENS = 4096, 16384
CHECKPOINTING_FROM_LENGTH = 4096


@dataclass(frozen=True)
class Plan:
    """`weights` and `compute` are torch dtype names; `micro_batch_tokens` bounds one forward pass."""

    device: str
    processes: int
    weights: str
    compute: str
    micro_batch_tokens: int
    gradient_checkpointing: bool
    packing: bool
    threads: int
    reasons: dict = field(default_factory=dict)

    def as_dict(self) -> dict:
        return asdict(self)


def choose(recipe: Recipe, machine: Machine) -> Plan:
    """Raises UserError where the recipe asks for what this machine has not."""
    settings = recipe.train
    device = "cuda" if machine.cards else "cpu"
    available = len(machine.cards) or machine.cores
    processes = settings.processes or max(1, len(machine.cards))
    if processes > available:
        raise UserError(f"train.processes: {processes} asked for, but this machine has {available} "
                        f"{'cards' if machine.cards else 'cores'}")
    fast = all(card.fast_bf16 for card in machine.cards) if machine.cards else machine.cpu_fast_bf16
    compute = recipe.model.dtype if recipe.model.dtype != "auto" else ("bfloat16" if fast else "float32")
    reasons = {}
    if recipe.model.dtype == "auto":
        reasons["compute"] = f"the device computes bfloat16 {'fast' if fast else 'slowly or not at all'}"
    if settings.weights == "bfloat16" and compute != "bfloat16":
        compute, reasons["compute"] = "bfloat16", "train.weights: bfloat16"
    # By default full fine-tuning keeps float32 weights: the updates of bfloat16 ones are lost or noisy.
    usual = "float32" if recipe.adapter.kind == "full" else compute
    weights = usual if settings.weights == "auto" else settings.weights
    _check_optimizer(settings.optimizer, device)
    length = recipe.data.sequence_length
    if settings.micro_batch:
        tokens = settings.micro_batch * length
    else:
        tokens = max(length, CARD_TOKENS if machine.cards else CPU_TOKENS)
    asked = settings.gradient_checkpointing
    checkpointing = asked == "on" or (asked == "auto" and length >= CHECKPOINTING_FROM_LENGTH)
    return Plan(
        device=device, processes=processes, weights=weights, compute=compute, micro_batch_tokens=tokens,
        gradient_checkpointing=checkpointing,
        packing=recipe.data.packing, threads=max(1, machine.cores // processes), reasons=reasons)


def _check_optimizer(name: str, device: str) -> None:
    if name == "paged_adamw_8bit" and device == "cpu":
        raise UserError(f"train.optimizer: {name} moves moments between a card and memory, and this machine has no "
                        "card; use adamw_8bit")
    if name.endswith("_8bit") and find_spec("bitsandbytes") is None:
        raise UserError(f"train.optimizer: {name} needs bitsandbytes; pip install 'tunesmith[bnb]', or use adafactor, "
                        "which is as small")
