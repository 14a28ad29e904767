"""A run that makes the model much worse than it was is stopped, not trained to its end.

With held-out rows, each evaluation is compared with that before training. Without them, only the training loss is
known, and rows differ: several steps in a row must be worse than the first step, and worse than a model that finds
every token equally likely, which no batch is by chance.
"""

import math

from tunesmith.errors import Diverged
from tunesmith.recipe import Train
from tunesmith.training.checkpoint import State

STEPS_IN_A_ROW = 5
SMALLEST_BASE_LOSS = 0.1  # in nats; three times almost nothing is not divergence
USUAL_LEARNING_RATE = Train.model_fields["learning_rate"].default


def check_held_out(settings: Train, state: State, loss: float | None) -> None:
    """Raises Diverged if the held-out loss is too far above that before training."""
    if loss is None or state.base_loss is None or not settings.max_loss_ratio:
        return
    bound = settings.max_loss_ratio * max(state.base_loss, SMALLEST_BASE_LOSS)
    if not loss <= bound:  # nor may it be NaN
        raise _diverged(settings, state, f"held-out loss rose from {state.base_loss:.4g} before training to {loss:.4g}")


def check_step(settings: Train, state: State, loss: float, vocabulary: int) -> None:
    """Notes a step's training loss. Raises Diverged if the last ones are too far above the first step's."""
    if state.step == 1:
        state.first_loss = loss
    if state.first_loss is None or not settings.max_loss_ratio:
        return
    bound = max(settings.max_loss_ratio * state.first_loss, math.log(vocabulary))
    state.steps_above = state.steps_above + 1 if loss > bound else 0
    if state.steps_above >= STEPS_IN_A_ROW:
        raise _diverged(
            settings,
            state,
            f"training loss rose from {state.first_loss:.4g} at step 1 to {loss:.4g}, and "
            f"was above {bound:.4g} for {STEPS_IN_A_ROW} steps",
        )


def _diverged(settings: Train, state: State, what: str) -> Diverged:
    return Diverged(
        f"step {state.step}: training diverged: {what} (train.max_loss_ratio: {settings.max_loss_ratio:g}; "
        f"0 never stops); start a new run with {_remedy(settings)}"
    )


def _remedy(settings: Train) -> str:
    tries = [
        (
            f"train.learning_rate: {min(settings.learning_rate / 10, USUAL_LEARNING_RATE):.2g} "
            f"(it was {settings.learning_rate:g})"
        )
    ]
    if not settings.max_grad_norm:
        tries.append("train.max_grad_norm: 1")
    if not settings.warmup_ratio:
        tries.append("train.warmup_ratio: 0.03")
    return ", ".join(tries)
