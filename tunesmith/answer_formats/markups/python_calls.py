"""Calls as a list in Python: [NAME(key="value", …), …] (LFM2, Llama 4)."""

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

from tunesmith.answer_formats.calls import (
    ARGUMENTS,
    Found,
    any_of_rules,
    in_order,
    json_rule,
    object_text,
    parameters_of,
    written,
)
from tunesmith.answer_formats.schemas import choices, embedded, kinds, properties, required
from tunesmith.data.tokenizer import Tokenizer

CONSTANTS = {"true": True, "false": False, "null": None}  # as some templates write them
QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", re.DOTALL)
NAME = re.compile(r"([^\s\[\](){}=,]+)\(")
KEY = re.compile(r"([(,]\s*)([^\s\[\](){}=,:]+)\s*=")


@dataclass(frozen=True)
class PythonCalls:
    """Without settings: every template writes them alike."""

    last = "]"

    def read(self, text: str, tools: dict[str, dict]) -> Found | None:
        if not text.startswith("["):
            return [], 0
        end = _list_end(text)
        if end is None:
            return None
        try:
            return _calls(text[:end]), end
        except (SyntaxError, ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError):
            return [], end

    def write(self, calls: list[tuple[str, dict]]) -> str:
        """The calls, each a name and arguments, as text."""
        texts = [
            f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})" for name, arguments in calls
        ]
        return f"[{', '.join(texts)}]"

    def may_begin(self, text: str, tools: dict[str, dict]) -> bool:
        inner = text[1:].lstrip()
        return text[0] == "[" and any(name.startswith(inner) or inner.startswith(name) for name in tools)

    def rules(self, tokenizer: Tokenizer, tools: list[dict], parallel: bool) -> str:
        """Strings keep to the `enum` and `const` of their schema, and to no other keyword."""
        more = ' (", " one)*' if parallel else ""
        rules = [
            f'call: "[" one{more} "]"',
            any_of_rules(len(tools)).replace("call:", "one:", 1),
            r"""any_text: /'([^'\\\n]|\\.)*'/ | /"([^"\\\n]|\\.)*"/""",
        ]
        for n, tool in enumerate(tools):
            schema = parameters_of(tool)
            found: list[tuple[str, bool]] = []
            needed = required(schema, schema)
            for key, inner in properties(schema, schema).items():
                found.append((f"value{n}_{len(found)}", key in needed))
                rules.append(f"{found[-1][0]}: {json.dumps(f'{key}=')} {_value(inner, schema)}")
            head = " ".join(written(tokenizer, tool["function"]["name"] + "("))
            rules.append(f"""call{n}: {head} {in_order(found, '", "')} ")\"""")
        return "\n".join(rules)


def find(turn: str, name: str) -> tuple[int, int, PythonCalls] | None:
    at = turn.find(f"{name}(")
    start = turn.rfind("[", 0, at) if at >= 0 else -1
    found = PythonCalls().read(turn[start:], {}) if start >= 0 else None
    calls, end = found or ([], 0)
    return (start, start + end, PythonCalls()) if (name, json.dumps(ARGUMENTS)) in calls else None


def _value(schema: Any, root: dict) -> str:
    if (texts := choices(schema, root)) and all(isinstance(text, str) for text in texts):
        return f"({' | '.join(json.dumps(quoted) for text in texts for quoted in (repr(text), json.dumps(text)))})"
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


def _calls(text: str) -> list[tuple[str, str]]:
    """Raises SyntaxError, ValueError or AttributeError if it is no list of calls."""
    names: list[str] = []

    def numbered(name: re.Match) -> str:
        names.append(name[1])
        return f"_{len(names) - 1}("

    pieces = QUOTED.split(text)  # tools and keys may have names that Python's own may not
    pieces[::2] = [KEY.sub(r"\1_\2=", NAME.sub(numbered, piece)) for piece in pieces[::2]]
    pieces[1::2] = [piece.replace("\n", r"\n") for piece in pieces[1::2]]  # a string may contain a newline unescaped
    listed: Any = ast.parse("".join(pieces), mode="eval").body
    return [_call(node, names) for node in listed.elts]


def _call(node: Any, names: list[str]) -> tuple[str, str]:
    if node.args:
        raise ValueError("no call by keywords")
    arguments = object_text({keyword.arg[1:]: _plain(keyword.value) for keyword in node.keywords})
    if arguments is None:
        raise ValueError("no JSON")
    return names[int(node.func.id[1:])], arguments


def _plain(node: Any) -> Any:
    """The value of a literal."""
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_plain(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {str(ast.literal_eval(key)): _plain(item) for key, item in zip(node.keys, node.values)}
    return ast.literal_eval(node)
