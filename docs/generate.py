"""Fills the generated parts of the reference pages from the code: `python docs/generate.py`.

A generated part stands between two comments, `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a function here.
`tests/test_docs.py` fails if a part is out of date.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

DOCS = Path(__file__).parent
BLOCK = re.compile(r"(?<=<!-- generated: )(\w+)( -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)


def commands() -> str:
    """Each command with its parameters, as `tunesmith COMMAND --help` has them."""
    from tunesmith.cli.main import COMMANDS, app

    parts = []
    parents = {"Prepare": "data", "Train": "queue", "More": "recipe"}
    for group, names in COMMANDS.items():
        parent = parents.get(group)
        inner = [f"{parent} {name}" for name in _command(app, parent) if not name.startswith("-")] if parent else []
        for name in [*names, *inner]:
            command = _command(app, name)
            parts.append(f"### tunesmith {name}\n\n{_sentences(command.help)}\n")
            if rows := list(_parameters(command)):
                parts.append("| parameter | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _command(app: Any, name: str) -> Any:
    command = app
    for word in name.split():
        command = command[word]
    return command


def _sentences(docstring: str) -> str:
    """The prose of a docstring, before its arguments."""
    return " ".join(docstring.partition("Args:")[0].split())


def _parameters(command: Any) -> Iterator[str]:
    """A table row for each parameter, without the keys of a recipe, which have a page of their own."""
    for argument in command.assemble_argument_collection(parse_docstring=True):
        if argument.parameter.help and not argument.keys:
            names = ", ".join(f"`{name}`" for name in _names(argument))
            yield f"| {names} | {_default_of_flag(argument.field_info)} | {_cell(_meaning(argument))} |"


def _names(argument: Any) -> list[str]:
    field = argument.field_info
    if field.is_positional:
        return [argument.name.lstrip("-").upper() + " ..." * (field.kind is field.VAR_POSITIONAL)]
    return [*argument.names[:1], *argument.negatives[: field.default is True]]


def _default_of_flag(field: Any) -> str:
    if field.kind is field.VAR_POSITIONAL:
        return ""
    if field.default is field.empty:
        return "required"
    if field.default is True:
        return "on"
    return "" if field.default is None or field.default is False or field.default in ((), []) else f"`{field.default}`"


def _meaning(argument: Any) -> str:
    """The help text, and the values that are allowed."""
    choices = [f"`{one}`" for one in argument.get_choices() or ()]
    return argument.parameter.help + (f" One of {', '.join(choices)}." if choices else "")


def recipe() -> str:
    """Every key of a recipe: type, default and docstring."""
    from pydantic import BaseModel

    from tunesmith.recipe import Recipe, Source

    parts, top = [], []
    for name, field in Recipe.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            parts.append(f"### {name}\n\n{_sentences(section.__doc__)}\n\n{_fields(section, f'{name}.')}")
            if name == "data":
                text = "Each entry of `data.train` and `data.eval` is a source. " + _sentences(Source.__doc__)
                parts.append(f"### A source\n\n{text}\n\n{_fields(Source, '')}")
        else:
            top.append(name)
    parts.append(f"### Top level\n\n{_fields(Recipe, '', top)}")
    return "\n".join(parts)


def _fields(section: Any, prefix: str, names: list[str] | None = None) -> str:
    from tunesmith.recipe import fields_of

    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name in names or fields_of(section):
        field = fields_of(section)[name]
        kind = _type(_annotation(section, name, field))
        rows.append(f"| `{prefix}{name}` | {_cell(kind)} | {_default(field)} | {_cell(field.description)} |")
    return "\n".join(rows) + "\n"


def _annotation(section: Any, name: str, field: Any) -> Any:
    """The annotation as it is written; the fields of all methods come from several classes."""
    return inspect.get_annotations(section).get(name, field.annotation)


def _default(field: Any) -> str:
    from tunesmith.recipe import Section

    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, Section):
        return ""
    text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return "" if value is None else f"`{text}`"


def _type(annotation: Any) -> str:
    """A field's type in the words of YAML, with its bounds."""
    kind, extra = annotation, ()
    if get_origin(annotation) is Annotated:
        kind, *extra = get_args(annotation)
    bounds = ", ".join(filter(None, (_bound(note) for item in extra for note in getattr(item, "metadata", []))))
    return _plain_type(kind) + (f", {bounds}" if bounds else "")


def _plain_type(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        return _type(kind)
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_plain_type(one) for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is list:
        return f"list of {_plain_type(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", Path: "path"}
    return names.get(kind, "source" if kind.__name__ == "Source" else kind.__name__)


