"""Tool calls in tags, as Qwen3-Coder writes them: <function=NAME> <parameter=KEY> VALUE </parameter> </function>.

A string stands there as it is, anything else as JSON, so that the tool's schema decides which of both a value is.
"""

import json
import re

HEAD = re.compile(r"\s*<function=([^>\n]+)>\s*")
OPENING = re.compile(r"<parameter=([^>\n]+)>\n?")
CLOSING = re.compile(r"\n?</parameter>\s*(?=<parameter=|</function>)")
END = "</function>"
ALL = frozenset(("string", "number", "integer", "boolean", "null", "array", "object"))
KINDS = {str: {"string"}, int: {"integer", "number"}, float: {"number"}, bool: {"boolean"}, type(None): {"null"},
         list: {"array"}, dict: {"object"}}
PYTHON = {"True": "true", "False": "false", "None": "null"}  # how some templates write them
ANY_TEXT = r"/(.|\n)*\n<\/parameter>\n/"


def read(text: str, tools: dict[str, dict]) -> tuple[list[tuple[str, str]], int] | None:
    """([(name, arguments as JSON text)], where it ends) of the call that `text` begins with, None if it is not there
    or not complete. `tools`: their parameters' schemas by name."""
    head = HEAD.match(text)
    if END not in text or head is None:
        return None
    properties = _properties(tools.get(head[1]))
    at, values = head.end(), {}
    while not text.startswith(END, at):
        opening = OPENING.match(text, at)
        closing = opening and CLOSING.search(text, opening.end())
        if closing is None:
            return None
        values[opening[1]] = _json(text[opening.end():closing.start()], properties.get(opening[1]))
        at = closing.end()
    written = ", ".join(f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in values.items())
    return [(head[1], f"{{{written}}}")], at + len(END)


def call_rules(tools: list[dict]) -> str:
    """The rule `call`, and those that it needs, in Lark's notation: one call of one of the tools. Of what a schema
    says of strings it keeps to `enum` and `const`."""
    rules = [f"call: {' | '.join(f'call{n}' for n in range(len(tools)))}", f"any_text[lazy]: {ANY_TEXT}"]
    for n, tool in enumerate(tools):
        function = tool["function"]
        schema = function.get("parameters") or {}
        required, names = schema.get("required"), []
        for key, inner in _properties(schema).items():
            names.append(f"value{n}_{len(names)}" + ("" if isinstance(required, list) and key in required else "?"))
            opening = json.dumps(f"<parameter={key}>\n")
            rules.append(f"{names[-1].rstrip('?')}: {opening} {_value_rule(inner, schema)}")
        head = json.dumps(f"<function={function['name']}>\n")
        rules.append(f"call{n}: {head} {' '.join(names)} {json.dumps(END)}")
    return "\n".join(rules)


def _value_rule(schema, root: dict) -> str:
    closing = json.dumps("\n</parameter>\n")
    if isinstance(schema, dict) and (texts := _choices(schema)) and all(isinstance(text, str) for text in texts):
        return f"({' | '.join(map(json.dumps, texts))}) {closing}"
    if "string" in _kinds(schema):
        return "any_text"
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return f"%json {json.dumps(schema | shared)} {closing}"


def _json(text: str, schema) -> str:
    """A value as JSON text: what is JSON of a type that the schema allows, else the string that it is."""
    value = PYTHON.get(text, text)
    try:
        kinds = KINDS[type(json.loads(value, parse_constant=_refuse))]
    except ValueError:
        kinds = {"string"}
    return json.dumps(text, ensure_ascii=False) if "string" in kinds or not kinds & _kinds(schema) else value


def _refuse(name: str):
    raise ValueError(f"{name} is no JSON")


def _kinds(schema) -> set[str] | frozenset[str]:
    """The JSON types that a schema allows; all where it does not say."""
    if not isinstance(schema, dict):
        return ALL
    if texts := _choices(schema):
        return set().union(*(KINDS[type(value)] for value in texts))
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return set().union(*map(_kinds, schema[key]))
    kind = schema.get("type")
    return {kind} if isinstance(kind, str) else ALL.intersection(map(str, kind)) if isinstance(kind, list) else ALL


def _choices(schema: dict) -> list:
    """The only values that a schema allows, if it names them."""
    return [schema["const"]] if "const" in schema else schema["enum"] if isinstance(schema.get("enum"), list) else []


def _properties(schema) -> dict:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties if isinstance(properties, dict) else {}
