"""Answers held to a JSON Schema or a grammar, by llguidance, which is an extra."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from tunesmith.answer_formats.streaming import SPACES
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import first_line
from tunesmith.inference.gguf_tokenizer import GgufTokenizer
from tunesmith.inference.interface import Form, Refused

UNESCAPED_SLASH = re.compile(r"\\.|/", re.DOTALL)


class Grammar:
    """Which tokens may come next, by llguidance's matcher."""

    def __init__(self, matcher, vocab_size: int):
        self._matcher, self._size = matcher, vocab_size

    def allowed(self) -> torch.Tensor:
        """Boolean [V]; in the end only the tokens that end an answer."""
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return torch.from_numpy(np.unpackbits(words, bitorder="little")[: self._size].astype(bool))

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar cannot continue: {first_line(self._matcher.get_error())}")


@dataclass(frozen=True)
class Grammars:
    """See interface.Constraints."""

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


def from_lark(tokenizer: Tokenizer, stop_ids: frozenset[int], lark: str, what: str = "JSON Schema") -> Grammars:
    """Constraints to a grammar in Lark's notation, made from `what`. Raises Refused."""
    library = _library()
    return _grammars(library, tokenizer, stop_ids, library.LLMatcher.grammar_from_lark(lark), lark, what)


def from_form(tokenizer: Tokenizer, stop_ids: frozenset[int], form: Form) -> Grammars:
    """Constraints to what a request asks for. Raises Refused."""
    if form.kind == "json":
        return from_schema(tokenizer, stop_ids, form.value)
    if form.kind == "choice":
        lark = f"start: {' | '.join(map(json.dumps, form.value))}"
    elif form.kind == "regex":
        lark = f"start: TEXT\nTEXT: /{UNESCAPED_SLASH.sub(_escaped, form.value)}/"
    else:
        lark = _lark(form.value)
    return from_lark(tokenizer, stop_ids, lark, form.kind)


def _escaped(slash: re.Match) -> str:
    return slash[0] if len(slash[0]) > 1 else r"\/"


def _lark(text: str) -> str:
    """A grammar in GBNF, or already in Lark's notation, in the latter. Raises Refused."""
    _library()
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as error:  # whatever its reader meets
        raise Refused(f"the grammar cannot be used: {first_line(error)}", code="invalid_grammar") from None


def _grammars(
    library, tokenizer: Tokenizer, stop_ids: frozenset[int], grammar: str, lark: str, what: str = "JSON Schema"
) -> Grammars:
    first = library.LLMatcher(_vocabulary(tokenizer, stop_ids), grammar, log_level=0)
    if first.is_error():
        code = f"invalid_{what.lower().replace(' ', '_')}"
        raise Refused(f"the {what} cannot be used: {first_line(first.get_error())}", code=code)
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
        raise Refused(
            "answers in JSON and required tool calls need llguidance on the server: pip install 'tunesmith[serve]'",
            code="not_installed",
        ) from None
    return llguidance
