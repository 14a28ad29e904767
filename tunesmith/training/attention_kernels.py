"""Causal attention within documents that are laid end to end: three ways to compute it.

Shapes: H heads (K of keys and values, where fewer), T tokens, D head size, L tokens of a document or of a chunk of it,
S tokens it sees, B heads of documents of equal length. `window` counts the token itself; `cap` is that of Gemma 2's
scores, `cap * tanh(scores / cap)`; `sinks_H` are logits of one more column of the softmax, whose probability is
dropped (Xiao et al. 2023, "Efficient streaming language models with attention sinks", learned as in gpt-oss).
"""

from functools import lru_cache
from inspect import signature
from itertools import groupby

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from tunesmith.training.planned_device import capability_of, is_planned

# Measured on a CPU by bench/attention_trial.py.
CHUNK_QUERIES = 256
CHUNK_SCORES = 2**21  # a few MB: they stay in the cache
# Probabilities are kept for the backward pass, which is faster than to compute them again, up to a length at which
# they are about as large as queries, keys and values, and of few documents, which stay in the cache, up to twice that.
KEPT_LENGTH, KEPT_SCORES = 256, 2**22
BFLOAT16_LENGTH = 2048  # beyond, float32 is as fast
BLOCK = 128  # FlexAttention's own


def by_document(
    query_HTD,
    key_HTD,
    value_HTD,
    lengths: tuple[int, ...],
    scaling: float,
    window: int | None = None,
    cap: float | None = None,
    sinks_H=None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """(H, T, D): document by document, those of equal length in one call. In the precision of its arguments, except
    for 16 bits without cap and sinks where torch's attention is as fast in float32, or has the dropout."""
    groups = [(length, len(list(run))) for length, run in groupby(lengths)]
    # `split`, as its gradient is one copy, where that of each slice is as large as the whole.
    pieces = [x.split([length * count for length, count in groups], dim=1) for x in (query_HTD, key_HTD, value_HTD)]
    outputs = []
    for (length, count), *piece in zip(groups, *pieces):
        q_BLD, k_BLD, v_BLD = (x.reshape(-1, length, x.shape[-1]) for x in piece)
        sees = window if window and window < length else None
        short = q_BLD.dtype == torch.bfloat16 and length <= BFLOAT16_LENGTH and not dropout
        if sees or cap or sinks_H is not None or short:
            sinks_B = None if sinks_H is None else sinks_H.to(q_BLD.dtype).repeat_interleave(count)
            out_BLD = _by_scores(q_BLD, k_BLD, v_BLD, sinks_B, scaling, sees, cap, dropout)
        else:
            # On a CPU the backward pass of torch's attention in bfloat16 takes three times as long as in float32.
            dtype = q_BLD.dtype
            wide = dtype if _has_fast_float16(q_BLD) else torch.promote_types(dtype, torch.float32)
            out_BLD = scaled_dot_product_attention(
                *(x[None].to(wide) for x in (q_BLD, k_BLD, v_BLD)), None, dropout, is_causal=True, scale=scaling
            )[0]
        outputs.append(out_BLD.to(q_BLD.dtype).unflatten(0, (-1, count)).flatten(1, 2))
    return torch.cat(outputs, dim=1)


def _has_fast_float16(x: torch.Tensor) -> bool:
    """Whether these numbers are in float16 on a GPU with tensor cores, for which torch's attention has kernels."""
    return x.dtype == torch.float16 and capability_of(x.device) >= (7, 0)


def _by_scores(q_BLD, k_BLD, v_BLD, sinks_B, scaling, window, cap, dropout):
    count, length, _ = q_BLD.shape
    few = length <= 2 * KEPT_LENGTH and count * length**2 <= KEPT_SCORES
    if length > KEPT_LENGTH and not few and not dropout:  # which chunks would draw again
        return _chunked(q_BLD, k_BLD, v_BLD, sinks_B, scaling, window, cap)
    kept_BLS = _probabilities(q_BLD, k_BLD, sinks_B, scaling, window, cap)
    return torch.bmm(torch.dropout(kept_BLS, dropout, train=True), v_BLD)


def _probabilities(q_BLD, k_BSD, sinks_B, scaling, window, cap) -> torch.Tensor:
    """(B, L, S). The queries are the last of the tokens they see."""
    (length, seen), offset = (q_BLD.shape[1], k_BSD.shape[1]), k_BSD.shape[1] - q_BLD.shape[1]
    hidden_LS = q_BLD.new_full((length, seen), -torch.inf)
    mask_LS = hidden_LS.triu(offset + 1)
    if window:
        mask_LS += hidden_LS.tril(offset - window)
    if cap:
        capped_BLS = torch.tanh(torch.bmm(q_BLD, k_BSD.mT) * (scaling / cap))
        scores_BLS = torch.add(mask_LS, capped_BLS, alpha=cap)
    else:
        scores_BLS = torch.baddbmm(mask_LS, q_BLD, k_BSD.mT, alpha=scaling)
    if sinks_B is None:
        return torch.softmax(scores_BLS, -1)
    sinks_BL1 = sinks_B[:, None, None].expand(-1, length, 1)
    return torch.softmax(torch.cat([scores_BLS, sinks_BL1], -1), -1)[..., :-1]


def _chunks(shape, window):
    """(rows, queries, keys): slices whose scores have a bounded size, and none that no query sees."""
    count, length, _ = shape
    for start in range(0, length, CHUNK_QUERIES):
        end = min(start + CHUNK_QUERIES, length)
        first = max(0, start + 1 - window) if window else 0
        size = max(1, CHUNK_SCORES // ((end - start) * (end - first)))
        for row in range(0, count, size):
            yield slice(row, row + size), slice(start, end), slice(first, end)


# An operator of its own, so that `selective` checkpointing keeps its output, and not the scores within.
@torch.library.custom_op("tunesmith::attention", mutates_args=())
def _chunked(
    q_BLD: torch.Tensor,
    k_BLD: torch.Tensor,
    v_BLD: torch.Tensor,
    sinks_B: torch.Tensor | None,
    scaling: float,
    window: int | None,
    cap: float | None,
) -> torch.Tensor:
    """Attention a chunk of the scores at a time; they are computed again in the backward pass, as in flash attention
    (Dao et al. 2022)."""
    out_BLD = q_BLD.new_empty(*q_BLD.shape[:2], v_BLD.shape[-1])
    for rows, queries, keys in _chunks(q_BLD.shape, window):
        sinks = None if sinks_B is None else sinks_B[rows]
        p_BLS = _probabilities(q_BLD[rows, queries], k_BLD[rows, keys], sinks, scaling, window, cap)
        out_BLD[rows, queries] = torch.bmm(p_BLS, v_BLD[rows, keys])
    return out_BLD


@_chunked.register_fake
def _(q_BLD, k_BLD, v_BLD, sinks_B, scaling, window, cap):
    return q_BLD.new_empty(*q_BLD.shape[:2], v_BLD.shape[-1])


def _keep(ctx, inputs, output):
    *tensors, ctx.scaling, ctx.window, ctx.cap = inputs
    ctx.save_for_backward(*tensors)


def _chunked_backward(ctx, by_out_BLD):
    *inputs, value_BLD, sinks_B = ctx.saved_tensors
    # Sums over chunks, so in float32.
    by_q, by_k, by_v, by_sinks = (
        None if x is None else torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for x in (*inputs, value_BLD, sinks_B)
    )
    for rows, queries, keys in _chunks(by_out_BLD.shape, ctx.window):
        q_BLD, k_BSD = inputs[0][rows, queries], inputs[1][rows, keys]
        parts = [q_BLD, k_BSD] if sinks_B is None else [q_BLD, k_BSD, sinks_B[rows]]
        parts = [x.detach().requires_grad_() for x in parts]
        with torch.enable_grad(), torch.autocast(by_out_BLD.device.type, enabled=False):
            p_BLS = _probabilities(*parts, *[None] * (3 - len(parts)), ctx.scaling, ctx.window, ctx.cap)
        by_out = by_out_BLD[rows, queries]
        by_v[rows, keys] += torch.bmm(p_BLS.detach().mT, by_out)
        found = torch.autograd.grad(p_BLS, parts, torch.bmm(by_out, value_BLD[rows, keys].mT))
        by_q[rows, queries] = found[0]
        by_k[rows, keys] += found[1]
        if sinks_B is not None:
            by_sinks[rows] += found[2]
    by_inputs = [None if x is None else x.to(by_out_BLD.dtype) for x in (by_q, by_k, by_v, by_sinks)]
    return *by_inputs, None, None, None


_chunked.register_autograd(_chunked_backward, setup_context=_keep)
CHUNKED = torch.ops.tunesmith.attention.default


def variable_length(query_HTD, key_KTD, value_KTD, ends, longest: int, scaling, window=None) -> torch.Tensor:
    """(H, T, D) by torch's flash attention over documents, in bfloat16 or float16 on a GPU."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = {}
    if len(query_HTD) > len(key_KTD):
        if "enable_gqa" in signature(varlen_attn).parameters:
            grouped = {"enable_gqa": True}
        else:  # torch 2.11
            key_KTD, value_KTD = (x.repeat_interleave(len(query_HTD) // len(x), dim=0) for x in (key_KTD, value_KTD))
    query, key, value = (x.transpose(0, 1) for x in (query_HTD, key_KTD, value_KTD))
    window_size = (window - 1 if window else -1, 0)  # flash's does not count the token itself
    return varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=window_size, **grouped
    ).transpose(0, 1)


def flexible(query_HTD, key_KTD, value_KTD, ends, scaling, window=None, cap=None, sinks_H=None) -> torch.Tensor:
    """(H, T, D) by FlexAttention (Dong et al. 2024), compiled on a GPU."""
    from torch.nn.attention.flex_attention import AuxRequest

    mask = block_mask(ends, query_HTD.shape[1], window)
    inputs = query_HTD[None], key_KTD[None], value_KTD[None]
    if is_planned():
        out_1HTD, lse_1HT = _PlannedFlexAttention.apply(*inputs)
    else:
        out_1HTD, aux = _flex_attention(query_HTD.device.type)(
            *inputs,
            score_mod=_capped(cap),
            block_mask=mask,
            scale=scaling,
            enable_gqa=len(query_HTD) > len(key_KTD),
            return_aux=AuxRequest(lse=True),
        )
        lse_1HT = aux.lse
    if sinks_H is None:
        return out_1HTD[0]
    # With Z the sum of exp(scores), lse = log Z: a sink s makes each probability exp(score) / (Z + exp(s)), which is
    # exp(score) / Z, as without it, times Z / (Z + exp(s)) = sigmoid(lse - s). FlexAttention's lse has a gradient.
    return (out_1HTD[0] * torch.sigmoid(lse_1HT[0] - sinks_H[:, None])[..., None]).to(query_HTD.dtype)


class _PlannedFlexAttention(torch.autograd.Function):
    """Takes the memory of FlexAttention's compiled kernels and computes nothing.

    It takes the output and, in float32, the log-sum-exp of each row, which are kept for the backward pass beside
    queries, keys and values; there the gradients of these and, in float32, a sum for each row. Scores have no memory.
    The block mask is the caller's, which makes it as for a GPU.
    """

    @staticmethod
    def forward(ctx, query_1HTD, key_1KTD, value_1KTD):
        out_1HTD = query_1HTD.new_empty(*query_1HTD.shape[:3], value_1KTD.shape[-1])
        lse_1HT = query_1HTD.new_empty(query_1HTD.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query_1HTD, key_1KTD, value_1KTD, out_1HTD, lse_1HT)
        return out_1HTD, lse_1HT

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_out_1HTD, by_lse_1HT):
        *inputs, _, lse_1HT = ctx.saved_tensors
        sums_1HT = torch.empty_like(lse_1HT)
        by_inputs = tuple(map(torch.empty_like, inputs))
        del sums_1HT
        return by_inputs


@lru_cache
def _flex_attention(device: str):
    from torch.nn.attention.flex_attention import flex_attention

    if device != "cuda":
        return flex_attention
    # Each graph serves all layers, and lengths become variables as they change; it is the kinds (with gradients, of
    # few tokens) that add up, and beyond the limit torch would give up. Not `dynamic=True`: it makes variables of the
    # factors too, and then finds no whole graph.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(flex_attention, fullgraph=True)


@lru_cache
def _capped(cap: float | None):
    """Returns one function for each cap, because another one would be compiled again."""
    return cap and (lambda score, *at: cap * torch.tanh(score / cap))


@lru_cache(maxsize=4)  # made once for all layers of a kind
def block_mask(ends, tokens: int, window: int | None):
    """FlexAttention's mask. Made of the boundaries, as torch's own way would look at all pairs of tokens."""
    from torch.nn.attention.flex_attention import BlockMask

    first_T = torch.repeat_interleave(ends[:-1], torch.diff(ends), output_size=tokens)  # that a token sees
    if window:
        first_T = torch.maximum(first_T, torch.arange(tokens, device=ends.device) + 1 - window)
    first_T = pad(first_T.int(), (0, -tokens % BLOCK), value=tokens)  # what fills the last block sees nothing
    # It never decreases, so a block's first token tells what any of its tokens, and its last what all of them see.
    any_N1, all_N1 = first_T[::BLOCK, None] // BLOCK, -(-first_T[BLOCK - 1 :: BLOCK, None] // BLOCK)
    key_N = torch.arange(len(any_N1), device=ends.device)
    query_N1 = key_N[:, None]
    whole_NN = (key_N >= all_N1) & (key_N < query_N1)
    part_NN = (key_N >= any_N1) & (key_N <= query_N1) & ~whole_NN
    numbers = [
        x.int()[None, None]
        for seen in (part_NN, whole_NN)
        for x in (seen.sum(1), seen.int().argsort(dim=1, descending=True, stable=True))
    ]
    return BlockMask.from_kv_blocks(
        *numbers,
        BLOCK_SIZE=BLOCK,
        seq_lengths=(tokens, tokens),
        mask_mod=lambda b, h, q, k: (first_T[q] <= k) & (k <= q),
    )
