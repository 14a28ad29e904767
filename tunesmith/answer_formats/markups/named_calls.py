"""Calls as a name and then arguments in JSON: `[TOOL_CALLS]NAME[ARGS]{…}` (Mistral), `NAME<|sep|>{…}` (DeepSeek)."""

import re
from dataclasses import dataclass
from functools import cached_property

from tunesmith.answer_formats.calls import (
    ARGUMENTS,
    DECODER,
    NAME,
    Found,
    any_of_rules,
    flexible,
    json_rule,
    object_text,
    parameters_of,
    written,
)
from tunesmith.data.tokenizer import Tokenizer

FURTHEST = 80  # from a name to its arguments


@dataclass(frozen=True)
class NamedCalls:
    """`between` is the text between the name and the arguments."""

    between: str

    last = '}"'

    @cached_property
    def _head(self) -> re.Pattern:
        return re.compile(rf"({NAME}){flexible(self.between)}\s*(?=[{{\"\[]|null)")

    def read(self, text: str, tools: dict[str, dict]) -> Found | None:
        head = self._head.match(text)
        try:
            value, end = DECODER.raw_decode(text, head.end()) if head else (None, 0)
        except ValueError:
            return None
        if head is None:
            return None
        arguments = object_text(value)
        return ([] if arguments is None else [(head[1], arguments)]), end

    def may_begin(self, text: str, tools: dict[str, dict]) -> bool:
        return any(name.startswith(text) or text.startswith(name) for name in tools)

    def rules(self, tokenizer: Tokenizer, tools: list[dict], parallel: bool) -> str:
        rules = [any_of_rules(len(tools))]
        for n, tool in enumerate(tools):
            head = " ".join(written(tokenizer, tool["function"]["name"] + self.between))
            rules += [f"call{n}: {head} arguments{n}", f"arguments{n}: {json_rule(parameters_of(tool))}"]
        return "\n".join(rules)


def find(turn: str, name: str) -> tuple[int, int, NamedCalls] | None:
    start = turn.find(name)
    after = start + len(name)
    at = turn.find("{", after, after + FURTHEST) if start >= 0 else -1
    try:
        value, end = DECODER.raw_decode(turn, at) if at >= 0 else (None, 0)
    except ValueError:
        return None
    return (start, end, NamedCalls(turn[after:at])) if value == ARGUMENTS else None
