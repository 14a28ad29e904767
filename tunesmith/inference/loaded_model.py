"""The interface of a copy of a model in memory, whichever code computes it."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch


class KV(Protocol):
    """Keys and values of one sequence."""

    @property
    def nbytes(self) -> int:
        """Memory that they take, in bytes."""

    def head(self, tokens: int) -> "KV":
        """Returns a copy of the first tokens, to continue from. Weights that do not divide copy all tokens."""

    def free(self) -> None:
        """Gives its memory back; it is not used again."""


class Part(NamedTuple):
    """The next tokens `ids` of a sequence whose first `at` tokens are in `kv`; `last`: they reach its end, so the
    logits that follow are needed."""

    kv: KV
    at: int
    ids: list[int]
    last: bool


class Weights(Protocol):
    """One copy of a base model in memory, with any number of adapters on it."""

    context: int | None
    """Most tokens of a sequence that the model was made for, if that is known."""
    bytes_per_token: int
    """Bytes of the keys and values of a token; known once `reserve` was called."""

    divides: bool
    """Whether a prompt may be computed in pieces, and one sequence begin with another's; known likewise."""

    def free_bytes(self) -> int:
        """Memory that is free where keys and values will be."""

    def device_bytes(self, kv_bytes: int) -> dict[str, int | None]:
        """Returns the bytes that the weights, and so many keys and values, take on each device, by its name in
        leases.py; None: unknown."""

    def reserve(self, limit_bytes: int, context: int, sequences: int, step: int) -> tuple[int, str]:
        """Makes ready for at most so many sequences, of `context` tokens each, and `step` new tokens at once; shows
        that sequences computed together are what each is alone. Returns how many tokens' keys and values it will keep
        within `limit_bytes`, and in what it computes, for people. Raises UserError for a model that cannot answer.
        """

    def new_kv(self) -> KV:
        """Returns the empty keys and values of a new sequence."""

    def kv_maker(self, sequences: int, tokens: int) -> Callable[[], KV]:
        """Returns a function like `new_kv` for sequences that grow side by side, which is faster: at most so many at a
        time, of at most so many tokens each, and all computed in one pass."""

    def logits(self, adapter: str | None, parts: list[Part]) -> torch.Tensor:
        """Computes the parts together, and keeps their keys and values. Logits [N, V] that follow each of the N parts
        that are the last of their sequence."""

    def embedding(self, adapter: str | None, ids: list[int]) -> list[float]:
        """Mean of the last hidden states, of length 1."""

    def prompt_logits(self, adapter: str | None, ids: list[int]) -> Iterator[torch.Tensor]:
        """Logits [N, V] that follow each of the ids, in their order, some at a time."""

    def close(self) -> None:
        """Gives its memory back."""