def _bound(note: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    for name, sign in signs.items():
        if hasattr(note, name):
            return f"{sign} {getattr(note, name)}"
    return f"at least {note.min_length}" if hasattr(note, "min_length") else ""


def events() -> str:
    """The table of events in the docstring of `tunesmith/run.py`."""
    rows: list[list[str]] = []
    for line in _event_lines():
        match = re.match(r"    (\w+) +(\S.*)", line)
        if match:
            rows.append([match[1], match[2]])
        else:
            rows[-1][1] += " " + line.strip()
    table = [f"| `{name}` | {_cell(text)} |" for name, text in rows]
    return "\n".join(["| event | fields |", "|---|---|", *table]) + "\n"


def _event_lines() -> list[str]:
    from tunesmith import run

    return [line for line in (run.__doc__ or "").splitlines() if line.startswith("    ")]


def evaluation() -> str:
    """The paragraphs behind the table of events: the format of eval.json, and numbers that JSON lacks."""
    from tunesmith import run

    paragraphs = (run.__doc__ or "").split("\n\n")
    last = max(place for place, text in enumerate(paragraphs) if text.startswith("    "))
    return "\n\n".join(" ".join(text.split()) for text in paragraphs[last + 1 :]) + "\n"


def ledger() -> str:
    """Why rows are dropped or changed."""
    from tunesmith.data.rows import REASONS

    return "| reason | meaning |\n|---|---|\n" + "".join(
        f"| `{key}` | {_cell(text)} |\n" for key, text in REASONS.items()
    )


def errors() -> str:
    """The ways in which a command ends early."""
    from tunesmith import errors

    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.Ending)]
    rows = [f"| `{c.__name__}` | {c.status} | {_cell(c.__doc__ or '')} |" for c in found if c is not errors.Ending]
    return "\n".join(["| exception | exit status | meaning |", "|---|---|---|", *rows]) + "\n"


def python() -> str:
    """What `import tunesmith` gives, and what `train` returns."""
    import tunesmith
    from tunesmith.run import Run

    parts = []
    for name in tunesmith.__all__:
        parts += _documented(f"tunesmith.{name}", getattr(tunesmith, name))
    parts += _documented("tunesmith.run.Run", Run)
    return "\n".join(parts)


def fits() -> str:
    """The longest examples that fit, a table for each method, as docs/will_it_fit.py computed them."""
    import json

    found = json.loads((DOCS / "will_it_fit.json").read_text("utf-8"))
    return "\n".join(f"### {method}\n\n{_fit_table(models)}" for method, models in found.items())


def _fit_table(models: dict[str, dict[str, str]]) -> str:
    titles = list(next(iter(models.values())))
    rows = [f"| {model} | {' | '.join(cells[title] for title in titles)} |" for model, cells in models.items()]
    return "\n".join([f"| model | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|", *rows]) + "\n"


def published() -> str:
    """Published results of models with fewer bits."""
    from tunesmith.planner.quality import PUBLISHED

    rows = [f"| {each.precision} | {_cell(each.result)} | [source]({each.source}) |" for each in PUBLISHED]
    return "\n".join(["| precision | result | source |", "|---|---|---|", *rows]) + "\n"


def _documented(name: str, thing: Any) -> list[str]:
    """The heading, signature and docstring of a function or a class."""
    if inspect.isfunction(thing):
        return [f"### {name}\n", f"```text\n{name}{_signature(thing)}\n```\n", _prose(thing) + "\n"]
    members = [f"- `{member}{_signature(value)}`\n  <br>{_prose(value)}" for member, value in _members(thing)]
    return [f"### {name}\n", _prose(thing) + "\n", "\n".join(members) + "\n"]


def _members(thing: type) -> Iterator[tuple[str, Any]]:
    """The documented public methods and properties that a class itself defines."""
    for member, value in vars(thing).items():
        is_member = isinstance(value, classmethod | property) or inspect.isfunction(value)
        if is_member and not member.startswith("_") and _prose(value):
            yield member, value


def _signature(value: Any) -> str:
    if isinstance(value, property):
        return ""
    signature = inspect.signature(getattr(value, "__func__", value))
    shown = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    text = re.sub(r"\b(tunesmith\.\w+|typing|pathlib|collections\.abc)\.", "", str(signature.replace(parameters=shown)))
    return re.sub(r"PosixPath\((.*?)\)", r"\1", re.sub(r"-> '(.*)'", r"-> \1", text))


def _prose(value: Any) -> str:
    return _sentences(inspect.cleandoc(getattr(value, "__doc__", "") or ""))


def _cell(text: str) -> str:
    """Text as a cell of a table: in one line, `|` escaped, and `<` too where it is not in backticks."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if place % 2 else part.replace("<", "&lt;") for place, part in enumerate(parts))


def filled(text: str) -> str:
    """A page with its generated parts made again."""
    return BLOCK.sub(lambda block: f"{block[1]}{block[2]}\n{globals()[block[1]]()}\n", text)


def pages() -> list[Path]:
    """The pages with a generated part."""
    return [page for page in sorted(DOCS.rglob("*.md")) if BLOCK.search(page.read_text("utf-8"))]


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    for page in pages():
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
