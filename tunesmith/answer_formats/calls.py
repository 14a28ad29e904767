"""The parts that tool-call markups (markups/) share: their protocol, and the probe, a call that a template is made to
write."""

import json
import re
from typing import Any, Protocol

from tunesmith.answer_formats.streaming import SPACES
from tunesmith.data.tokenizer import Tokenizer

PROBE, OTHER = "tunesmith_probe", "tunesmith_other"
PROBE_ID = "tunesmit1"
TEXT, COUNT = "a b", 5
FIRST, SECOND = "probed", "probing"  # in the order of the alphabet, as some templates sort them
ARGUMENTS = {FIRST: TEXT, SECOND: COUNT}
PARAMETERS = {
    "type": "object",
    "required": [FIRST],
    "properties": {
        FIRST: {"type": "string", "description": "A text."},
        SECOND: {"type": "integer", "description": "A number."},
    },
}
PROBE_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "A probe.", "parameters": PARAMETERS}}
    for name in (PROBE, OTHER)
]
NAME = r"[^\s<>\"'\[\](){}=|,]+?"  # a tool's, up to what the template writes after it
DECODER = json.JSONDecoder(strict=False)  # models write newlines into strings as they are

Found = tuple[list[tuple[str, str]], int]


class CallForm(Protocol):
    """How a call is written between its marks. `tools`, where it is a dictionary: the parameters' schemas by name."""

    last: str
    """Characters; one of them ends a call."""

    def read(self, text: str, tools: dict[str, dict]) -> Found | None:
        """(calls, where they end) at the beginning of the text; no calls if it begins with none, None if the text is
        not complete."""
        ...

    def may_begin(self, text: str, tools: dict[str, dict]) -> bool:
        """Whether text that stands alone may be the beginning of a call."""
        ...

    def rules(self, tokenizer: Tokenizer, tools: list[dict], parallel: bool) -> str:
        """The rule `call`, and the rules that it needs, in Lark's notation."""
        ...


def probe_call(name: str, as_text: bool) -> dict:
    arguments = json.dumps(ARGUMENTS) if as_text else ARGUMENTS
    return {"id": PROBE_ID, "type": "function", "function": {"name": name, "arguments": arguments}}


def object_text(value: Any) -> str | None:
    """Arguments as the text of a JSON object, None if they are none. They may be such text, or missing."""
    if isinstance(value, str):
        try:
            value = json.loads(value, strict=False) if value.strip() else None
        except ValueError:
            return None
    try:
        return (
            json.dumps({} if value is None else value, ensure_ascii=False, allow_nan=False)
            if isinstance(value, dict | None)
            else None
        )
    except ValueError:  # NaN and infinity are no JSON
        return None


def flexible(text: str) -> str:
    """Returns a pattern for a template's text that matches it with any whitespace, ids and numbers."""
    pieces = re.split(rf"(\s+|{PROBE_ID}|\d+)", text)
    return "".join(
        r"\s*"
        if piece.isspace()
        else r"\d+"
        if piece.isdigit()
        else r"[\w-]*"
        if piece == PROBE_ID
        else re.escape(piece)
        for piece in pieces
        if piece
    )


def written(tokenizer: Tokenizer, text: str) -> list[str]:
    """Text in Lark's notation; added tokens as their ids, since a model writes them as such, and ids and numbers of
    the probe's as what they may be."""
    added = tokenizer.added_ids
    marks = "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True))
    pieces = re.split(f"({marks})", text) if marks else [text]
    found = []
    for piece in filter(None, pieces):
        if piece in added:
            found.append(f"<[{added[piece]}]>")
        else:
            found += [
                r"/[A-Za-z0-9]{9}/" if part == PROBE_ID else json.dumps(part)
                for part in re.split(f"({PROBE_ID})", piece)
                if part
            ]
    return found


def json_rule(schema: dict) -> str:
    """A rule for values that keep to a JSON Schema, in Lark's notation."""
    return f"%json {json.dumps(schema | {'x-guidance': SPACES})}"


def parameters_of(tool: dict) -> dict:
    """The schema of a tool's arguments."""
    return tool["function"].get("parameters") or {"type": "object"}


def any_of_rules(count: int) -> str:
    """`call` as one of the rules call0, call1, …"""
    return f"call: {' | '.join(f'call{n}' for n in range(count))}"


def in_order(rules: list[tuple[str, bool]], comma: str) -> str:
    """Rules, each with whether it is needed, in their order with commas between."""
    ways = []
    for first, (rule, needed) in enumerate(rules):
        later = [f"{comma} {name}" if must else f"({comma} {name})?" for name, must in rules[first + 1 :]]
        ways.append(" ".join([rule, *later]))
        if needed:
            return f"({' | '.join(ways)})"
    return f"({' | '.join(ways)})?" if ways else ""
