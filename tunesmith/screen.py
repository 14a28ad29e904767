"""What a person sees while a run goes on: made from its events, so that the loop knows no screen."""

import json
import time

from rich import print as print_rich
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from tunesmith.data.records import describe
from tunesmith.data.rows import REASONS
from tunesmith.evaluate import overview

SECONDS_BETWEEN_LINES = 10


class Screen:
    """A live line on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self._began = time.monotonic()
        self._last_line = self._began
        self._steps = 0
        self._progress: Progress | None = None

    def encoding(self, rows: int, examples: int) -> None:
        """Progress of tokenising."""
        seconds = time.monotonic() - self._began
        if self._due():
            self.console.print(f"tokenising: {rows:,} rows, {rows / seconds:,.0f} rows/s", style="dim")

    def measured(self, found) -> None:
        """`found`: what was measured to fit (measure.Measured)."""
        sizes = ", ".join(f"{tokens:,} tokens in {peak / 1e9:.2f} GB" for tokens, peak in found.points)
        self.console.print(f"memory  measured {sizes}; {found.tokens:,} fit in {found.budget_bytes / 1e9:.2f} GB "
                           f"({found.seconds:.0f} s)")

    def data(self, dataset) -> None:
        """What became of the rows."""
        ledger = dataset.ledger
        formats = ", ".join(sorted(set(filter(None, dataset.formats))))  # a source without readable rows has none
        self.console.print(f"data    {ledger['read']:,} rows read ({formats}): "
                           f"{len(dataset.train):,} examples to learn from, {len(dataset.eval):,} held out")
        if dataset.eval_unused:
            self.console.print(f"        {dataset.eval_unused:,} more held-out examples are not evaluated: "
                               "data.eval_limit", style="yellow")
        for path, left_out in dataset.left_out.items():
            self.console.print(f"        left out of {path}: {', '.join(left_out)}", style="yellow", markup=False)
        for action in ("dropped", "shortened", "changed"):
            for reason, count in ledger[action].items():
                self.console.print(f"        {count:,} {action}: {REASONS[reason]}", style="yellow")
        if ledger["unread"]:
            self.console.print(f"        columns not read: {describe(ledger['unread'])}", style="yellow", markup=False)

    def show(self, event: str, values: dict) -> None:
        """Shows one event."""
        shown = getattr(self, f"_show_{event}", None)
        if shown:
            shown(**values)

    def _show_start(self, steps, rows, trainable_parameters, parameters, **_) -> None:
        self._steps = steps
        share = trainable_parameters / parameters
        self.console.print(f"model   {_count(parameters)} parameters, {_count(trainable_parameters)} trained "
                           f"({share:.1%}); {steps:,} steps")
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("step {task.completed}/{task.total}"), BarColumn(24), TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(), TextColumn("left,"), TimeElapsedColumn(), TextColumn("gone"),
                console=self.console, transient=True)
            self._task = self._progress.add_task("", total=steps, facts="")
            self._progress.start()
        self._began = time.monotonic()
        self._first_step = None

    def _show_step(self, step, loss, tokens_per_second, memory_bytes, **_) -> None:
        facts = f"loss {loss:.4f}  {tokens_per_second:,.0f} tokens/s  {memory_bytes / 2**30:.1f} GiB"
        self._first_step = self._first_step or step
        if self._progress:
            self._progress.update(self._task, completed=step, facts=facts)
        elif self._due() or step == self._steps:
            done = step - self._first_step + 1
            left = (time.monotonic() - self._began) / done * (self._steps - step)
            self.console.print(f"step {step}/{self._steps}  {facts}  {_clock(left)} left")

    def _show_eval(self, step, loss, rows, **_) -> None:
        self.console.print(f"eval    step {step}: held-out loss {loss:.4f} over {rows:,} rows")

    def _show_checkpoint(self, step, bytes, seconds, best, **_) -> None:
        note = ", best so far" if best else ""
        self.console.print(f"saved   step {step}: {bytes / 1e6:,.1f} MB in {seconds:.1f} s{note}", style="dim")

    def _show_compile(self, step, graphs, recompiles, seconds) -> None:
        self.console.print(f"compile step {step}: {graphs} graphs in {seconds:.1f} s"
                           + (", again as shapes changed" if recompiles else ""), style="dim")

    def _show_warning(self, message) -> None:
        self.console.print(f"warning {message}", style="yellow")

    def _show_resume(self, step) -> None:
        self.console.print(f"resume  after step {step}")

    def close(self) -> None:
        """Ends the live line."""
        if self._progress:
            self._progress.stop()

    def _show_stop(self, step, reason) -> None:
        self.close()
        self.console.print(f"stop    after step {step}: {reason.replace('_', ' ')}")

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


def finished(run, as_json: bool) -> None:
    """What came of a run: its summary as JSON for a program, else for a person, with what to do next."""
    if as_json:
        print(json.dumps(overview.summary(run), indent=2, ensure_ascii=False))
    else:
        show_run(run)
        print(f"\nresult  {run.result}\nreport  {run.report_file}\nnext    tunesmith chat {run.folder}")


def note(line: str) -> None:
    """A line about what goes on, beside the output."""
    Console(stderr=True, highlight=False).print(line, style="dim", markup=False)


def exported(found: dict) -> None:
    """What came of an export: `found` as of export.command."""
    if found["passed"] is None:
        print_rich(f"\n{found['folder']}: written, not compared with the trained model")
        return
    print_rich(_parity_table(found))
    for name, there in found["elsewhere"].items():
        if there["passed"] is None:
            note(f"note    not compared in {name}: {there['problem']}")
    print_rich(f"\n{found['folder']}: the trained model, as far as its format can be")


def _parity_table(found: dict) -> Table:
    """A column for each engine that was asked."""
    asked = [found, *(there for there in found["elsewhere"].values() if there["passed"] is not None)]
    shown = Table(title=f"exported beside trained, {found['rows']} {found['rows_from']}", title_justify="left")
    for column in ("", *(f"in {one['engine']}" for one in asked), "bound"):
        shown.add_column(column)

    def row(what: str, bound: str, value) -> None:
        shown.add_row(what, *map(value, asked), bound)

    def of_logits(text):
        return lambda one: text(one["logits"]) if one["logits"] else "not told"

    bound = found["bound"]
    row("ids of texts and conversations", "identical",
        lambda one: f"{one['tokens']['texts']} and {one['tokens']['conversations']}")
    for key, what in (("excused", "other ids, as noted"), ("not_expressed", "conversations not compared")):
        if any(one["tokens"][key] for one in asked):
            row(what, "", lambda one: ", ".join(map(repr, one["tokens"][key])))
    row("mean KL of logits, nats", f"{bound['kl']:g}", of_logits(lambda logits: f"{logits['mean_kl']:.2e}"))
    row("same first choice", f"{bound['top1']:.0%}", of_logits(lambda logits: f"{logits['top1_agreement']:.1%}"))
    row("largest drift of a logit, of the spread", "", of_logits(lambda logits: f"{logits['largest_drift']:.2e}"))
    row("answers that stop", f"{found['answers']['bound']:.0%}",
        lambda one: f"{one['answers']['stopped_of_them']} of {one['answers']['stopped_trained']}")
    row("answers word for word the same", "", lambda one: f"{one['answers']['identical']} of {one['answers']['asked']}")
    for name, values in found["measure"].items():
        row(f"{name.replace('_', ' ')}, trained {values['trained']:.4f}", "", lambda one: (
            "not told" if one["measure"][name]["exported"] is None else f"{one['measure'][name]['exported']:.4f}"))
    return shown


def show_run(run) -> None:
    print_rich(overview.show(run))


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
