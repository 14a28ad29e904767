"""Attention of sequences that are computed together, each over keys and values of its own.

The tokens of all sequences follow one another in one row, without padding, so every other layer sees one matrix,
and each sequence attends to its own tokens alone, at its own positions. `packed` sets which sequences a forward pass
computes, since not every model hands extra arguments down to its attention. Sequences in a slab (kv_slab.py) that get
one token each attend in one call.

H heads, K heads of keys, G = H / K, T new tokens, S tokens of the sequence with them, D width of a head.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from tunesmith.inference.kv_slab import Decoding, Row, attention_weights

NAME = "tunesmith_serve"
ROOM = 64
_PASS: ContextVar["_Pass"] = ContextVar("pass")


class KV:
    """Keys and values of one sequence, by layer, with room to grow."""

    def __init__(self):
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.nbytes = 0

    def append(self, layer: int, key_KTD: torch.Tensor, value_KTD: torch.Tensor, at: int):
        """Writes new tokens at position `at` of a layer; returns its keys and values [K, S, D] up to them."""
        end = at + key_KTD.shape[1]
        old = self._layers.get(layer)
        if old is None or old[0].shape[1] < end:
            room = -(-(end + end // 4) // ROOM) * ROOM
            new = tuple(t.new_empty(t.shape[0], room, t.shape[2]) for t in (key_KTD, value_KTD))
            for source, target in zip(old or (), new):
                target[:, :at] = source[:, :at]
            self.nbytes += sum(t.nbytes for t in new) - sum(t.nbytes for t in old or ())
            self._layers[layer] = new
        key, value = self._layers[layer]
        key[:, at:end] = key_KTD
        value[:, at:end] = value_KTD
        return key[:, :end], value[:, :end]

    def head(self, tokens: int) -> "KV":
        """A copy of the first tokens."""
        copy = KV()
        for layer, (key, value) in self._layers.items():
            copy.append(layer, key[:, :tokens], value[:, :tokens], 0)
        return copy

    def free(self) -> None:
        """Gives its memory back."""
        self._layers.clear()
        self.nbytes = 0

    @property
    def bytes_per_token(self) -> int:
        return sum(t.nbytes // t.shape[1] for pair in self._layers.values() for t in pair)


@dataclass
class Segment:
    """`count` new tokens of a sequence whose first `at` are in `kv`."""

    kv: KV | Row
    at: int
    count: int


class _Pass:
    """The segments of a forward pass: those that attend `apart`, each with the place of its first token, and the single
    tokens that attend together."""

    def __init__(self, segments: list[Segment]):
        self.apart: list[tuple[int, Segment]] = []
        self._rows: list[tuple[Row, int, int]] = []
        self._decodings: dict[torch.device, Decoding] = {}
        start = 0
        for segment in segments:
            if isinstance(segment.kv, Row) and segment.count == 1:
                self._rows.append((segment.kv, segment.at, start))
            else:
                self.apart.append((start, segment))
            start += segment.count

    def decoding(self, device: torch.device) -> Decoding | None:
        """The single tokens, for layers on a device."""
        if self._rows and device not in self._decodings:
            self._decodings[device] = Decoding(self._rows, device)
        return self._decodings.get(device)


@contextmanager
def packed(segments: list[Segment]):
    """Within it a model that attends by NAME computes these segments, in this order."""
    token = _PASS.set(_Pass(segments))
    try:
        yield
    finally:
        _PASS.reset(token)


def _packed_attention(
    module,
    query_1HTD,
    key_1KTD,
    value_1KTD,
    attention_mask,
    scaling=None,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **_,
):
    """In the place of transformers' attention functions: [1, T, H, D], in the precision of autocast."""
    device = query_1HTD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query_1HTD.dtype
    query_HTD, key_KTD, value_KTD = (x[0].to(dtype) for x in (query_1HTD, key_1KTD, value_1KTD))
    scale = scaling if scaling is not None else query_HTD.shape[-1] ** -0.5
    options = (scale, sliding_window, softcap, s_aux)
    heads, tokens = query_HTD.shape[:2]
    out_THD = query_HTD.new_empty(tokens, heads, value_KTD.shape[-1])
    layer, now = module.layer_idx, _PASS.get()
    for start, segment in now.apart:
        new = slice(start, start + segment.count)
        key, value = segment.kv.append(layer, key_KTD[:, new], value_KTD[:, new], segment.at)
        out_THD[new] = attend(query_HTD[:, new], key, value, *options).transpose(0, 1)
    if decoding := now.decoding(query_HTD.device):
        out_THD[decoding.places_N] = decoding.attend(layer, query_HTD, key_KTD, value_KTD, *options)
    return out_THD[None], None


def attend(query_HTD, key_KSD, value_KSD, scale: float, window: int | None, cap: float | None, sinks_H) -> torch.Tensor:
    """The last T of S tokens attend to themselves and those before them, at most `window` in all; [H, T, D]."""
    (heads, count, width), (kv_heads, length) = query_HTD.shape, key_KSD.shape[:2]
    if window and count == 1 and length > window:
        key_KSD, value_KSD, length = key_KSD[:, -window:], value_KSD[:, -window:], window
    if cap or sinks_H is not None:
        return _by_scores(query_HTD, key_KSD, value_KSD, scale, window, cap, sinks_H)
    if count == 1:  # the heads that share keys stand where tokens would
        query = query_HTD.reshape(1, kv_heads, heads // kv_heads, width)
        out = scaled_dot_product_attention(query, key_KSD[None], value_KSD[None], scale=scale)
        return out.reshape(heads, 1, -1)
    causal = length == count and not (window and count > window)
    if not causal and query_HTD.is_cuda:  # where a mask and heads that share keys have no fast kernel
        key_KSD, value_KSD = (x.repeat_interleave(heads // kv_heads, 0) for x in (key_KSD, value_KSD))
        kv_heads = heads
    mask = None if causal else _mask(count, length, window, query_HTD.device)
    return scaled_dot_product_attention(
        query_HTD[None],
        key_KSD[None],
        value_KSD[None],
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=heads != kv_heads,
    )[0]


def _by_scores(query_HTD, key_KSD, value_KSD, scale, window, cap, sinks_H) -> torch.Tensor:
    """Attention with capped scores (Gemma 2) or sinks (gpt-oss), which no kernel for the CPU has."""
    (heads, count, width), (kv_heads, length) = query_HTD.shape, key_KSD.shape[:2]
    query = query_HTD.reshape(kv_heads, -1, width)
    scores = (query @ key_KSD.transpose(1, 2)).view(kv_heads, -1, count, length) * scale
    sinks = None if sinks_H is None else sinks_H.view(kv_heads, -1, 1, 1)
    weights = attention_weights(scores, _mask(count, length, window, query.device), cap, sinks, value_KSD.dtype)
    return (weights.reshape(kv_heads, -1, length) @ value_KSD).view(heads, count, -1)


def _mask(count: int, length: int, window: int | None, device) -> torch.Tensor:
    """Which of `length` tokens the last `count` of them see: [T, S]."""
    behind = torch.arange(length - count, length, device=device)[:, None] - torch.arange(length, device=device)
    return (behind >= 0) & (behind < window) if window else behind >= 0


AttentionInterface.register(NAME, _packed_attention)
