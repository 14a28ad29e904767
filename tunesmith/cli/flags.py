"""Flags that follow from the fields of a section: a recipe's, or the settings of export forms."""

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypedDict, Union, get_args, get_origin

from cyclopts import Group, Parameter, Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunesmith.recipe import Source, fields_of


def flags_of(
    fields: Mapping[str, FieldInfo], group: Group | None = None, prefix: str = "", short: Mapping[str, str] = {}
) -> Any:
    """A dictionary type with every field as an optional key, each a documented flag with its default. A field that is
    a section becomes a group of flags. `short`: further names of flags by their dotted key."""
    keys: dict[str, Any] = {}
    for place, (name, field) in enumerate(fields.items()):
        inner, key = field.annotation, prefix + name
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            title = Group(f"{name}: {field.description or inner.__doc__}", sort_key=place + 1)
            inside = flags_of(fields_of(inner), title, f"{key}.", short)
            keys[name] = Annotated[inside, Parameter(name="*")]
        else:
            keys[name] = Annotated[_flag_type(inner), _flag(key, field, group, short)]
    made: Any = TypedDict  # from fields, which a type checker cannot follow
    return made("Flags", keys, total=False)


def flag_name(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def arity(annotation: Any) -> Literal["none", "one", "several"]:
    """How many values follow a flag of this type."""
    kind = _flag_type(annotation)
    return "none" if kind is bool else "several" if get_origin(kind) in (list, dict) else "one"


def default_text(field: FieldInfo) -> str:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return "" if default in (None, [], {}) else str(default).lower()


def _flag(key: str, field: FieldInfo, group: Group | None, short: Mapping[str, str]) -> Parameter:
    flag = Parameter(
        name=[flag_name(key), *filter(None, [short.get(key)])],
        group=group,
        help=field.description,
        show_default=default_text(field) or False,
        negative_iterable="",
    )
    return Parameter.combine(flag, Parameter(converter=_as_written)) if arity(field.annotation) == "one" else flag


def _as_written(_: Any, tokens: list[Token]) -> str:
    """Leaves it to the section to say what is wrong with a value."""
    return tokens[0].value


def _flag_type(annotation: Any) -> Any:
    """A list of sources becomes a list of paths; `X | list[X]` a list."""
    if annotation == list[Source]:
        return list[str]
    if get_origin(annotation) in (Union, UnionType):
        lists = [a for a in get_args(annotation) if get_origin(a) is list]
        return lists[0] if lists else annotation
    return annotation
