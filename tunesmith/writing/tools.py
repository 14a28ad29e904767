"""Tool calls: how a model's template writes them, found by letting it write one, and read out of its answers.

A call stands behind a mark and before another. It is JSON with a name and arguments, alone or in a list, or tags:

| who | mark | call | mark |
|---|---|---|---|
| Qwen, Hermes | `<tool_call>` | {…} | `</tool_call>` |
| Mistral | `[TOOL_CALLS]` | [{…}] | |
| Llama 3 | | {…} | |
| Qwen3-Coder | `<tool_call>` | <function=…>…</function> (tags.py) | `</tool_call>` |
"""

import json
import re
import secrets
from dataclasses import dataclass, field
from os.path import commonprefix

from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.writing import tags
from tunesmith.writing.marks import SPACES, ByState, tail_of

PROBE = "tunesmith_probe"
ARGUMENTS = {"probe": "a b"}
PROBE_TOOLS = [{"type": "function", "function": {
    "name": PROBE, "description": "A probe.",
    "parameters": {"type": "object", "properties": {"probe": {"type": "string"}}, "required": ["probe"]}}}]
PROBE_TALK = [{"role": "user", "content": "Call it."},
              {"role": "assistant", "content": "", "tool_calls": [
                  {"id": "tunesmit1", "type": "function", "function": {"name": PROBE, "arguments": ARGUMENTS}}]}]
JSON = json.JSONDecoder()


@dataclass(frozen=True)
class ToolFormat:
    """`opening` and `closing` are the marks before and after a call, whitespace included; `shown` the opening's
    special token, if it is one. `tags` says whether a call is tags; of JSON, `many` says whether it is a list, and
    `arguments` is the key under which arguments stand."""

    opening: str
    closing: str
    shown: frozenset[int] = frozenset()
    tags: bool = False
    many: bool = False
    arguments: str = "arguments"


