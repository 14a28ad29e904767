"""Greedy answers to held-out prompts."""

from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.inference.generate import Answer, Progress, generate, unheard
from tunesmith.inference.transformers_model import borrowed
from tunesmith.model.positions import limit


def answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Iterable[int],
    progress: Progress = unheard,
) -> list[Answer]:
    """The model's greedy answer to each prompt (token ids), in order. An answer also ends where the model has no more
    positions. `progress` is called with the number of answers so far."""
    positions = limit(model)
    room = [min(max_new_tokens, positions - len(prompt)) if positions else max_new_tokens for prompt in prompts]
    with borrowed(model) as weights:
        groups = generate(weights, prompts, max_new_tokens=room, stop_ids=frozenset(stop_ids), progress=progress)
    return [answer for (answer,) in groups]
