"""`tunesmith demo`: builds a model and data, trains as `tunesmith train` does, and shows the results."""

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
# A pretrained model of the user's needs only a low-rank adapter and a lower learning rate to learn the facts.
OWN_MODEL = {"adapter": {"kind": "lora"}, "train": {"epochs": 1, "batch": 16, "learning_rate": 2e-4}}


def demo(*, model: str | None = None, output: Path = DEFAULT_OUTPUT) -> None:
    """Fine-tune a small model offline on facts about Python's standard library.

    Args:
        model: Folder or hub id of your own model, instead of the small one that is built from the documentation.
        output: The folder of runs.
    """
    demonstrate(model, output)


def demonstrate(model: str | None, output: Path) -> None:
    """Runs the demonstration and prints its results. `model` is a folder or hub id; None builds the starter model."""
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
    """Returns the recipe of the demo's fine-tuning."""
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
    evaluation = read_json(run.eval_file)
    table = Table("reworded questions, unseen in training", "before", "after")
    right = [f"{evaluation[side]['exact_match']['mean']:.1%}" for side in ("before", "after")]
    loss = [f"{evaluation[side]['loss']['mean']:.3f}" for side in ("before", "after")]
    table.add_row(f"answers exactly right, of {evaluation['rows']}", *right)
    table.add_row("held-out loss", *loss)
    answers = Table("question", "reference", "before", "after", show_lines=True)
    for sample in evaluation["samples"]:
        answers.add_row(*(_short(sample[key]) for key in ("prompt", "reference", "before", "after")))
    console.print(table, answers)
    console.print(f"This took {seconds:.0f} s.\n\nrun     {run.folder}\nreport  {run.report_file}\n\nNext:")
    for command, what in (
        (f"tunesmith chat {quoted(run.folder)}", "chat with the model; /base switches to the untrained one"),
        (f"tunesmith export {quoted(run.folder)} --to merged", "write one model folder for other programs"),
        ("tunesmith init --model MODEL --data FILE", "write a recipe for your own model and data"),
    ):
        console.print(f"  {command}\n      {what}", soft_wrap=True)


def _short(text: str, most: int = 120) -> str:
    """Shortens text to one line for a table's cell, and escapes rich's markup."""
    line = " ".join(text.split())
    return escape(line if len(line) <= most else line[: most - 1] + "…")
