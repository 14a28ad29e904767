"""Calls as a list in Python: [NAME(key="value", …), …] (LFM2, Llama 4)."""

import ast
import json
import re
from dataclasses import dataclass

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.writing.calls import (
    ARGUMENTS, Found, any_of_rules, in_order, json_rule, object_text, parameters_of, written)
from tunesmith.writing.schemas import choices, embedded, kinds, properties, required

CONSTANTS = {"true": True, "false": False, "null": None}  # as some templates write them
QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", re.DOTALL)


@dataclass(frozen=True)
class PythonCalls:
    """Without settings: every template writes them alike."""

    last = "]"

    @staticmethod
    def find(turn: str, name: str) -> tuple[int, int, "PythonCalls"] | None:
        at = turn.find(f"{name}(")
        start = turn.rfind("[", 0, at) if at >= 0 else -1
        found = PythonCalls().read(turn[start:], {}) if start >= 0 else None
        calls, end = found or ([], 0)
        return (start, start + end, PythonCalls()) if (name, json.dumps(ARGUMENTS)) in calls else None

    def read(self, text: str, tools: dict[str, dict]) -> Found | None:
        if not text.startswith("["):
            return [], 0
        end = _list_end(text)
        if end is None:
            return None
        try:  # a newline in a string stands there as it is
            source = QUOTED.sub(lambda quoted: quoted[0].replace("\n", r"\n"), text[:end])
            elements = ast.parse(source.strip(), mode="eval").body.elts
            return [_call(element) for element in elements], end
        except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError):
            return [], end

    def may_begin(self, text: str, tools: dict[str, dict]) -> bool:
        inner = text[1:].lstrip()
        return text[0] == "[" and any(name.startswith(inner) or inner.startswith(name) for name in tools)

    def rules(self, tokenizer: Tokenizer, tools: list[dict], parallel: bool) -> str:
        """Of what a schema says of strings they keep to `enum` and `const`."""
        more = ' (", " one)*' if parallel else ""
        rules = [f'call: "[" one{more} "]"', any_of_rules(len(tools)).replace("call:", "one:", 1),
                 r"""any_text: /'([^'\\\n]|\\.)*'/ | /"([^"\\\n]|\\.)*"/"""]
        for n, tool in enumerate(tools):
            schema, found = parameters_of(tool), []
            needed = required(schema, schema)
            for key, inner in properties(schema, schema).items():
                found.append((f"value{n}_{len(found)}", key in needed))
                rules.append(f"{found[-1][0]}: {json.dumps(f'{key}=')} {_value(inner, schema)}")
            head = " ".join(written(tokenizer, tool["function"]["name"] + "("))
            rules.append(f"""call{n}: {head} {in_order(found, '", "')} ")\"""")
        return "\n".join(rules)


def _value(schema, root: dict) -> str:
    if (texts := choices(schema, root)) and all(isinstance(text, str) for text in texts):
        return f"({' | '.join(json.dumps(quoted) for text in texts for quoted in {repr(text), json.dumps(text)})})"
    if "string" in kinds(schema, root):
        return "any_text"
    return json_rule(embedded(schema, root)) if isinstance(schema, dict) else json_rule({})


def _list_end(text: str) -> int | None:
    """Where the list that text begins with ends, None if it does not."""
    depth, quote, at = 0, "", 0
    while at < len(text):
        char = text[at]
        if quote:
            at += char == "\\"
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
            if depth == 0:
                return at + 1
        at += 1
    return None


def _call(node) -> tuple[str, str]:
    """Raises ValueError or AttributeError if it is none."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call by keywords")
    arguments = object_text({keyword.arg: _plain(keyword.value) for keyword in node.keywords})
    if arguments is None:
        raise ValueError("no JSON")
    return ast.unparse(node.func), arguments


def _plain(node):
    """The value of a literal."""
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {str(ast.literal_eval(key)): _plain(item) for key, item in zip(node.keys, node.values)}
    return ast.literal_eval(node)