@dataclass(frozen=True)
class Call:
    """A tool call as the model made it; `arguments` is JSON text. The id has nine characters, as Mistral demands."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: secrets.token_hex(5)[:9])


def find_format(tokenizer: Tokenizer) -> ToolFormat | None:
    """How the template writes a call, or None where it writes none, or none in these forms."""
    try:
        text = tokenizer.render(PROBE_TALK, PROBE_TOOLS)
        prompt = tokenizer.render(PROBE_TALK[:1], PROBE_TOOLS, add_generation_prompt=True)
        if PROBE not in prompt:
            return None
    except RowProblem:
        return None
    turn = text[len(commonprefix([text, prompt])):]
    for start in (i for i, c in enumerate(turn) if c in "[{"):
        try:
            value, end = JSON.raw_decode(turn, start)
        except ValueError:
            continue
        calls = _calls(value)
        if len(calls) == 1 and calls[0][0] == PROBE:
            one = value[0] if isinstance(value, list) else value
            one = one.get("function", one)
            arguments = next((key for key in ("parameters", "arguments") if isinstance(one, dict) and key in one),
                             "arguments")
            return _format(tokenizer, turn[:start], turn[end:], many=isinstance(value, list), arguments=arguments)
    if (start := turn.find("<function=")) >= 0 and (found := tags.read(turn[start:], {})) and found[0][0][0] == PROBE:
        return _format(tokenizer, turn[:start], turn[start + found[1]:], tags=True)
    return None


def _format(tokenizer: Tokenizer, before: str, after: str, **facts) -> ToolFormat:
    """What the template writes around a call as its marks."""
    mark = (before.split() or [""])[-1]
    opening = before[before.rfind(mark):] if mark else ""
    ends = [at for token in tokenizer.special_tokens if (at := after.find(token)) >= 0]
    closing = after[:min(ends, default=len(after))]
    special = {tokenizer.encode(mark)[0][0]} if mark in tokenizer.special_tokens else set()
    return ToolFormat(opening, closing if closing.strip() else "", frozenset(special), **facts)


def _calls(value) -> list[tuple[str, str]]:
    """(name, arguments as JSON text) of each call in a JSON value; none if it is something else."""
    found = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict) and isinstance(one.get("function"), dict):
            one = one["function"]
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            return []
        arguments = one.get("arguments", one.get("parameters", {}))
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        found.append((one["name"], text))
    return found


class ToolReader(ByState):
    """Give it an answer's text as it comes; it gives back text (str) and calls (Call), in order. `tools`: their
    parameters' schemas by name."""

    def __init__(self, format: ToolFormat, tools: dict[str, dict]):
        self._format, self._tools = format, tools
        self._mark, self._close = format.opening.strip(), format.closing.strip()
        self._text = ""
        self._state = "text" if self._mark else "bare"
        self._called = False

    def finish(self) -> list[str | Call]:
        """The rest. What began like a call and is none is text."""
        if self._state == "bare" and (calls := self._bare_calls()):
            return calls
        rest = (self._mark if self._state == "call" else "") + self._text
        self._text = ""
        return [rest] if rest and not (self._called and (self._state == "after" or not rest.strip())) else []

    def _in_text(self, said: list) -> bool:
        at = self._text.find(self._mark)
        end = at if at >= 0 else len(self._text) - tail_of(self._text, self._mark)
        text = self._text[:end]
        if at < 0:  # whitespace may belong to a call that comes
            end = len(text.rstrip())
        if text.strip():
            said.append(self._text[:end] if at < 0 else text.rstrip())
            self._text = self._text[end:]
            at -= end
        if at >= 0:
            self._text, self._state = self._text[at + len(self._mark):], "call"
        return at >= 0

    def _in_call(self, said: list) -> bool:
        text = self._text.lstrip()
        found = tags.read(text, self._tools) if self._format.tags else self._read_json(text)
        if found is None:
            return False
        calls, end = found
        said += [Call(name, arguments) for name, arguments in calls] or [self._mark + text[:end]]
        self._called |= bool(calls)
        self._text, self._state = text[end:], "after"
        return True

    def _read_json(self, text: str) -> tuple[list[tuple[str, str]], int] | None:
        """(calls, where they end); None if the JSON is not complete."""
        if not text.endswith(("}", "]")) and self._close not in text:
            return None
        try:
            value, end = JSON.raw_decode(text)
        except ValueError:
            return None
        return _calls(value), end

    def _in_after(self, said: list) -> bool:
        text = self._text.lstrip()
        if text.startswith(self._close):
            text = text[len(self._close):].lstrip()
        elif self._close.startswith(text):
            return False
        self._text, self._state = text, "text"
        return bool(text)

    def _in_bare(self, said: list) -> bool:
        text = self._text.lstrip()
        if not text or text[0] in "{[":
            return False
        said.append(self._text)
        self._text = ""
        return False

    def _bare_calls(self) -> list[Call]:
        """The calls that all of the text is, by the names of tools that were given."""
        text, found = self._text.strip(), []
        while text:
            try:
                value, end = JSON.raw_decode(text)
            except ValueError:
                return []
            calls = _calls(value)
            if not calls or any(name not in self._tools for name, _ in calls):
                return []
            found += [Call(name, arguments) for name, arguments in calls]
            text = text[end:].lstrip(" \n;")
        return found


def tool_grammar(tokenizer: Tokenizer, format: ToolFormat, tools: list[dict], parallel: bool) -> str:
    """A Lark grammar of answers that are calls of these tools and nothing else."""
    parts = [*written(tokenizer, format.opening), "call", *written(tokenizer, format.closing)]
    call = tags.call_rules(tools) if format.tags else f"call: {json_rule(_call_schema(format, tools, parallel))}"
    return f"start: {' '.join(parts)}\n{call}\n"


def _call_schema(format: ToolFormat, tools: list[dict], parallel: bool) -> dict:
    schemas = []
    for tool in tools:
        function = tool["function"]
        schemas.append({"type": "object", "additionalProperties": False, "required": ["name", format.arguments],
                        "properties": {"name": {"const": function["name"]},
                                       format.arguments: function.get("parameters") or {"type": "object"}}})
    call = {"anyOf": schemas}
    if format.many:
        call = {"type": "array", "items": call, "minItems": 1, **({} if parallel else {"maxItems": 1})}
    return call


def json_rule(schema: dict) -> str:
    """What keeps to a JSON Schema, in Lark's notation."""
    return f"%json {json.dumps(schema | {'x-guidance': SPACES})}"


def written(tokenizer: Tokenizer, text: str) -> list[str]:
    """Text in Lark's notation; added tokens as their ids, since a model writes them as such."""
    added = tokenizer.added_ids
    marks = "|".join(re.escape(token) for token in sorted(added, key=len, reverse=True))
    pieces = re.split(f"({marks})", text) if marks else [text]
    return [f"<[{added[piece]}]>" if piece in added else json.dumps(piece) for piece in pieces if piece]
