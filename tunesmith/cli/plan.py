"""`tunesmith plan`: what a recipe needs, and whether it fits, before anything is loaded."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from tunesmith.cli.parameters import Json, print_json
from tunesmith.cli.terminal import waiting
from tunesmith.cli.train import RecipeFlags, chosen
from tunesmith.errors import UserError
from tunesmith.machine import Machine, probe
from tunesmith.planner.machine_spec import described
from tunesmith.planner.predict import Prediction
from tunesmith.recipe import Recipe
from tunesmith.units import percent, size

WHEN = {
    "before the layers": "in the embedding",
    "forward of layer": "in the forward pass of a layer",
    "loss": "in the output layer and the loss",
    "backward of the loss": "in the backward pass of the loss or the last layer",
    "backward of layer": "in the backward pass of a layer",
    "backward before the layers": "in the backward pass of the embedding",
    "update": "in the optimizer step",
}


def plan(
    recipe: Path | None = None,
    *,
    flags: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
    machine: str | None = None,
    as_json: Json = False,
) -> None:
    """Show what a recipe needs, and whether it fits. Nothing is loaded, downloaded or trained.

    Args:
        recipe: The recipe, a YAML file. Without one, the flags are the whole recipe.
        machine: Plan for another machine: its GPUs, memory and links, like 2x3090+4090,host=64GB,link=4.0x8, or the
            output of `tunesmith doctor --json` there.
        as_json: Print the prediction as JSON.
    """
    values = chosen(flags)
    if not recipe and not values:
        raise UserError("plan: no recipe. Name one, or a model and data: tunesmith plan --model MODEL --data DATA")
    asked = Recipe.load(recipe, values) if recipe else Recipe.build(values, "plan")
    with waiting("planning"):
        from tunesmith.inference.gguf_base import base_folder
        from tunesmith.model.load import config_of, local_folder
        from tunesmith.planner.predict import predict

        planned = _machine(machine)
        folder = base_folder(asked.model) if asked.model.path.endswith(".gguf") else local_folder(asked.model)
        found = predict(asked, planned, config_of(folder), folder)
    if as_json:
        return print_json(found.as_dict())
    console = Console(highlight=False)
    for line in report(found, [gpu.name for gpu in planned.gpus]):
        console.print(line, markup=False)


def _machine(text: str | None) -> Machine:
    """The machine to plan for."""
    return described(text) if text is not None else probe()


def report(found: Prediction, gpus: list[str]) -> list[str]:
    """The lines that people read."""
    plan, needed = found.plan, found.needed_bytes
    where = [f"{name}, {size(free)} free" for name, free in zip(gpus, found.free_bytes)]
    lines = [f"on      {where[0] if where else f'CPU, {size(found.free_bytes[0])} free for each process'}"]
    lines += [f"        {line}" for line in where[1:]]
    lines.append(f"in      {plan.compute}, weights in {plan.weights}")
    lines.append(f"passes  up to {plan.micro_batch_tokens:,} tokens, checkpointing {plan.gradient_checkpointing}")
    if plan.kept_layers is not None:
        lines.append(f"layers  {' and '.join(map(str, plan.kept_layers))} kept on the GPU")
    if needed is None:
        return [*lines, f"memory  not predicted: {found.stage}"]
    lines.append(f"memory  {size(needed)} at the most, {WHEN[found.stage]}")
    parts = found.parts | {"beside tensors, an estimate": found.beside_bytes}
    lines += [
        f"        {size(nbytes):>9}  {percent(nbytes / needed):>5}  {name}" for name, nbytes in parts.items() if nbytes
    ]
    verdict = "fits" if found.fits else "does not fit"
    lines.append(f"        {verdict}: {size(min(found.free_bytes))} are free, of which a tenth is left alone")
    if found.remedy:
        lines.append(f"        needs {found.remedy}")
    return lines
