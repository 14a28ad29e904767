"""The recipe's fields as command-line flags: the same classes with every field optional."""

from types import UnionType
from typing import Union, get_args, get_origin

from pydantic import BaseModel, Field, create_model

from tunesmith.recipe import Recipe, Source


def _flags(section: type[BaseModel]) -> type[BaseModel]:
    fields = {name: (_flag_type(field.annotation) | None, Field(None, description=field.description))
              for name, field in section.model_fields.items()}
    return create_model(f"{section.__name__}Flags", **fields)


def _flag_type(annotation):
    """A section becomes its flags; a list of sources a list of paths; `X | list[X]` a list."""
    if annotation == list[Source]:
        return list[str]
    if get_origin(annotation) in (Union, UnionType):
        lists = [a for a in get_args(annotation) if get_origin(a) is list]
        return lists[0] if lists else annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _flags(annotation)
    return annotation


RecipeFlags = _flags(Recipe)


def chosen(flags: BaseModel | None) -> dict:
    """What was said on the command line, nested like a recipe."""
    values = flags.model_dump(exclude_unset=True) if flags else {}
    targets = values.get("adapter", {}).get("targets")
    if targets == ["all-linear"]:
        values["adapter"]["targets"] = "all-linear"
    return values
