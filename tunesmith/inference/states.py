"""Sequences over transformers' own cache: for models whose layers keep other things than keys and values, which can be
neither packed nor cut.

B sequences of a batch, T tokens, V tokens of the vocabulary.
"""

from inspect import signature

import torch
from transformers.cache_utils import DynamicCache


class States:
    """A batch of sequences that start together and advance together, padded on the left."""

    def __init__(self, model, caches: bool = True):
        """`caches`: else every pass computes all tokens again."""
        self._model, self._caches = model, caches
        self._accepted = signature(model.forward).parameters
        self._cache: DynamicCache | None = None
        self._ids_BT = self._mask_BT = torch.empty(0, 0)
        self._padded = False
        self._live = 0

    def new(self) -> "StatesRow":
        self._live += 1
        return StatesRow(self, None)

    def copy(self, row: "StatesRow") -> "StatesRow":
        self._live += 1
        return StatesRow(self, row.number)

    def remove(self) -> None:
        self._live -= 1
        if not self._live:
            self._cache = None

    @property
    def bytes_per_row(self) -> int:
        if self._cache is None:
            return 0
        kept = [value for layer in self._cache.layers for value in vars(layer).values()]
        kept = [tensor for value in kept for tensor in (value.values() if isinstance(value, dict) else [value])]
        return sum(tensor.nbytes for tensor in kept if isinstance(tensor, torch.Tensor)) // max(1, len(self._ids_BT))

    def logits(self, rows: list["StatesRow"], ids: list[list[int]]) -> torch.Tensor:
        """Computes the next ids of each row, and returns the logits [B, V] that follow. The rows are all new, or each
        has been computed and gets as many ids as the others. What is not among `rows` is gone afterwards."""
        if rows[0].number is None:
            new_BT, new_mask_BT = self._start(ids)
        else:
            self._select([row.number for row in rows])
            new_BT = torch.tensor(ids, device=self._model.device)
            new_mask_BT = torch.ones_like(new_BT)
        for number, row in enumerate(rows):
            row.number = number
        self._ids_BT = torch.cat([self._ids_BT, new_BT], 1)
        self._mask_BT = torch.cat([self._mask_BT, new_mask_BT], 1)
        return self._forward(new_BT if self._caches else self._ids_BT)

    def _start(self, ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        device, longest = self._model.device, max(map(len, ids))
        self._padded = min(map(len, ids)) < longest
        self._cache = DynamicCache(config=self._model.config) if self._caches else None
        self._ids_BT = self._mask_BT = torch.empty(len(ids), 0, dtype=torch.long, device=device)
        padded = [[0] * (longest - len(row)) + row for row in ids]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
        return torch.tensor(padded, device=device), torch.tensor(mask, device=device)

    def _select(self, numbers: list[int]) -> None:
        """Keeps these sequences, in this order; one may be there several times."""
        if numbers == [*range(len(self._ids_BT))]:
            return
        rows = torch.tensor(numbers)  # on the CPU, as layers may be on several devices
        self._ids_BT, self._mask_BT = self._ids_BT[rows], self._mask_BT[rows]
        if self._cache is not None:
            self._cache.reorder_cache(rows)

    def _forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        more: dict[str, object] = {"use_cache": self._caches}
        if self._cache is not None:
            more["past_key_values" if "past_key_values" in self._accepted else "cache_params"] = self._cache
        if self._padded:
            more["attention_mask"] = self._mask_BT
            if "position_ids" in self._accepted:
                more["position_ids"] = (self._mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        if "logits_to_keep" in self._accepted:
            more["logits_to_keep"] = 1
        return self._model(input_ids=ids_BT, **more).logits[:, -1]


class StatesRow:
    """See loaded_model.KV: a sequence of a batch. It cannot be cut: `head` copies all of it."""

    def __init__(self, states: States, number: int | None):
        self.states, self.number = states, number

    @property
    def nbytes(self) -> int:
        return self.states.bytes_per_row

    def head(self, tokens: int) -> "StatesRow":
        return self.states.copy(self)

    def free(self) -> None:
        self.states.remove()
