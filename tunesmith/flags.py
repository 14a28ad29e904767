"""`tunesmith train`, and the recipe's fields as its flags: the same classes with every field optional."""

from pathlib import Path
from types import UnionType
from typing import Annotated, Union, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from tunesmith.errors import UserError, quoted
from tunesmith.recipe import Recipe, Source
from tunesmith.run import Run


SHORT_FORMS = {"model.path": "--model", "data.train": "--data"}


def _flags(section: type[BaseModel], prefix: str = "", group: Group | None = None) -> type[BaseModel]:
    """A class with every field of a section optional, each documented as a flag with its default."""
    fields = {}
    for place, (name, field) in enumerate(section.model_fields.items()):
        inner, key = field.annotation, prefix + name
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            inside = _flags(inner, f"{key}.", Group(f"{name}: {inner.__doc__}", sort_key=place + 1))
            flag = Annotated[inside | None, Parameter(name="*")]
        else:
            flag = Annotated[_flag_type(inner) | None, _flag(key, field, group)]
        fields[name] = flag, Field(None, description=field.description)
    return create_model(f"{section.__name__}Flags", **fields)


def _flag(key: str, field: FieldInfo, group: Group | None) -> Parameter:
    names = [f"--{key.replace('_', '-')}", *filter(None, [SHORT_FORMS.get(key)])]
    default = "" if field.is_required() or field.default in (None, [], {}) else str(field.default).lower()
    return Parameter(name=names, group=group, show_default=default or False, negative_iterable="")


def _flag_type(annotation):
    """A list of sources becomes a list of paths; `X | list[X]` a list."""
    if annotation == list[Source]:
        return list[str]
    if get_origin(annotation) in (Union, UnionType):
        lists = [a for a in get_args(annotation) if get_origin(a) is list]
        return lists[0] if lists else annotation
    return annotation


RecipeFlags = _flags(Recipe, group=Group("Recipe", sort_key=0))


def chosen(flags: BaseModel | None) -> dict:
    """What was said on the command line, nested like a recipe."""
    values = flags.model_dump(exclude_unset=True) if flags else {}
    targets = values.get("adapter", {}).get("targets")
    if targets == ["all-linear"]:
        values["adapter"]["targets"] = "all-linear"
    return values


def train(recipe: Path | None = None, *, flags: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
          as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False) -> None:
    """Train from a recipe, or from flags alone. Every field of a recipe is also a flag; flags win over the recipe.

    Args:
        recipe: The recipe, a YAML file. Without one, the flags are the whole recipe.
        as_json: Print the run's summary as JSON at the end.
    """
    values = chosen(flags)
    if not recipe and not values:
        raise UserError("train: no recipe. `tunesmith init --model MODEL --data DATA` writes one; or name both "
                        "here: tunesmith train --model MODEL --data DATA")
    if recipe and str(recipe).lower() in ("true", "false", "on", "off", "yes", "no"):
        raise UserError(f"{recipe}: no recipe; the value of a flag that is on or off stands behind =, like "
                        "--data.packing=false")
    if recipe and Run.find(recipe):
        raise UserError(f"{recipe}: a run, not a recipe; `tunesmith resume {quoted(recipe)}` continues it")
    asked = Recipe.load(recipe, values) if recipe else Recipe.build(values, "train")

    from tunesmith.terminal import waiting

    with waiting("loading"):
        from tunesmith import job
        from tunesmith.screen import finished

    finished(job.train(asked), as_json)
