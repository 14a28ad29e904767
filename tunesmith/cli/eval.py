"""`tunesmith eval`."""

from pathlib import Path

from rich import print as print_rich
from rich.console import Console

from tunesmith.cli.data import asked_for
from tunesmith.cli.parameters import Columns, Json, print_json
from tunesmith.cli.runs import TONES, show_run
from tunesmith.data.rows import REASONS
from tunesmith.errors import UserError
from tunesmith.evaluate import summary
from tunesmith.run import Run


def evaluate(
    run: Path, *, data: str | None = None, format: str = "auto", columns: Columns = [], as_json: Json = False
) -> None:
    """Show how a run did on its held-out rows, before and after; with --data, measure it on other rows.

    Args:
        run: The run's name or folder.
        data: File, folder, glob or hub:org/name of rows to measure the finished run on.
        format: The format of --data, if it is not to be recognised.
        columns: The file's own names of columns, like question=Frage answer=Antwort.
        as_json: Print the numbers as JSON.
    """
    from tunesmith.files import read_json

    opened = Run.open(run)
    if data:
        [source] = asked_for(data, None, format, columns, None, None).sources
        from tunesmith.cli.terminal import waiting

        with waiting(f"measuring {opened.name} on {data}"):
            from tunesmith.finetune.evaluation import evaluate as measure

            found = measure(opened, source)
    elif (found := read_json(opened.eval_file)) is None:
        raise UserError(
            f"{run}: not evaluated: it is not finished, or had no held-out rows; --data FILE measures a "
            "finished run on other rows"
        )
    if as_json:
        return print_json(found)

    if data:
        return evaluated(found)
    return print_rich(show_run(opened))


def evaluated(found: dict) -> None:
    """What a run answers on other data: `found` as of evaluation.evaluate."""
    console, verdict = Console(highlight=False), summary.verdict_on(found)
    console.print(verdict.text, style=TONES[verdict.tone])
    ledger = found["ledger"]
    console.print(f"{found['path']}: {ledger['read']:,} rows read, {found['rows']:,} measured", markup=False)
    for reason, count in ledger["dropped"].items():
        console.print(f"  {count:,} dropped: {REASONS[reason]}", style="yellow", markup=False)
    for sample in found["samples"]:
        console.print(f"\n{sample['prompt']}", style="bold", markup=False)
        for name in ("reference", "before", "after"):
            console.print(f"  {name:10}{' '.join(sample[name].split())}", markup=False)
