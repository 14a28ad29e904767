"""Attention over packed documents, registered through transformers' own attention interface.

`documents` computes causal attention within each document, so that no score between documents is ever computed: on a
card by torch's variable-length attention, elsewhere document by document, those of equal length in one call. Shapes:
B batch (1), H heads, T tokens, D head size, n documents of length L.
"""

from contextlib import contextmanager
from itertools import groupby

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from tunesmith.training.batch import collate
from tunesmith.training.loss import forward

NAME = "documents"


@torch.compiler.disable  # its shapes depend on the documents' lengths
def documents(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, dropout=0.0, scaling=None,
              sliding_window=None, cu_seq_lens_q=None, max_length_q=None, **others) -> tuple[torch.Tensor, None]:
    """Returns (B, T, H, D). Needs `cu_seq_lens_q`, the documents' boundaries. Raises ValueError for a model whose
    attention has more to it."""
    unknown = [name for name in ("s_aux", "softcap", "position_bias") if others.get(name) is not None]
    if unknown or cu_seq_lens_q is None:
        raise ValueError(f"attention over documents does not do {unknown or 'without boundaries'}")
    groups = getattr(module, "num_key_value_groups", 1)
    key_BHTD, value_BHTD = repeat_kv(key_BHTD, groups), repeat_kv(value_BHTD, groups)
    device, dtype = query_BHTD.device.type, query_BHTD.dtype
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    if device == "cuda" and compute in (torch.bfloat16, torch.float16) and not dropout:
        return _variable_length(query_BHTD, key_BHTD, value_BHTD, cu_seq_lens_q, max_length_q, scaling,
                                sliding_window, compute), None
    runs = [(length, len(list(run))) for length, run in groupby(torch.diff(cu_seq_lens_q).tolist())]
    # `split`, as its gradient is one copy, where that of each slice is as large as the whole. float32, as torch's
    # backward pass of bfloat16 attention on a CPU takes three times as long.
    pieces = [x[0].float().split([length * count for length, count in runs], dim=1)
              for x in (query_BHTD, key_BHTD, value_BHTD)]
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


def _variable_length(query_BHTD, key_BHTD, value_BHTD, ends, longest, scaling, sliding_window, dtype):
    """(B, T, H, D) by torch's flash attention over documents. A window counts the token itself, flash's does not."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (x[0].transpose(0, 1).to(dtype) for x in (query_BHTD, key_BHTD, value_BHTD))
    window = (sliding_window - 1 if sliding_window else -1, 0)
    return varlen_attn(query, key, value, ends, ends, longest, longest, scale=scaling, window_size=window)[None]


def _window_mask(length: int, window: int, device) -> torch.Tensor:
    at = torch.arange(length, device=device)
    behind = at[:, None] - at[None, :]
    return (behind >= 0) & (behind < window)


AttentionInterface.register(NAME, documents)


def choose(config, packing: bool) -> str | None:
    """The attention to load this model with; None lets transformers choose."""
    if getattr(config, "attn_logit_softcapping", None):
        return "eager"  # sdpa has no capped scores
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    takes_others = getattr(known, "_supports_attention_backend", False)
    return NAME if packing and takes_others else None


def keeps_apart(model) -> bool:
    """Whether packed documents do not see each other in this model, nor later tokens earlier ones.

    Shown on the model itself: the logits of a document must stay as they are when the one before it changes, and its
    own last token; and be about what they are alone, so positions restart.
    """
    ids = torch.arange(1, 13)
    first, second = ids[:6], ids[6:]
    other_first, other_second = first.flip(0), torch.cat([second[:-1], ids[:1]])
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            packed, changed = (_packed_logits(model, a, b)[6:-1] for a, b in
                               ((first, second), (other_first, other_second)))
            alone = _packed_logits(model, second)[:-1]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError):
        return False  # a model whose code knows no such attention
    finally:
        model.train(training)
    scale = alone.std()
    exact = model.dtype == torch.float32 and not torch.is_autocast_enabled(model.device.type)
    rounding = 1e-3 if exact else 2e-2  # experts see other batches, so not bit for bit
    return bool((packed - changed).abs().max() < rounding * scale and (packed - alone).abs().max() < 0.2 * scale)


def _packed_logits(model, *documents: torch.Tensor) -> torch.Tensor:
    """(tokens, V) of documents laid end to end."""
    rows = [(ids.numpy(), np.zeros(len(ids), bool)) for ids in documents]
    batch = collate(rows, np.arange(len(rows)), packed=True).to(model.device)
    return forward(model, batch).logits[0].float()


@contextmanager
def generating(model):
    """Within it the model attends by masks and caches, as generation needs."""
    training = model.config._attn_implementation
    use_default(model)
    try:
        yield
    finally:
        model.set_attn_implementation(training)


def use_default(model) -> None:
    """Puts transformers' own attention in the place of `documents`, which only Tunesmith has."""
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
