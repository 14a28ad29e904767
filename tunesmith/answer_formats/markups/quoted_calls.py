"""Calls as NAME{key:value}, with marks of their own around strings: `call:NAME{key:<|"|>text<|"|>}` (Gemma 4)."""

import json
import re
from dataclasses import dataclass
from typing import Any

from tunesmith.answer_formats.calls import (
    COUNT,
    FIRST,
    NAME,
    SECOND,
    TEXT,
    Found,
    any_of_rules,
    in_order,
    object_text,
    parameters_of,
    written,
)
from tunesmith.answer_formats.schemas import choices, kinds, properties, required
from tunesmith.data.tokenizer import Tokenizer

COMMA = '","'
HEAD = re.compile(rf"({NAME})\s*(?={{)")
KEY = re.compile(r"\s*([^\s:{},\[\]]+)\s*:\s*")
NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
IN_NUMBERS = "0123456789+-.eE"
WORDS = {"true": True, "false": False, "null": None, "None": None, "True": True, "False": False}


class _Incomplete(Exception):
    """The text ends within a value."""


class _Malformed(Exception):
    """The text continues in no way that a value may."""


@dataclass(frozen=True)
class QuotedCalls:
    """`quote` is the mark before and after a string."""

    quote: str

    last = "}"

    def read(self, text: str, tools: dict[str, dict]) -> Found | None:
        head = HEAD.match(text)
        if head is None:
            return None
        try:
            value, end = self._value(text, head.end())
        except _Incomplete:
            return None
        except _Malformed:
            return [], head.end()
        arguments = object_text(value)
        return ([] if arguments is None else [(head[1], arguments)]), end

    def may_begin(self, text: str, tools: dict[str, dict]) -> bool:
        return any(name.startswith(text) or text.startswith(name) for name in tools)

    def rules(self, tokenizer: Tokenizer, tools: list[dict], parallel: bool) -> str:
        """At the top they keep to the schema's keys and types, and to `enum` and `const` of strings; objects and lists
        hold any values."""
        quote = " ".join(written(tokenizer, self.quote))
        text = rf"{quote} /(.|\n)*/ {quote}" if quote.startswith("<[") else rf"{quote} /[^<]*/ {quote}"
        rules = [
            any_of_rules(len(tools)),
            f"any_text: {text}",
            'boolean: "true" | "false"',
            'null: "null"',
            r"integer: /-?(0|[1-9][0-9]*)/",
            r"number: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/",
            'array: "[" (any_value ("," any_value)*)? "]"',
            r'object: "{" (pair ("," pair)*)? "}"',
            r'pair: /[A-Za-z_][A-Za-z0-9_-]*/ ":" any_value',
            "any_value: any_text | boolean | null | number | array | object",
        ]
        for n, tool in enumerate(tools):
            schema = parameters_of(tool)
            found: list[tuple[str, bool]] = []
            needed = required(schema, schema)
            for key, inner in sorted(properties(schema, schema).items()):
                found.append((f"value{n}_{len(found)}", key in needed))
                rules.append(f"{found[-1][0]}: {json.dumps(f'{key}:')} {self._rule(inner, schema, quote)}")
            head = " ".join(written(tokenizer, tool["function"]["name"] + "{"))
            rules.append(f'call{n}: {head} {in_order(found, COMMA)} "}}"')
        return "\n".join(rules)

    def _rule(self, schema: Any, root: dict, quote: str) -> str:
        if (texts := choices(schema, root)) and all(isinstance(text, str) for text in texts):
            return f"({' | '.join(f'{quote} {json.dumps(text)} {quote}' for text in texts)})"
        names = {"string": "any_text"}
        return f"({' | '.join(sorted(names.get(kind, kind) for kind in kinds(schema, root)))})"

    def _value(self, text: str, at: int) -> tuple[Any, int]:
        """(value, where it ends). Raises _Incomplete and _Malformed."""
        if text.startswith(self.quote, at):
            start = at + len(self.quote)
            end = text.find(self.quote, start)
            if end < 0:
                raise _Incomplete
            return text[start:end], end + len(self.quote)
        if self.quote.startswith(text[at:]):
            raise _Incomplete
        if text[at] in "{[":
            return self._items(text, at)
        word = next((word for word in WORDS if text.startswith(word, at)), None)
        if word is not None:
            return WORDS[word], at + len(word)
        number = NUMBER.match(text, at)
        if not text[at:].strip(IN_NUMBERS) or any(word.startswith(text[at:]) for word in WORDS):
            raise _Incomplete
        if number is None:
            raise _Malformed
        return json.loads(number[0]), number.end()

    def _items(self, text: str, at: int) -> tuple[dict | list, int]:
        """The parts of an object or a list, and where they end."""
        closing = {"{": "}", "[": "]"}[text[at]]
        found: Any = {} if closing == "}" else []
        at = _skip(text, at + 1)
        while text[at] != closing:
            key = None
            if closing == "}":
                key = KEY.match(text, at)
                if key is None:
                    raise _Incomplete if ":" not in text[at:] else _Malformed
                at = _skip(text, key.end())
            value, at = self._value(text, at)
            found.update({key[1]: value}) if key else found.append(value)
            at = _skip(text, at)
            if text[at] == ",":
                at = _skip(text, at + 1)
            elif text[at] != closing:
                raise _Malformed
        return found, at + 1


def find(turn: str, name: str) -> tuple[int, int, QuotedCalls] | None:
    values = rf"{FIRST}:(?P<quote>\S+?){TEXT}(?P=quote),{SECOND}:{COUNT}"
    found = re.search(rf"{re.escape(name)}{{{values}}}", turn)
    return (found.start(), found.end(), QuotedCalls(found["quote"])) if found else None


def _skip(text: str, at: int) -> int:
    """The next place that is no whitespace. Raises _Incomplete."""
    while at < len(text) and text[at].isspace():
        at += 1
    if at == len(text):
        raise _Incomplete
    return at
