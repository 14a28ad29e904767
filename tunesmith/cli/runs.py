"""`tunesmith runs`: lists, shows and compares runs."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich import get_console
from rich import print as print_rich
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith import recipe_text
from tunesmith.cli.parameters import DEFAULT_OUTPUT, Json, print_json
from tunesmith.cli.terminal import line_chart, mark
from tunesmith.errors import UserError, quoted
from tunesmith.evaluate.charts import thin
from tunesmith.evaluate.energy import energy_of
from tunesmith.evaluate.summary import ending, flatten, incomparable, summary, verdict, warnings
from tunesmith.files import json_text
from tunesmith.finetune import control
from tunesmith.jobs.deletion import delete, deletion_of
from tunesmith.jobs.store import Store
from tunesmith.run import Run, list_runs
from tunesmith.units import JOULES_PER_KWH, NO_VALUE, duration, energy, number, percent, size

WISHES: dict[str, control.Wish] = {"pause": "pause", "continue": "run", "stop": "stop"}
TONES = {"better": "bold green", "worse": "bold red", "unclear": "bold yellow"}


def runs(
    action: Literal["list", "show", "compare", "pause", "continue", "stop", "delete"] = "list",
    *folders: Path,
    output: Path = DEFAULT_OUTPUT,
    yes: Annotated[bool, Parameter(negative="")] = False,
    as_json: Json = False,
) -> None:
    """List runs, show one, compare some, pause, continue or stop a running one, or delete some.

    Args:
        action: list, show, compare, pause, continue, stop or delete. A run pauses or stops after its current step and
            saves a checkpoint; a paused run keeps the model in memory. delete removes only files that Tunesmith wrote,
            and no run that something still needs.
        folders: The runs' names or folders; list shows all in `output` by default.
        output: The folder of runs.
        yes: Delete without a question.
        as_json: Print summaries as JSON.
    """
    chosen_runs = [Run.open(folder, output) for folder in folders] or list_runs(output)
    if action != "list" and len(folders) < (2 if action == "compare" else 1):
        raise UserError(f"runs {action}: name {'two runs or more' if action == 'compare' else 'a run'}")
    if action in WISHES:
        for run in chosen_runs:
            control.request(run, WISHES[action])
        return None
    if action == "delete":
        return _delete(chosen_runs, output, yes)
    if as_json:
        return print_json([summary(run) for run in chosen_runs])
    if not chosen_runs:
        print(f"No runs in {output} yet. `tunesmith demo` makes one.")
    elif action == "list":
        print_rich(list_table(chosen_runs))
    elif action == "compare":
        print_rich(compare(chosen_runs, get_console().width))
    else:
        for run in chosen_runs:
            print_rich(show_run(run))


def _delete(chosen_runs: list[Run], output: Path, yes: bool) -> None:
    """Deletes runs, after a question that says what is freed. Raises UserError if one of them is needed."""
    store, all_runs = Store(), partial(list_runs, output)
    found = [deletion_of(store, run, all_runs) for run in chosen_runs]
    for run, one in zip(chosen_runs, found):
        if one.refusal:
            raise UserError(f"{run.folder} is not deleted: {one.refusal}")
        kept = f"; stays, as Tunesmith did not write it: {', '.join(one.kept)}" if one.kept else ""
        print(f"{run.folder}  {size(one.bytes)}{kept}")
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("runs delete: pass --yes where no one can be asked")
        count = f"{len(found)} runs" if len(found) > 1 else "this run"
        answer = input(f"Delete {count}, {size(sum(one.bytes for one in found))}? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            return
    for run in chosen_runs:
        delete(store, run, all_runs)


def list_table(runs: list[Run]) -> Table:
    """Returns a table of runs that fits 80 columns: name, model, method and adapter, then the results."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("Run", overflow="fold")
    table.add_column("Status", no_wrap=True)
    for name in ("Steps", "Loss", "Exact match", "Time"):
        table.add_column(name, justify="right", no_wrap=True)
    for facts in map(summary, runs):
        trained = f"{PurePath(facts['base_model'] or NO_VALUE).name}, {facts['method']}, {facts['adapter']}"
        heading = Text.assemble(facts["name"], "\n", (trained, "dim"))
        results = _results(facts)
        worse = facts["loss_before"] is not None and (facts["loss_after"] or 0) > facts["loss_before"]
        table.add_row(
            heading,
            *(Text(value, style="red" if worse and key == "Held-out loss" else "") for key, value in results.items()),
        )
    return table


