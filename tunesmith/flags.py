"""`tunesmith train`, and the recipe's fields as its flags: the same classes with every field optional."""

from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from cyclopts import Parameter
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


def train(recipe: Path | None = None, *, flags: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
          as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Train as a recipe says. Every field of the recipe is also a flag, and a flag wins.

    Args:
        recipe: The recipe, a YAML file. Without one, the flags are the whole recipe.
        as_json: Print the run's summary as JSON at the end.
    """
    from tunesmith import job
    from tunesmith.screen import finished

    asked = Recipe.load(recipe, chosen(flags)) if recipe else Recipe.build(chosen(flags), "flags")
    finished(job.train(asked), as_json)
