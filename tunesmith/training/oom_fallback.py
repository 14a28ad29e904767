"""The out-of-memory fallback: the same rows in smaller micro-batches, then recomputation of activations.

The effective batch, the order of the rows and the result stay the same; only sums are rounded in another order. The
run's state keeps the smaller sizes, so the rest of the run, and a resumed run, begins with them.
"""

from tunesmith.errors import NotEnoughMemory
from tunesmith.training.batch import Batch
from tunesmith.training.checkpoint import State


def step_down(state: State, batches: list[Batch], where: str) -> str:
    """Makes the passes one step smaller than `batches`; returns the change in words.

    Raises NotEnoughMemory if nothing smaller is left.
    """
    most, longest = max(b.input_ids_BT.numel() for b in batches), max(max(b.lengths) for b in batches)
    shared = max((b.input_ids_BT.numel() for b in batches if len(b.rows) > 1), default=0)
    if most <= longest and not state.checkpointing:  # a row by itself is the largest
        state.checkpointing = True
        return "activations are recomputed"
    if shared:
        floor = longest if most > longest else 0
        state.micro_batch_tokens = max(floor, min(state.micro_batch_tokens, shared) // 2)
        return f"at most {state.micro_batch_tokens:,} tokens in one forward pass"
    raise NotEnoughMemory(
        f"{where}: a row of {longest:,} tokens does not fit in memory by itself, even with "
        "recomputed activations; lower data.sequence_length, or train an adapter "
        "(adapter.kind: lora)"
    )