def show_run(run: Run) -> RenderableType:
    """Returns one run's verdict, figures and warnings."""
    facts, judged = summary(run), verdict(run)
    table = _table()
    rows = {
        "Run": facts["name"],
        "Base model": facts["base_model"],
        "Method": f"{facts['method']}, {facts['adapter']}",
        "Started": (facts["started"] or NO_VALUE)[:16].replace("T", " "),
        **_results(facts),
    }
    if taken := energy_of(run, run.events("energy", "step")):
        rows["Energy"] = taken.text
    if facts["error"]:
        rows["Error"] = facts["error"]
    for name, value in rows.items():
        if value != NO_VALUE:
            table.add_row(*_texts(name, value))
    for message, times in warnings(run).items():
        table.add_row(*_texts("Warning", message if times == 1 else f"{message} ({times} times)"))
    return Group(Text(judged.text, style=TONES[judged.tone]), Text(ending(facts)), Text(), table)


def compare(runs: list[Run], width: int = 80) -> RenderableType:
    """Compares runs side by side: the recipe keys that differ, the results, notes on results that are not comparable,
    and curves of held-out loss, or of training loss if a run has no evaluations. Letters stand for runs to save
    width."""
    table = _table()
    letters = [chr(ord("A") + number % 26) for number in range(len(runs))]
    for place, letter in enumerate(letters):
        table.add_column(Text(letter, style=mark(place)[1]), overflow="fold")
    recipes = [
        {key: value for key, value in flatten(recipe_text.read(run.recipe_file)).items() if value not in ("", None)}
        for run in runs
    ]
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        values = [recipe.get(key) for recipe in recipes]
        if key not in ("name", "output") and any(value != values[0] for value in values):
            table.add_row(*_texts(key, *values))
    table.add_section()
    summaries = [summary(run) for run in runs]
    results = [_results(facts) | {"Energy": _energy(facts)} for facts in summaries]
    for name in results[0] if results else ():
        if any(result[name] != NO_VALUE for result in results):
            table.add_row(*_texts(name, *(result[name] for result in results)))
    legend = [
        Text.assemble((f"{mark(number)[0]} {letter}  ", mark(number)[1]), run.name)
        for number, (letter, run) in enumerate(zip(letters, runs))
    ]
    notes = [Text(note, style="yellow") for note in incomparable(runs)]
    return Group(*legend, Text(), table, *notes, Text(), *_curves(runs, width))


def _curves(runs: list[Run], width: int) -> list[RenderableType]:
    evaluated = [[(e["step"], e["loss"]) for e in run.events("eval")] for run in runs]
    if all(len(points) > 1 for points in evaluated):
        return [Text("held-out loss", style="bold"), line_chart(evaluated, width, 12, number)]
    stepped = [[(e["step"], e["loss"]) for e in run.events("step")] for run in runs]
    if not any(stepped):
        return []
    return [
        Text("training loss", style="bold"),
        line_chart([thin(points, width)[0] for points in stepped], width, 12, number),
    ]


def _results(facts: dict) -> dict[str, str]:
    """Formats the results in a `summary`."""

    def change(key: str, show: Callable[[Any], str]) -> str:
        before, after = facts[f"{key}_before"], facts[f"{key}_after"]
        return NO_VALUE if before is after is None else f"{show(before)} → {show(after)}"

    return {
        "Status": facts["status"],
        "Steps": f"{facts['steps_done']:,}/{facts['steps']:,}" if facts["steps"] else NO_VALUE,
        "Held-out loss": change("loss", number),
        "Exact match": change("exact_match", percent),
        "Time": duration(facts["seconds"]),
    }


def _energy(facts: dict) -> str:
    return NO_VALUE if facts["kwh"] is None else energy(facts["kwh"] * JOULES_PER_KWH)


def _table() -> Table:
    """Returns a table with names on the left and values beside them."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("", style="dim", no_wrap=True)
    return table


def _texts(*values: Any) -> list[Text]:
    """Returns cells without markup, because a name may contain [brackets]."""
    return [
        Text(value if isinstance(value, str) else NO_VALUE if value is None else json.dumps(value)) for value in values
    ]


def finished(run, as_json: bool) -> None:
    """Prints a finished run's summary as JSON, or its results and the next commands for the user."""
    if as_json:
        print(json_text(summary(run), indent=2))
    else:
        print_rich(show_run(run))
        folder = quoted(run.folder)
        print(
            f"\nresult  {run.result}\nreport  {run.report_file}\nnext    tunesmith chat {folder}\n"
            f"        tunesmith export {folder} --to gguf"
        )
