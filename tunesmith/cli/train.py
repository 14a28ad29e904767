"""`tunesmith train`, and the recipe's fields as its flags."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from tunesmith.cli.flags import flags_of
from tunesmith.cli.parameters import Json, Switch
from tunesmith.errors import UserError, quoted
from tunesmith.recipe import Recipe
from tunesmith.run import Run

SHORT_FORMS = {"model.path": "--model", "data.train": "--data"}


if TYPE_CHECKING:
    RecipeFlags = dict[str, Any]  # made from the recipe's fields, which a type checker cannot follow
else:
    RecipeFlags = flags_of(Recipe.model_fields, Group("Recipe", sort_key=0), short=SHORT_FORMS)


def chosen(flags: RecipeFlags | None) -> dict[str, Any]:
    """The flags given on the command line, nested like a recipe."""
    values = dict(flags or {})
    targets = values.get("adapter", {}).get("targets")
    if targets == ["all-linear"]:
        values["adapter"] = values["adapter"] | {"targets": "all-linear"}
    return values


def train(
    recipe: Path | None = None,
    *,
    flags: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
    cluster: str | None = None,
    force: Annotated[bool, Switch] = False,
    share_gpus: Annotated[bool, Switch] = False,
    as_json: Json = False,
) -> None:
    """Train from a recipe, or from flags alone. Every field of a recipe is a flag; flags win over the recipe.

    Args:
        recipe: The recipe, a YAML file. Without one, the flags are the whole recipe.
        cluster: Train on the machines of a Ray cluster. auto: the one that this machine is part of, or HOST:PORT.
        force: Train although the plan says that memory or the disk is too small.
        share_gpus: Use GPUs on which another run trains too. By default they are left out.
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
            f"{recipe}: no recipe; give the value of a flag that is on or off after =, like --data.packing=false"
        )
    if recipe and Run.find(recipe):
        raise UserError(f"{recipe}: a run, not a recipe; `tunesmith resume {quoted(recipe)}` continues it")
    asked = Recipe.load(recipe, values) if recipe else Recipe.build(values, "train")

    from tunesmith.cli.terminal import waiting

    with waiting("loading"):
        from tunesmith.cli import progress, runs

    runs.finished(progress.train(asked, cluster, True, force, share_gpus), as_json)
