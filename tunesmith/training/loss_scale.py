"""Dynamic loss scaling, which keeps gradients in the range of float16 (Micikevicius et al. 2018, "Mixed precision
training").

Numbers below 6e-8 are 0 in float16, and those above 65,504 are infinite. So the loss is multiplied by a scale, and the
gradients are divided by it once they are in float32. If they are not finite, the step is skipped and the scale halved.
It doubles after many steps with finite gradients. The scale is a power of two, so it rounds nothing. In other
precisions it is 1 and never changes.

All processes make the same decision without an exchange, because each has the norm of the summed gradients.
"""

import math
from typing import Any

from tunesmith.training.checkpoint import State

INITIAL, SMALLEST = 2.0**16, 1.0
DOUBLES_AFTER = 2000  # steps


def initial(compute: str) -> float:
    """The scale of a run that computes in this precision."""
    return INITIAL if compute == "float16" else 1.0


def can_fall(state: State) -> bool:
    return state.loss_scale > SMALLEST


def lower(state: State) -> None:
    """After gradients that are not finite."""
    state.loss_scale, state.finite_steps = state.loss_scale / 2, 0


def note_finite(state: State, compute: str) -> None:
    """Counts an update, and raises the scale when it is time."""
    if compute != "float16":
        return
    state.finite_steps += 1
    if state.finite_steps == DOUBLES_AFTER:
        state.loss_scale, state.finite_steps = state.loss_scale * 2, 0


def event_fields(compute: str, scale: float, norm: float) -> dict[str, Any]:
    """Fields of the step's event: the scale that it used, and whether it was skipped."""
    if compute != "float16":
        return {}
    return {"loss_scale": scale} | ({} if math.isfinite(norm) else {"skipped": True})
