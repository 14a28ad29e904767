"""Answers held to a JSON Schema or a grammar, by llguidance, which is an extra."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import first_line
from tunesmith.serve.engine import Refused
from tunesmith.serve.engines.gguf_tokenizer import GgufTokenizer
from tunesmith.writing.marks import SPACES

ANY_OBJECT = {"type": "object"}


class Grammar:
    """Which tokens may come next, by llguidance's matcher."""

    def __init__(self, matcher, vocab_size: int):
        self._matcher, self._size = matcher, vocab_size

    def allowed(self) -> torch.Tensor:
        """Boolean [V]; in the end only the tokens that end an answer."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return torch.from_numpy(np.unpackbits(words, bitorder="little")[:self._size].astype(bool))

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar cannot go on: {first_line(self._matcher.get_error())}")


@dataclass(frozen=True)
class Grammars:
    """See engine.Constraints."""

    lark: str
    _first: Any
    _size: int

    def __call__(self) -> Grammar:
        return Grammar(self._first.deep_copy(), self._size)


def from_schema(tokenizer: Tokenizer, stop_ids: frozenset[int], schema: dict) -> Grammars:
    """Constraints to what a JSON Schema allows. Raises Refused."""
    library = _library()
    try:
        grammar = library.LLMatcher.grammar_from_json_schema(schema, overrides=SPACES)
    except ValueError as error:
        raise Refused(f"the JSON Schema cannot be used: {error}", code="invalid_json_schema") from None
    lark = f"start: %json {json.dumps({**schema, 'x-guidance': SPACES})}"
    return _grammars(library, tokenizer, stop_ids, grammar, lark)


def from_lark(tokenizer: Tokenizer, stop_ids: frozenset[int], lark: str) -> Grammars:
    """Constraints to a grammar in Lark's notation. Raises Refused."""
    library = _library()
    return _grammars(library, tokenizer, stop_ids, library.LLMatcher.grammar_from_lark(lark), lark)


def _grammars(library, tokenizer: Tokenizer, stop_ids: frozenset[int], grammar: str, lark: str) -> Grammars:
    first = library.LLMatcher(_vocabulary(tokenizer, stop_ids), grammar, log_level=0)
    if first.is_error():
        raise Refused(f"the JSON Schema cannot be used: {first_line(first.get_error())}", code="invalid_json_schema")
    return Grammars(lark, first, tokenizer.vocab_size)


@lru_cache(16)
def _vocabulary(tokenizer: Tokenizer, stop_ids: frozenset[int]):
    library, ends = _library(), sorted(stop_ids)
    if isinstance(tokenizer, GgufTokenizer):
        from llguidance.llamacpp import lltokenizer_from_vocab

        return lltokenizer_from_vocab(tokenizer.model.vocabulary, eos_token=ends)
    return library.LLTokenizer(tokenizer.json, n_vocab=tokenizer.vocab_size, eos_token=ends)


def _library():
    try:
        import llguidance
    except ImportError:
        raise Refused("answers in JSON and required tool calls need llguidance on the server: "
                      "pip install 'tunesmith[serve]'", code="not_installed") from None
    return llguidance
