"""Keys and values of sequences that grow side by side: one tensor for each layer, so that one call attends for all.

R rows of the slab, N of which get a token in a pass; H heads, K heads of keys, G = H / K, T tokens of the pass, S
tokens of a row, D head size.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention

ALIGNED = 64  # lengths are rounded up to this, as the kernels of GPUs need


class Slab:
    """Room for a number of sequences of `tokens` each. The rows in use are the first ones."""

    def __init__(self, sequences: int, tokens: int):
        self._sequences, self.room = sequences, -(-tokens // ALIGNED) * ALIGNED
        self._rows: list[Row] = []
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def new(self) -> "Row":
        self._rows.append(Row(self, len(self._rows)))
        return self._rows[-1]

    def remove(self, row: "Row") -> None:
        """Frees a row; the last row moves to its place."""
        last = self._rows.pop()
        if last is row:
            return
        self.copy(last.number, row.number, self.room)
        self._rows[row.number], last.number = last, row.number

    def copy(self, source: int, target: int, tokens: int) -> None:
        for pair in self._layers.values():
            for tensor in pair:
                tensor[target, :, :tokens] = tensor[source, :, :tokens]

    def layer(self, layer: int, key_KTD: torch.Tensor, value_KTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values [R, K, S, D] of a layer, made like the given ones. They start as zeros: a token that is
        not seen has a weight of 0, and 0 times uninitialised memory may be NaN."""
        if layer not in self._layers:
            key, value = (t.new_zeros(self._sequences, t.shape[0], self.room, t.shape[2]) for t in (key_KTD, value_KTD))
            self._layers[layer] = key, value
        return self._layers[layer]

    @property
    def bytes_per_row(self) -> int:
        return sum(tensor[0].nbytes for pair in self._layers.values() for tensor in pair)


class Row:
    """See loaded_model.KV: a row of a slab."""

    def __init__(self, slab: Slab, number: int):
        self.slab, self.number = slab, number

    @property
    def nbytes(self) -> int:
        return self.slab.bytes_per_row

    def append(self, layer: int, key_KTD: torch.Tensor, value_KTD: torch.Tensor, at: int):
        """Writes new tokens at position `at` of a layer; returns its keys and values [K, S, D] up to them."""
        end = at + key_KTD.shape[1]
        key, value = (t[self.number] for t in self.slab.layer(layer, key_KTD, value_KTD))
        key[:, at:end] = key_KTD
        value[:, at:end] = value_KTD
        return key[:, :end], value[:, :end]

    def head(self, tokens: int) -> "Row":
        copy = self.slab.new()
        self.slab.copy(self.number, copy.number, tokens)
        return copy

    def free(self) -> None:
        self.slab.remove(self)


class Decoding:
    """One new token for each of N rows of a slab. `places_N`: where they stand among the tokens of the pass."""

    def __init__(self, rows: list[tuple[Row, int, int]], device: torch.device):
        """`rows`: each with the number of tokens it has, and the place of its new one."""
        self._slab = rows[0][0].slab
        self._rows = 1 + max(row.number for row, _, _ in rows)
        self._lengths = [at + 1 for _, at, _ in rows]
        numbers = torch.tensor([[row.number, at, place] for row, at, place in rows], device=device)
        self._rows_N, self._at_N, self.places_N = numbers.T
        self._seen: dict[int | None, tuple[slice, torch.Tensor]] = {}

    def attend(self, layer: int, query_HTD, key_KTD, value_KTD, scale, window, cap, sinks_H) -> torch.Tensor:
        """Writes the new keys and values. Each row attends to its own, at most the last `window`; [N, H, D]."""
        key_RKSD, value_RKSD = self._slab.layer(layer, key_KTD, value_KTD)
        key_RKSD[self._rows_N, :, self._at_N] = key_KTD[:, self.places_N].transpose(0, 1)
        value_RKSD[self._rows_N, :, self._at_N] = value_KTD[:, self.places_N].transpose(0, 1)
        tokens, seen_RS = self._seen_by(window)
        key, value = key_RKSD[: self._rows, :, tokens], value_RKSD[: self._rows, :, tokens]
        heads, width = query_HTD.shape[0], query_HTD.shape[2]
        query_RHD = query_HTD.new_zeros(self._rows, heads, width)
        query_RHD[self._rows_N] = query_HTD[:, self.places_N].transpose(0, 1)
        # Heads that share keys stand where tokens would.
        query_RKGD = query_RHD.view(self._rows, key.shape[1], -1, width)
        if cap or sinks_H is not None:
            scores = query_RKGD @ key.transpose(2, 3) * scale
            sinks = None if sinks_H is None else sinks_H.view(key.shape[1], -1, 1)
            out = attention_weights(scores, seen_RS[:, None, None], cap, sinks, value.dtype) @ value
        else:
            out = scaled_dot_product_attention(query_RKGD, key, value, attn_mask=seen_RS[:, None, None], scale=scale)
        return out.reshape(self._rows, heads, -1)[self._rows_N]

    def _seen_by(self, window: int | None) -> tuple[slice, torch.Tensor]:
        """The places that any row sees, and which of them each row does; the same in all layers of a window. Rows
        without a new token see the first place, because a row must see something."""
        if window not in self._seen:
            first = max(0, min(self._lengths) - window) // ALIGNED * ALIGNED if window else 0
            last = -(-max(self._lengths) // ALIGNED) * ALIGNED
            at_N1, place_S = self._at_N[:, None], torch.arange(first, last, device=self._at_N.device)
            seen_NS = (place_S <= at_N1) & (place_S > at_N1 - window) if window else place_S <= at_N1
            seen_RS = (place_S == first).expand(self._rows, -1).clone()
            seen_RS[self._rows_N] = seen_NS
            self._seen[window] = slice(first, last), seen_RS
        return self._seen[window]


def attention_weights(scores, seen, cap: float | None, sinks, dtype: torch.dtype) -> torch.Tensor:
    """Softmax of the scores [..., S], capped, of the tokens seen. Sinks, of a shape that broadcasts with [..., 1], take
    their share of the sum."""
    length = scores.shape[-1]
    if cap:
        scores = torch.tanh(scores / cap) * cap
    scores = scores.float().masked_fill(~seen, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().expand(*scores.shape[:-1], 1)], -1)
    return scores.softmax(-1)[..., :length].to(dtype)
