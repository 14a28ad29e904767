"""Greedy answers to held-out prompts."""

from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from tunesmith.model.positions import limit
from tunesmith.training.packed_attention import generating

PROMPTS_AT_ONCE, TOKENS_AT_ONCE = 64, 16384  # tokens with answers, for which keys and values are kept


def answers(
    model: Any, prompts: list[np.ndarray], max_new_tokens: int, stop_ids: list[int], pad_id: int
) -> list[list[int]]:
    """The ids of the model's greedy answer to each prompt (token ids), in order, without what ends it. An answer ends,
    also, where the model has no more positions."""
    model.eval()
    most = limit(model)
    room = [min(max_new_tokens, most - len(prompt)) if most else max_new_tokens for prompt in prompts]
    # What is not said here comes from the base's own settings, and would bend the answers.
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=stop_ids,
        pad_token_id=pad_id,
    )
    found: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
    shortest_first = sorted((i for i in found if room[i] > 0), key=lambda i: len(prompts[i]))
    with torch.inference_mode(), generating(model):
        for chosen in _together(shortest_first, [len(p) for p in prompts], room):
            greedy.max_new_tokens = room[chosen[0]]
            ids_BT, mask_BT = _left_padded([prompts[i] for i in chosen], pad_id, model.device)
            out_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=greedy)
            for i, out in zip(chosen, out_BT[:, ids_BT.shape[1] :].tolist()):
                found[i] = _until(out, stop_ids)
    return [found[i] for i in range(len(prompts))]


def _together(order: list[int], lengths: list[int], room: list[int]) -> list[list[int]]:
    """Splits prompts, shortest first, into those that are answered at once; `room`: the most tokens of each answer."""
    groups: list[list[int]] = []
    for i in order:
        tokens = (len(groups[-1]) + 1) * (lengths[i] + room[i]) if groups else 0
        if (
            not groups
            or len(groups[-1]) == PROMPTS_AT_ONCE
            or tokens > TOKENS_AT_ONCE
            or room[i] != room[groups[-1][0]]
        ):
            groups.append([])
        groups[-1].append(i)
    return groups


def _left_padded(prompts: list[np.ndarray], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = np.full((len(prompts), longest), pad_id, np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _until(ids: list[int], stop_ids: list[int]) -> list[int]:
    end = next((at for at, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:end]
