"""The recipe as a form and as YAML text, for a page that shows both."""

import math
import re
import shlex
from typing import Any

from pydantic import BaseModel

from tunesmith import recipe_text
from tunesmith.recipe import Recipe, as_sources, known_keys
from tunesmith.recipe_text import BadText
from tunesmith.studio.recipe_edit import changed

MOST_CHARACTERS = 200_000  # of a recipe's text
MOST_DEPTH = 20  # of values in values
MOST_MESSAGE = 500  # characters
FILE = "recipe.yaml"


class Mistake(BaseModel):
    """A problem of a recipe."""

    key: str
    """Dotted; empty if no single key is to blame."""
    message: str
    line: int | None = None
    """In the YAML text."""


class Checked(BaseModel):
    """A recipe in all its forms."""

    values: dict[str, Any] | None
    """The values that were set, nested like the recipe, in full; None if the text cannot be read."""
    yaml: str
    problems: list[Mistake]
    command: str
    """The command line that trains by it. Empty if there are problems."""


class FormSection(BaseModel):
    """A part of the form."""

    key: str
    """Empty for the fields that are in no section."""
    help: str
    keys: list[str]
    """Dotted, in the order of the form. Those of `method` are the fields of all methods."""


class RecipeSchema(BaseModel):
    """The form of a recipe."""

    json_schema: dict[str, Any]
    """JSON Schema without references. Each field has `title`, `description`, `level` (essential, more or all) and,
    unless it is required, `default`."""
    sections: list[FormSection]


def schema() -> RecipeSchema:
    """The JSON Schema of recipes for a form."""
    plain = Recipe.model_json_schema()
    tree = _resolved(plain, plain.pop("$defs"))
    sections, alone = [], []
    for key, field in tree["properties"].items():
        if "properties" in field or "oneOf" in field:
            kinds = field.get("oneOf", [field])
            inner = dict.fromkeys(f"{key}.{name}" for kind in kinds for name in kind["properties"])
            for kind in kinds:
                if key == "method":  # the name of one is fixed, as its class says
                    kind["properties"]["name"]["level"] = "essential"
                _label(kind["properties"], "more" if key == "method" else "all")
            field["title"] = _title(key)
            if key == "method":
                field.setdefault(
                    "default", {"name": Recipe.model_fields[key].get_default(call_default_factory=True).name}
                )
            sections.append(FormSection(key=key, help=field.get("description", ""), keys=list(inner)))
        else:
            alone.append(key)
    _label({key: tree["properties"][key] for key in alone}, "all")
    return RecipeSchema(json_schema=tree, sections=[*sections, FormSection(key="", help="", keys=alone)])


def check_values(values: dict[str, Any], text: str = "") -> Checked:
    """Describes a recipe that a form holds. The comments of its text before are kept where that can be done."""
    if _is_too_deep(values):
        return Checked(values=None, yaml="", problems=[Mistake(key="", message="nested too deeply")], command="")
    checked = _checked(_plain(values), "")
    checked.yaml = _with_comments(text, checked.values or {}) or recipe_text.dump(_short(checked.values or {}))
    return _with_lines(checked)


def check_text(text: str) -> Checked:
    """Describes a recipe that is YAML text, whose comments stay."""
    try:
        if len(text) > MOST_CHARACTERS:
            raise BadText(FILE, None, f"longer than {MOST_CHARACTERS:,} characters")
        values = recipe_text.parse(text, FILE)
        if _is_too_deep(values):
            raise BadText(FILE, None, "nested too deeply")
    except BadText as error:
        mistake = Mistake(key="", message=_plain(error.problem)[:MOST_MESSAGE], line=error.line)
        return Checked(values=None, yaml=_plain(text), problems=[mistake], command="")
    return _with_lines(_checked(_plain(values), _plain(text)))


def key_in(message: str) -> str:
    """The recipe key that a message names at its beginning; empty if it names none."""
    found = re.match(r"`?([a-z_]+(?:\.[a-z_0-9]+)*)`?[: ]", message)
    return found[1] if found and re.sub(r"\.\d+.*", "", found[1]) in known_keys() else ""


def command(values: dict[str, Any]) -> str:
    """The command that trains by these values: all as flags, or with the recipe's file where flags cannot say them."""
    words = _flags(_short(values))
    return f"tunesmith train {FILE}" if words is None else shlex.join(["tunesmith", "train", *words])


