"""JSON Schemas: written into other schemas, and read through their references."""

from typing import Any
from urllib.parse import unquote

ALL = frozenset(("string", "number", "integer", "boolean", "null", "array", "object"))
KINDS = {
    str: {"string"},
    int: {"integer", "number"},
    float: {"number"},
    bool: {"boolean"},
    type(None): {"null"},
    list: {"array"},
    dict: {"object"},
}
BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")  # hold schemas by name
VALUES = ("const", "enum", "default", "examples")  # hold values, which may look like schemas
IDENTITY = ("$id", "$schema")  # a schema inside another one has none of its own
DEEPEST = 16  # references in a row; a schema may refer to itself


def placed(schema: Any, pointer: str) -> Any:
    """A schema to stand at `pointer` (`#/$defs/tool`) of another one: its references to itself point there."""
    if isinstance(schema, list):
        return [placed(inner, pointer) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _placed(key, value, pointer) for key, value in schema.items() if key not in IDENTITY}


def _placed(key: str, value: Any, pointer: str) -> Any:
    if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
        return pointer + value[1:]
    if key in VALUES:
        return value
    if key in BY_NAME and isinstance(value, dict):
        return {name: placed(inner, pointer) for name, inner in value.items()}
    return placed(value, pointer)


def embedded(schema: Any, root: dict) -> Any:
    """A part of the schema `root` as a schema of its own, with what it refers to."""
    part = placed(schema, "#/$defs/root")
    if not isinstance(part, dict) or "$ref" not in str(part):
        return part
    return {**part, "$defs": {"root": placed(root, "#/$defs/root")}}


def kinds(schema: Any, root: Any, depth: int = 0) -> frozenset[str]:
    """The JSON types that a part of the schema `root` allows; all where it does not say."""
    if not isinstance(schema, dict) or depth > DEEPEST:
        return ALL
    allowed = ALL
    for part in _all_of(schema, root):
        allowed &= kinds(part, root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            allowed &= frozenset().union(*(kinds(part, root, depth + 1) for part in schema[key]))
    if values := choices(schema, root):
        allowed &= frozenset().union(*(KINDS[type(value)] for value in values))
    kind = schema.get("type")
    if isinstance(kind, str):
        allowed &= {kind}
    elif isinstance(kind, list):
        allowed &= frozenset(map(str, kind))
    return allowed | ({"integer"} if "number" in allowed else frozenset())


def choices(schema: Any, root: Any, depth: int = 0) -> list:
    """The only values that a part of the schema `root` allows, if it names them."""
    if not isinstance(schema, dict) or depth > DEEPEST:
        return []
    if "const" in schema:
        return [schema["const"]]
    if isinstance(schema.get("enum"), list):
        return schema["enum"]
    return next((found for part in _all_of(schema, root) if (found := choices(part, root, depth + 1))), [])


def properties(schema: Any, root: Any, depth: int = 0) -> dict:
    """The schemas of an object's properties, by name."""
    if not isinstance(schema, dict) or depth > DEEPEST:
        return {}
    found: dict = {}
    variants = [part for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list) for part in schema[key]]
    for part in variants:
        for name, inner in properties(part, root, depth + 1).items():
            found[name] = {"anyOf": [found[name], inner]} if name in found else inner
    for part in _all_of(schema, root):
        found |= properties(part, root, depth + 1)
    own = schema.get("properties")
    return found | (own if isinstance(own, dict) else {})


def required(schema: Any, root: Any, depth: int = 0) -> set[str]:
    """The names of the properties that an object must have."""
    if not isinstance(schema, dict) or depth > DEEPEST:
        return set()
    own = schema.get("required")
    found = {name for name in own if isinstance(name, str)} if isinstance(own, list) else set()
    return found.union(*(required(part, root, depth + 1) for part in _all_of(schema, root)))


def _all_of(schema: dict, root: Any) -> list:
    """The other schemas that a value must keep to as well."""
    target = _target(root, schema["$ref"]) if isinstance(schema.get("$ref"), str) else None
    others = schema["allOf"] if isinstance(schema.get("allOf"), list) else []
    return others if target is None else [target, *others]


def _target(root: Any, reference: str) -> Any:
    """The value that a JSON pointer points at, None if there is none."""
    if not reference.startswith("#"):
        return None
    found = root
    for step in unquote(reference[1:]).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        elif isinstance(found, dict) and step in found:
            found = found[step]
        else:
            return None
    return found
