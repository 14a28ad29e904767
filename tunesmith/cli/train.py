"""`tunesmith train`, and the recipe's fields as its flags."""

from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Union, get_args, get_origin

from cyclopts import Group, Parameter, Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tunesmith.errors import UserError, quoted
from tunesmith.recipe import Recipe, Source, fields_of
from tunesmith.run import Run

SHORT_FORMS = {"model.path": "--model", "data.train": "--data"}


def _flags(section: type[BaseModel], prefix: str = "", group: Group | None = None) -> Any:
    """A dictionary type with every field of a section as an optional key, each a documented flag with its default."""
    keys: dict[str, Any] = {}
    for place, (name, field) in enumerate(fields_of(section).items()):
        inner, key = field.annotation, prefix + name
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            inside = _flags(inner, f"{key}.", Group(f"{name}: {inner.__doc__}", sort_key=place + 1))
            keys[name] = Annotated[inside, Parameter(name="*")]
        else:
            keys[name] = Annotated[_flag_type(inner), _flag(key, field, group)]
    made: Any = TypedDict  # from fields, which a type checker cannot follow
    return made(f"{section.__name__}Flags", keys, total=False)


def _flag(key: str, field: FieldInfo, group: Group | None) -> Parameter:
    names = [f"--{key.replace('_', '-')}", *filter(None, [SHORT_FORMS.get(key)])]
    default = "" if field.is_required() or field.default in (None, [], {}) else str(field.default).lower()
    flag = Parameter(
        name=names, group=group, help=field.description, show_default=default or False, negative_iterable=""
    )
    one = _flag_type(field.annotation) is not bool and get_origin(_flag_type(field.annotation)) not in (list, dict)
    return Parameter.combine(flag, Parameter(converter=_as_written)) if one else flag


def _as_written(_: Any, tokens: list[Token]) -> str:
    """Leaves it to the recipe to say what is wrong with a value."""
    return tokens[0].value


def _flag_type(annotation: Any) -> Any:
    """A list of sources becomes a list of paths; `X | list[X]` a list."""
    if annotation == list[Source]:
        return list[str]
    if get_origin(annotation) in (Union, UnionType):
        lists = [a for a in get_args(annotation) if get_origin(a) is list]
        return lists[0] if lists else annotation
    return annotation


if TYPE_CHECKING:
    RecipeFlags = dict[str, Any]  # made from the recipe's fields, which a type checker cannot follow
else:
    RecipeFlags = _flags(Recipe, group=Group("Recipe", sort_key=0))


def chosen(flags: RecipeFlags | None) -> dict[str, Any]:
    """What was said on the command line, nested like a recipe."""
    values = dict(flags or {})
    targets = values.get("adapter", {}).get("targets")
    if targets == ["all-linear"]:
        values["adapter"] = values["adapter"] | {"targets": "all-linear"}
    return values


def train(
    recipe: Path | None = None,
    *,
    flags: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False)] = False,
) -> None:
    """Train from a recipe, or from flags alone. Every field of a recipe is a flag; flags win over the recipe.

    Args:
        recipe: The recipe, a YAML file. Without one, the flags are the whole recipe.
        as_json: Print the run's summary as JSON at the end.
    """
    values = chosen(flags)
    if not recipe and not values:
        raise UserError(
            "train: no recipe. `tunesmith init --model MODEL --data DATA` writes one; or name both "
            "here: tunesmith train --model MODEL --data DATA"
        )
    if recipe and str(recipe).lower() in ("true", "false", "on", "off", "yes", "no"):
        raise UserError(
            f"{recipe}: no recipe; the value of a flag that is on or off stands behind =, like --data.packing=false"
        )
    if recipe and Run.find(recipe):
        raise UserError(f"{recipe}: a run, not a recipe; `tunesmith resume {quoted(recipe)}` continues it")
    asked = Recipe.load(recipe, values) if recipe else Recipe.build(values, "train")

    from tunesmith.cli.terminal import waiting

    with waiting("loading"):
        from tunesmith.cli import progress, runs

    runs.finished(progress.train(asked), as_json)
