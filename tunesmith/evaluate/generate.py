"""Greedy answers to held-out prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.inference.generate import generate
from tunesmith.inference.transformers_model import borrowed
from tunesmith.model.positions import limit

PROMPTS_AT_ONCE, TOKENS_AT_ONCE = 64, 16384  # tokens with answers, whose keys and values are kept


def answers(model: Any, prompts: Sequence[np.ndarray], max_new_tokens: int, stop_ids: Sequence[int]) -> list[list[int]]:
    """The ids of the model's greedy answer to each prompt (token ids), in order, without the stop token. An answer also
    ends where the model has no more positions."""
    positions = limit(model)
    room = [min(max_new_tokens, positions - len(prompt)) if positions else max_new_tokens for prompt in prompts]
    with borrowed(model) as weights:
        groups = generate(
            weights,
            [prompt.tolist() for prompt in prompts],
            max_new_tokens=room,
            stop_ids=frozenset(stop_ids),
            together=PROMPTS_AT_ONCE,
            max_tokens=TOKENS_AT_ONCE,
        )
    return [answer.text_ids for (answer,) in groups]
