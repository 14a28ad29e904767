"""What happens when a step does not fit in memory: the same rows again in smaller parts, then recomputing activations.

The effective batch, the order of the rows and the result stay the same; only sums are rounded in another order. What
was needed is kept in the run's state, so the rest of the run, and a resumed one, begins with it.
"""

from contextlib import contextmanager

import torch

from tunesmith.errors import NotEnoughMemory
from tunesmith.training.batch import Batch
from tunesmith.training.checkpoint import State

# As others than torch's allocator say it: the host, the driver, what makes a handle for matmuls, Triton's kernels.
NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)


def step_down(state: State, batches: list[Batch], where: str) -> str:
    """One rung down from how `batches` were made; returns what is different now.

    Raises NotEnoughMemory at the foot of the ladder.
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


def is_out_of_memory(error: RuntimeError) -> bool:
    """On a card, or on the host where it refuses memory, pinned or not, rather than ending the process."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


@contextmanager
def no_room_is_said(what: str, remedy: str):
    """Outside of a step, where nothing can be made smaller: raises NotEnoughMemory in one line."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise NotEnoughMemory(f"{what} does not fit in memory; {remedy}") from None
