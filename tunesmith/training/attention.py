"""Attention over packed documents, registered through transformers' own attention interface.

`documents` computes causal attention document by document, those of equal length in one call, so that no score
between documents is ever computed. Shapes: B batch (1), H heads, T tokens, D head size, n documents of length L.
"""

from contextlib import contextmanager
from itertools import groupby

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from tunesmith.model.families import can_pack

NAME = "documents"


def documents(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, dropout=0.0, scaling=None,
              sliding_window=None, cu_seq_lens_q=None, **_) -> tuple[torch.Tensor, None]:
    """Returns (B, T, H, D). Needs `cu_seq_lens_q`, the documents' boundaries."""
    dtype, groups = query_BHTD.dtype, getattr(module, "num_key_value_groups", 1)
    runs = [(length, len(list(run))) for length, run in groupby(torch.diff(cu_seq_lens_q).tolist())]
    # `split`, as its gradient is one copy, where that of each slice is as large as the whole. float32, as torch's
    # backward pass of bfloat16 attention on a CPU takes three times as long.
    pieces = [x[0].float().split([length * count for length, count in runs], dim=1)
              for x in (query_BHTD, repeat_kv(key_BHTD, groups), repeat_kv(value_BHTD, groups))]
    outputs = []
    for (length, _), *piece in zip(runs, *pieces):
        q_nHLD, k_nHLD, v_nHLD = (x.unflatten(1, (-1, length)).transpose(0, 1) for x in piece)
        windowed = sliding_window is not None and length > sliding_window
        mask = _window_mask(length, sliding_window, query_BHTD.device) if windowed else None
        with torch.autocast(q_nHLD.device.type, enabled=False):
            out_nHLD = scaled_dot_product_attention(q_nHLD, k_nHLD, v_nHLD, mask, dropout, is_causal=mask is None,
                                                    scale=scaling)
        outputs.append(out_nHLD.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None].to(dtype), None


def _window_mask(length: int, window: int, device) -> torch.Tensor:
    at = torch.arange(length, device=device)
    behind = at[:, None] - at[None, :]
    return (behind >= 0) & (behind < window)


AttentionInterface.register(NAME, documents)


def choose(config, device: torch.device, packing: bool) -> str:
    """The attention this model trains with; a family's own needs come first."""
    if not can_pack(config):
        return "eager"  # sinks or capped scores: neither sdpa nor `documents` has them
    return NAME if packing and device.type == "cpu" else "sdpa"


@contextmanager
def generating(model):
    """Within it the model attends by masks and caches, as generation needs."""
    training = model.config._attn_implementation
    if training == NAME:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if training == NAME:
            model.set_attn_implementation(training)


def name_default(model) -> None:
    """A saved config must not name an attention that only Tunesmith has."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa")
