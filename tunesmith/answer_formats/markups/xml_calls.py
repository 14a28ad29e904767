"""Calls as a name and then arguments in tags: <function=NAME> <parameter=KEY> VALUE </parameter> </function>.

A string stands there as it is, anything else as JSON, so that the tool's schema decides which of both a value is,
unless the template says it beside the key.
"""

import ast
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from tunesmith.answer_formats.calls import (
    COUNT,
    FIRST,
    NAME,
    SECOND,
    TEXT,
    Found,
    any_of_rules,
    flexible,
    parameters_of,
    written,
)
from tunesmith.answer_formats.schemas import KINDS, choices, embedded, kinds, properties, required
from tunesmith.answer_formats.streaming import MARK, common_end
from tunesmith.data.tokenizer import Tokenizer

PYTHON = {"True": "true", "False": "false", "None": "null"}  # how some templates write them
KEY = r"[^\s<>\"]+"


@dataclass(frozen=True)
class Tags:
    """The texts that the template writes after the `name`, before a key (`opening`), between key and value (`text`
    before a string, `other` before anything else), after a value (`closing`), and the mark after the last (`end`)."""

    name: str
    opening: str
    text: str
    other: str
    closing: str
    end: str

    def read(self, text: str, tools: dict[str, dict]) -> Found | None:
        head = self._head.match(text)
        if head is None:
            return None
        schema = tools.get(head[1])
        found, at, values = properties(schema, schema), head.end(), {}
        while (opening := self._opening.match(text, at)) is not None:
            closing = self._closing.search(text, opening.end())
            if closing is None:
                return None
            key, said = opening[1], text[opening.end() : closing.start()]
            as_text = self.text != self.other and re.fullmatch(flexible(self.text), opening[2].rstrip("\n")) is not None
            values[key] = json.dumps(said, ensure_ascii=False) if as_text else _json(said, found.get(key), schema)
            at = closing.end()
        rest = text[at:].lstrip()
        if not rest.startswith(self.end) or self.opening.lstrip().startswith(rest):
            return None
        arguments = ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in values.items())
        return [(head[1], f"{{{arguments}}}")], at

    def may_begin(self, text: str, tools: dict[str, dict]) -> bool:
        return any(name.startswith(text) or text.startswith(name) for name in tools)

    def rules(self, tokenizer: Tokenizer, tools: list[dict], parallel: bool) -> str:
        """Strings keep to the `enum` and `const` of their schema, and to no other keyword."""
        rules = [any_of_rules(len(tools)), self._any_text(tokenizer)]
        for n, tool in enumerate(tools):
            schema = parameters_of(tool)
            names: list[Any] = []
            needed = required(schema, schema)
            for key, inner in properties(schema, schema).items():
                value, is_text = self._value(tokenizer, inner, schema)
                opening = written(tokenizer, self.opening + key + (self.text if is_text else self.other))
                names.append(f"value{n}_{len(names)}" + ("" if key in needed else "?"))
                rules.append(f"{names[-1].rstrip('?')}: {' '.join(opening)} {value}")
            head = written(tokenizer, tool["function"]["name"] + self.name)
            rules.append(f"call{n}: {' '.join([*head, *names])}")
        return "\n".join(rules)

    @property
    def last(self) -> str:
        return self.end[-1]

    @cached_property
    def _head(self) -> re.Pattern:
        follows = f"(?={flexible(self.opening)}|{flexible(self.end)})"
        return re.compile(rf"({NAME}){flexible(self.name)}\s*{follows}")

    @cached_property
    def _opening(self) -> re.Pattern:
        """A pattern for a key and the text before its value. It drops only the whitespace that the template writes."""
        between = flexible(self.text.rstrip())
        if self.text != self.other:
            between = rf"{between}|{flexible(self.other.rstrip())}|{_attributes(self.text, self.other)}"
        return re.compile(rf"\s*{flexible(self.opening.lstrip())}({KEY})({between}){_newline(self.text, -1)}")

    @cached_property
    def _closing(self) -> re.Pattern:
        follows = rf"(?=\s*(?:{flexible(self.opening.lstrip())}|{re.escape(self.end)}))"
        return re.compile(rf"{_newline(self.closing, 0)}{flexible(self.closing.strip())}{follows}")

    def _value(self, tokenizer: Tokenizer, schema: Any, root: dict) -> tuple[str, bool]:
        """The rule of a value and what closes it, and whether that is a string."""
        texts, allowed = choices(schema, root), kinds(schema, root)
        closing = " ".join(written(tokenizer, self.closing))
        if texts and all(isinstance(text, str) for text in texts):
            return f"({' | '.join(map(json.dumps, texts))}) {closing}", True
        if "string" in allowed:
            return "any_text", True
        return f"%json {json.dumps(embedded(schema, root))} {closing}", False

    def _any_text(self, tokenizer: Tokenizer) -> str:
        """The rule of any text and what closes it. Text ends by itself before a token of its own."""
        pieces = written(tokenizer, self.closing.lstrip())
        at = next((i for i, piece in enumerate(pieces) if piece.startswith("<[")), len(pieces))
        if at == 0:
            return rf"any_text: /(.|\n)*/ {' '.join(pieces)}"
        lazy = "[lazy]" if at == len(pieces) else ""  # a token of its own ends the text before it
        before = self.closing[: len(self.closing) - len(self.closing.lstrip())] + "".join(map(json.loads, pieces[:at]))
        return "\n".join([f"any_text: until {' '.join(pieces[at:])}", rf"until{lazy}: /(.|\n)*{_regex(before)}/"])