def _checked(values: dict[str, Any], text: str) -> Checked:
    found = [
        Mistake(key=_plain(problem.key), message=_plain(problem.message)[:MOST_MESSAGE])
        for problem in Recipe.problems(values)
    ]
    if found:
        return Checked(values=_long(values), yaml=text, problems=found, command="")
    values = Recipe.build(values).set_values()
    return Checked(values=values, yaml=text, problems=[], command=command(values))


def _with_lines(checked: Checked) -> Checked:
    lines = recipe_text.lines(checked.yaml)
    for problem in checked.problems:
        problem.line = _line(problem.key, lines)
    return checked


def _with_comments(text: str, values: dict[str, Any]) -> str | None:
    """An older text, so changed that it says these values; None if that cannot be done."""
    old = check_text(text)
    if old.values is None:
        return None
    before, after, written = _short(old.values), _short(values), recipe_text.parse(text)
    for name, value in written.items():
        if not isinstance(value, dict):  # a section in its short form
            after = {key: value if key == name and inner == before.get(key) else inner for key, inner in after.items()}
            before = before | {name: value}
    found = changed(text, before, after)
    return found if found is not None and _short(check_text(found).values or {}) == _short(values) else None


def _line(key: str, lines: dict[str, int]) -> int | None:
    """The line of a key, or of the nearest one above it."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return lines.get(key)


def _flags(values: dict[str, Any], prefix: str = "") -> list[str] | None:
    words: list[str] = []
    for name, value in values.items():
        key = prefix + name
        flag = {"model.path": "--model", "data.train": "--data"}.get(key, "--" + key.replace("_", "-"))
        if value is None or value in ({}, []):
            continue
        if isinstance(value, dict):
            inner = _flags(value, f"{key}.") if not prefix else None
            if inner is None:
                return None
            words += inner
        elif isinstance(value, list):
            if not all(isinstance(item, str) for item in value):
                return None
            words += [word for item in value for word in _flag(flag, item)]
        else:
            words += _flag(flag, value)
    return words


def _flag(flag: str, value: Any) -> list[str]:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return [f"{flag}={text}"] if isinstance(value, bool) or text.startswith("-") else [flag, text]


def _long(values: dict[str, Any]) -> dict[str, Any]:
    """Invalid values without short forms, where these have the usual shapes."""
    full = Recipe.in_full(values)
    if isinstance(full.get("data"), dict):
        sources = {key: as_sources(value) for key, value in full["data"].items() if key in ("train", "eval")}
        full["data"] = full["data"] | sources
    return full


def _short(values: dict[str, Any]) -> dict[str, Any]:
    """Values as people write them: a source that is only a path as that, and one source without a list."""
    data = values.get("data")
    if not isinstance(data, dict):
        return values
    short = {key: _short_sources(data[key]) if key in ("train", "eval") else data[key] for key in data}
    return values | {"data": short}


def _short_sources(sources: Any) -> Any:
    if not isinstance(sources, list):
        return sources
    items = [item["path"] if isinstance(item, dict) and item.keys() == {"path"} else item for item in sources]
    return items[0] if len(items) == 1 and isinstance(items[0], str) else items


def _plain(value: Any) -> Any:
    """A value that is valid JSON: YAML also has dates, sets, other keys than text, and numbers that are not finite."""
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value).encode("utf-8", "replace").decode()


def _is_too_deep(value: Any, depth: int = MOST_DEPTH) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return depth == 0 or any(_is_too_deep(one, depth - 1) for one in inner)


def _resolved(node: Any, definitions: dict[str, Any]) -> Any:
    """A schema with what its references name in their place; the nearer words win."""
    if isinstance(node, list):
        return [_resolved(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        named = definitions[node["$ref"].rpartition("/")[2]]
        node = named | {key: value for key, value in node.items() if key != "$ref"}
    return {
        key: " ".join(value.split())
        if key == "description" and isinstance(value, str)
        else _resolved(value, definitions)
        for key, value in node.items()
    }


def _label(fields: dict[str, Any], level: str) -> None:
    """Gives each field a title and a level, as deep as there are fields."""
    for name, field in fields.items():
        field["title"] = _title(name)
        field.setdefault("level", level)
        _label(field.get("items", {}).get("properties", {}), "all")


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()
