"""Calls in JSON with a name and arguments, alone or in a list: {"name": …, "arguments": {…}}."""

from dataclasses import dataclass
from typing import Any

from tunesmith.answer_formats.calls import ARGUMENTS, DECODER, PROBE_ID, Found, json_rule, object_text, parameters_of
from tunesmith.answer_formats.schemas import placed
from tunesmith.data.tokenizer import Tokenizer

NAMES, CONTENTS = ("name", "tool_name"), ("arguments", "parameters")
IDENTIFIER = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$"}


@dataclass(frozen=True)
class JsonCalls:
    """`shape` is the JSON that the template writes for the probe's call of `name`; `many` says whether it is a list."""

    name: str
    shape: Any
    many: bool

    last = "}]"

    def read(self, text: str, tools: dict[str, dict]) -> Found | None:
        try:
            value, end = DECODER.raw_decode(text)
        except ValueError:
            return None
        calls = [self._call(one, tools) for one in (value if isinstance(value, list) else [value])]
        return ([] if None in calls else calls), end

    def may_begin(self, text: str, tools: dict[str, dict]) -> bool:
        return text[0] in "{["

    def rules(self, tokenizer: Tokenizer, tools: list[dict], parallel: bool) -> str:
        schema: dict = {"anyOf": [self._schema(self.shape, tool, f"#/$defs/{n}") for n, tool in enumerate(tools)]}
        if self.many:
            schema = {"type": "array", "items": schema, "minItems": 1, **({} if parallel else {"maxItems": 1})}
        definitions = {str(n): placed(parameters_of(tool), f"#/$defs/{n}") for n, tool in enumerate(tools)}
        return f"call: {json_rule({**schema, '$defs': definitions})}"

    def _call(self, one: Any, tools: dict[str, dict]) -> tuple[str, str] | None:
        """(name, arguments) of a call, None if it is none."""
        if not isinstance(one, dict):
            return None
        if isinstance(one.get("function"), dict):
            one = one["function"]
        if len(one) == 1 and isinstance(self.shape, dict) and self.name in self.shape and next(iter(one)) in tools:
            name, arguments = next(iter(one.items()))  # {NAME: {…}}
        else:
            name = next((one[key] for key in NAMES if isinstance(one.get(key), str)), None)
            arguments = next((one[key] for key in CONTENTS if key in one), None)
        text = object_text(arguments)
        return None if name is None or text is None else (name, text)

    def _schema(self, value: Any, tool: dict, parameters: str) -> dict:
        """The shape as a schema for calls of a tool, whose parameters' schema stands at the pointer `parameters`."""
        if value == ARGUMENTS or object_text(value) == object_text(ARGUMENTS):
            return {"$ref": parameters}
        if isinstance(value, dict):
            inner = {
                tool["function"]["name"] if key == self.name else key: self._schema(item, tool, parameters)
                for key, item in value.items()
            }
            return {"type": "object", "properties": inner, "required": list(inner), "additionalProperties": False}
        if value == self.name:
            return {"const": tool["function"]["name"]}
        return IDENTIFIER if value == PROBE_ID or str(value).isdigit() else {"const": value}


def find(turn: str, name: str) -> tuple[int, int, JsonCalls] | None:
    for start in (i for i, c in enumerate(turn) if c in "[{"):
        try:
            value, end = DECODER.raw_decode(turn, start)
        except ValueError:
            continue
        for one in value if isinstance(value, list) else [value]:
            form = JsonCalls(name, one, isinstance(value, list))
            if (found := form._call(one, {name: {}})) and found[0] == name:
                return start, end, form
    return None