def find(turn: str, name: str) -> tuple[int, int, Tags] | None:
    pattern = rf"{re.escape(name)}((?:(?!{re.escape(name)}).)*?){FIRST}(.*?){TEXT}(.*?){SECOND}(.*?){COUNT}"
    if (found := re.search(pattern, turn, re.DOTALL)) is None:
        return None
    head, text, between, other = found.groups()
    opening = common_end(head, between)
    closing = between.removesuffix(opening)
    rest = turn[found.end() :]
    if not (opening.strip() and text.strip() and closing.strip()) or not rest.startswith(closing):
        return None
    end = MARK.match(rest[len(closing) :].lstrip())
    if end is None or len(text) > len(opening) + 80:
        return None
    form = Tags(head.removesuffix(opening), opening, text, other, closing, end[0])
    return found.start(), found.end() + len(closing), form


def _regex(text: str) -> str:
    """Text within a regular expression in Lark's notation."""
    return re.escape(text).replace("/", r"\/").replace("\\\n", r"\n").replace(r"\ ", " ")


def _newline(text: str, at: int) -> str:
    return r"\n?" if text[at].isspace() else ""


def _attributes(first: str, second: str) -> str:
    """A pattern for what two texts of the same beginning and end have between: an attribute's value."""
    before = next(i for i in range(len(first)) if first[: i + 1] != second[: i + 1])
    after = next(i for i in range(len(first)) if first[len(first) - i - 1 :] != second[len(second) - i - 1 :])
    return rf"{flexible(first[:before])}\w*{flexible(first[len(first) - after :].rstrip())}"


def _json(text: str, schema: Any, root: Any) -> str:
    """A value as JSON text: what is JSON of a type that the schema allows, else the string that it is."""
    value = PYTHON.get(text, text)
    try:
        parsed = json.loads(value, parse_constant=_refuse, strict=False)
        json.dumps(parsed, allow_nan=False)  # a number may be too large for one
    except ValueError:
        parsed = _literal(text)
    allowed = KINDS[type(parsed)] & kinds(schema, root)
    return json.dumps(text if isinstance(parsed, str) or not allowed else parsed, ensure_ascii=False)


def _literal(text: str) -> Any:
    """The value of a list or an object in Python's notation, as some templates write it; other text stays as it is."""
    try:
        value = ast.literal_eval(text) if text[:1] in ("[", "{") else text
        json.dumps(value, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return text
    return value if isinstance(value, list | dict) else text


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
