"""`tunesmith plan`: what a recipe needs, whether it fits, and the most that would, before anything is loaded."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from tunesmith.cli.parameters import Json, print_json
from tunesmith.cli.plan_report import disk_lines, indented, memory_lines, most_lines, other_lines, time_lines
from tunesmith.cli.terminal import waiting
from tunesmith.cli.train import RecipeFlags, chosen
from tunesmith.errors import UserError
from tunesmith.machine import probe
from tunesmith.planner.machine_spec import described
from tunesmith.planner.most import Most
from tunesmith.planner.predict import Prediction
from tunesmith.planner.rows import NO_DATA
from tunesmith.recipe import Recipe, merge

# The recipe's keys for each value of --method.
METHODS: dict[str, dict[str, Any]] = {
    "full": {"adapter": {"kind": "full"}, "model": {"quantize": "none"}},
    "lora": {"adapter": {"kind": "lora"}, "model": {"quantize": "none"}},
    "nf4": {"adapter": {"kind": "lora"}, "model": {"quantize": "nf4"}},
}


def plan(
    recipe: Path | None = None,
    *,
    flags: Annotated[RecipeFlags | None, Parameter(name="*")] = None,
    machine: str | None = None,
    method: Literal["full", "lora", "nf4"] | None = None,
    goal: Annotated[Literal["fit"] | None, Parameter(name="--for")] = None,
    as_json: Json = False,
) -> None:
    """Show what a recipe needs, and whether it fits. Nothing is loaded, downloaded or trained. Checkpoints and
    a result that do not fit on the disk are an error.

    Args:
        recipe: The recipe, a YAML file. Without one, the flags are the whole recipe. It needs no data.
        machine: Plan for another machine: its GPUs, memory and links, like 2x3090+4090,host=64GB,link=4.0x8, or the
            output of `tunesmith doctor --json` there.
        method: Short for two keys. full: adapter.kind full; lora: adapter.kind lora; nf4: that with model.quantize nf4.
        goal: fit: search for the most that fits: the longest examples, the largest rank and the fewest GPUs.
        as_json: Print the prediction as JSON.
    """
    values = chosen(flags)
    if not recipe and not values:
        raise UserError("plan: no recipe. Name one, or a model: tunesmith plan --model MODEL --machine 4090")
    values = merge(METHODS[method] if method else {}, values)
    no_data = {"data": {"train": NO_DATA}}
    asked = Recipe.load(recipe, values, no_data) if recipe else Recipe.build(values, "plan", no_data)
    with waiting("planning"), _without_collection():
        from tunesmith.inference.gguf_base import base_folder
        from tunesmith.model.load import config_of, local_folder
        from tunesmith.planner.most import most
        from tunesmith.planner.predict import predict, with_thin_link

        planned = described(machine) if machine is not None else probe(asked.output)
        folder = base_folder(asked.model) if asked.model.path.endswith(".gguf") else local_folder(asked.model)
        where = planned, config_of(folder), folder
        if goal == "fit":
            found: Prediction | Most = most(asked, *where)
        else:
            found = with_thin_link(predict(asked, *where), asked, *where)
    if as_json:
        print_json(found.as_dict())
    else:
        console = Console(highlight=False)
        for line in report(found, asked) if isinstance(found, Prediction) else most_lines(found.as_dict()):
            for part in indented(line, console):
                console.print(part)
    if isinstance(found, Prediction) and found.disk and found.disk.fits is False:
        raise UserError(found.disk.refusal(asked))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Python does not look for garbage in cycles meanwhile: among the objects of large imports and of tensors without
    storage that takes a second, and frees about 20 MB."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def report(found: Prediction, recipe: Recipe) -> list[Text]:
    """The lines that people read."""
    plan = found.plan
    recomputed = {"on": "recomputing all activations", "off": "keeping all activations"}
    how = recomputed.get(str(plan.gradient_checkpointing), f"checkpointing: {plan.gradient_checkpointing}")
    why = plan.reasons.get("gradient_checkpointing")
    lines = [
        Text(f"plan    {plan.compute}, weights in {plan.weights}"),
        Text(f"        passes of up to {plan.micro_batch_tokens:,} tokens, {how}" + f": {why}" * bool(why)),
    ]
    if plan.kept_layers is not None:
        lines.append(Text(f"        layers kept on the GPU: {', '.join(map(str, plan.kept_layers))}"))
    if plan.walk_tokens:
        lines.append(Text(f"        {plan.walk_tokens:,} tokens at a time, whose inputs fit in host memory"))
    lines += [Text(f"        {name} is left out: {why}", style="yellow") for name, why in found.left_out.items()]
    values = found.as_dict()
    lines += [*memory_lines(values), *time_lines(values, recipe.power)]
    lines += disk_lines(values["disk"], found.training.data_tokens if found.training else 0)
    return lines + other_lines(values)
