"""`tunesmith demo`: makes what it needs, trains as `tunesmith train` would, and shows what came of it."""

import time
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunesmith.cli.parameters import DEFAULT_OUTPUT
from tunesmith.errors import quoted
from tunesmith.files import cache_folder, read_json
from tunesmith.recipe import Recipe, merge
from tunesmith.run import Run, free_name

STARTER = {
    "model": {"dtype": "float32"},
    "adapter": {"kind": "full"},
    "train": {"epochs": 1, "batch": 8, "learning_rate": 1e-3, "eval_every": 200},
}
# A model of the user's knows language already: a low-rank adapter and gentler steps teach it the facts.
OWN_MODEL = {"adapter": {"kind": "lora"}, "train": {"epochs": 1, "batch": 16, "learning_rate": 2e-4}}


def demo(*, model: str | None = None, output: Path = DEFAULT_OUTPUT) -> None:
    """The main job on real data, offline: a small model learns facts about Python's standard library.

    Args:
        model: Folder or hub id of a model of yours, instead of the small one that is made from the documentation.
        output: Where runs are.
    """
    demonstrate(model, output)


def demonstrate(model: str | None, output: Path) -> None:
    """Runs the demonstration and prints its table. `model`: a folder or hub id; None makes the starter model."""
    from tunesmith.cli.progress import train
    from tunesmith.demo import questions
    from tunesmith.demo.starter import cached_starter

    console, began = Console(highlight=False), time.monotonic()
    cache = cache_folder()
    console.rule("Questions about Python's standard library", align="left")
    base = model or cached_starter(cache)
    data = cache / "demo"
    data.mkdir(parents=True, exist_ok=True)
    run = train(recipe(str(base), *questions.write(data), output, OWN_MODEL if model else STARTER))
    _show(console, run, time.monotonic() - began)


def recipe(model: str, train_file: Path, eval_file: Path, output: Path, settings: dict) -> Recipe:
    """The demo's fine-tuning job, as `tunesmith train` would read it."""
    return Recipe.build(
        merge(
            {
                "model": {"path": model},
                "data": {"train": str(train_file), "eval": str(eval_file), "sequence_length": 256},
                "evaluate": {"exact_match": True, "max_new_tokens": 24},
                "name": free_name(output, f"{date.today()}-demo"),
                "output": str(output),
            },
            settings,
        ),
        "demo",
    )


def _show(console: Console, run: Run, seconds: float) -> None:
    found = read_json(run.eval_file)
    table = Table("reworded questions, unseen in training", "before", "after")
    right = [f"{found[side]['exact_match']['mean']:.1%}" for side in ("before", "after")]
    loss = [f"{found[side]['loss']['mean']:.3f}" for side in ("before", "after")]
    table.add_row(f"answers exactly right, of {found['rows']}", *right)
    table.add_row("held-out loss", *loss)
    answers = Table("question", "reference", "before", "after", show_lines=True)
    for sample in found["samples"]:
        answers.add_row(*(_short(sample[key]) for key in ("prompt", "reference", "before", "after")))
    console.print(table, answers)
    console.print(f"This took {seconds:.0f} s.\n\nrun     {run.folder}\nreport  {run.report_file}\n\nNext:")
    for command, what in (
        (f"tunesmith chat {quoted(run.folder)}", "ask it yourself; /base asks the untrained model"),
        (f"tunesmith export {quoted(run.folder)} --to merged", "one model folder for other programs"),
        ("tunesmith init --model MODEL --data FILE", "a recipe for a model and data of yours"),
    ):
        console.print(f"  {command}\n      {what}", soft_wrap=True)


def _short(text: str, most: int = 120) -> str:
    """One line for a table's cell; text of a model is not markup."""
    line = " ".join(text.split())
    return escape(line if len(line) <= most else line[: most - 1] + "…")
