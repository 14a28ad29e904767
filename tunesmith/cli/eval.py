"""`tunesmith eval`."""

from pathlib import Path

from rich import print as print_rich
from rich.console import Console

from tunesmith.cli.data import select
from tunesmith.cli.parameters import Columns, Json, print_json
from tunesmith.cli.runs import TONES, show_run
from tunesmith.data.rows import REASONS
from tunesmith.errors import UserError
from tunesmith.evaluate import summary
from tunesmith.run import Run


def evaluate(
    run: Path, *, data: str | None = None, format: str = "auto", columns: Columns = [], as_json: Json = False
) -> None:
    """Compare a run's model with its base on the held-out rows. With --data, measure it on other rows.

    Args:
        run: The run's name or folder.
        data: File, folder, glob or hub:org/name of rows to measure the finished run on.
        format: The format of --data, instead of recognising it.
        columns: The file's own column names, like question=Frage answer=Antwort.
        as_json: Print the numbers as JSON.
    """
    from tunesmith.files import read_json

    opened = Run.open(run)
    if data:
        [source] = select(data, None, format, columns, None, None).sources
        from tunesmith.cli.terminal import waiting

        with waiting(f"measuring {opened.name} on {data}"):
            from tunesmith.finetune.evaluation import evaluate as measure

            evaluation = measure(opened, source)
    elif (evaluation := read_json(opened.eval_file)) is None:
        raise UserError(
            f"{run}: has no evaluation, because it is not finished or has no held-out rows; use --data FILE to "
            "measure a finished run on other rows"
        )
    if as_json:
        return print_json(evaluation)

    if data:
        return print_evaluation(evaluation)
    return print_rich(show_run(opened))


def print_evaluation(evaluation: dict) -> None:
    """Prints a run's results on other data, as returned by finetune.evaluation.evaluate."""
    console, verdict = Console(highlight=False), summary.verdict_on(evaluation)
    console.print(verdict.text, style=TONES[verdict.tone])
    ledger = evaluation["ledger"]
    console.print(f"{evaluation['path']}: {ledger['read']:,} rows read, {evaluation['rows']:,} measured", markup=False)
    for reason, count in ledger["dropped"].items():
        console.print(f"  {count:,} dropped: {REASONS[reason]}", style="yellow", markup=False)
    for sample in evaluation["samples"]:
        console.print(f"\n{sample['prompt']}", style="bold", markup=False)
        for name in ("reference", "before", "after"):
            console.print(f"  {name:10}{' '.join(sample[name].split())}", markup=False)
