"""Shows the progress of a run. It follows the run's events, so the training loop knows no screen."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from tunesmith.cli.plan_report import summary_lines
from tunesmith.cli.terminal import LiveLine, fitting
from tunesmith.data.records import describe
from tunesmith.data.rows import REASONS
from tunesmith.evaluate.energy import energy_in, joules_per_token
from tunesmith.finetune import job
from tunesmith.recipe import Recipe
from tunesmith.run import Run, settled_speed
from tunesmith.units import clock, count, percent, size

SECONDS_BETWEEN_LINES = 10
SECONDS_BETWEEN_READS = 0.1  # of the events


@contextmanager
def shown(run: Run) -> Iterator[None]:
    """Shows the events of a run on standard error, as they are written to its file, from now on."""
    ended = threading.Event()
    with open(run.events_file, "ab+") as file, closing(Screen(run.recipe)) as screen:
        file.seek(0, os.SEEK_END)
        follower = threading.Thread(target=_follow, args=(file, screen, ended), name="progress", daemon=True)
        follower.start()
        try:
            yield
        finally:
            ended.set()
            follower.join()


def _follow(file: BinaryIO, screen: "Screen", ended: threading.Event) -> None:
    """Shows the lines of a file that is written to, to its end once `ended` is set; the file may be removed."""
    part, last = b"", False
    while not last:
        last = ended.wait(SECONDS_BETWEEN_READS)  # before reading, as what was written before the end is shown too
        *lines, part = (part + file.read()).split(b"\n")
        for line in filter(None, lines):
            values = json.loads(line)
            screen.show(values.pop("event"), values)


def train(
    recipe: Recipe,
    cluster: str | None = None,
    apart: bool = False,
    force: bool = False,
    share_gpus: bool = False,
) -> Run:
    """Trains from a recipe, shows how it gets on, and returns the run. `cluster`: the address of a Ray cluster whose
    machines train, "auto" for the one that this machine is part of. `apart`: a single GPU has a process of its own too,
    as on the command line, so that a run on one that hangs ends; a script then calls this within
    `if __name__ == "__main__":`. `force`: train although the plan says that memory or the disk is too small.
    `share_gpus`: use GPUs on which another run trains too. Raises UserError, leaving nothing behind, where that cannot
    be."""
    return job.train(recipe, shown, cluster, apart, force, share_gpus)


def resume(
    folder: str | Path,
    processes: int | None = None,
    cluster: str | None = None,
    apart: bool = False,
    share_gpus: bool = False,
) -> Run:
    """Continues a run from its last complete checkpoint, shows its progress, and returns the run. `processes`: another
    number of training processes than before. `cluster`, `apart` and `share_gpus`: as of `train`. Raises UserError if
    the run is finished or another process works on it."""
    return job.resume(folder, shown, processes, cluster, apart, share_gpus)


class Screen:
    """A live line on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, recipe: Recipe, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self._recipe = recipe
        self._began = time.monotonic()
        self._last_line = self._began
        self._steps = 0
        self._predicted: float | None = None  # tokens per second
        self._first: list[dict] = []  # steps, until they show whether the prediction holds
        self._measured: list[dict] = []  # steps whose joules are known
        self._is_stopped = False
        self._live = LiveLine(self.console)

    def _show_stage(self, doing, **_) -> None:
        """On a terminal, shows the current stage until the next line."""
        self._live.show(lambda width: f"{doing} …"[:width], force=True)

    def _show_encoding(self, rows, seconds, **_) -> None:
        if self._due():
            self._say(f"tokenising: {rows:,} rows, {rows / seconds:,.0f} rows/s", style="dim")

    def _show_measured(self, points, tokens, budget_bytes, seconds, **_) -> None:
        sizes = ", ".join(f"{count:,} tokens in {size(peak)}" for count, peak in points)
        self._say(f"memory  measured {sizes}; {tokens:,} fit in {size(budget_bytes)} ({seconds:.0f} s)")

    def _show_plan(self, plan, steps, gpus, **_) -> None:
        """Shows the plan before training starts."""
        train, adapter, quantize = self._recipe.train, self._recipe.adapter, self._recipe.model.quantize
        threads = plan["processes"] * plan["threads"]
        where = "; ".join(f"{gpu['name']}, {size(gpu['bytes'])}" for gpu in gpus)
        where = where or f"CPU, {threads} thread{'s' if threads > 1 else ''}"
        base = f" over {quantize} weights" if quantize != "none" else ""
        what = "every weight" if adapter.kind == "full" else f"LoRA of rank {adapter.rank}{base}"
        recomputed = {"on": "recomputing activations", "off": "keeping activations"}.get(
            plan["gradient_checkpointing"], f"recomputing activations: {plan['gradient_checkpointing']}"
        )
        compute, reason = plan["compute"], plan["reasons"].get("compute")
        precision = compute if plan["weights"] == compute else f"{compute}, weights in {plan['weights']}"
        length = (
            ", limited by train.max_steps"
            if steps == train.max_steps
            else f": {train.epochs:g} epoch{'s' * (train.epochs != 1)}"
        )
        self._say(f"plan    on      {where}")
        self._say(f"        in      {precision}" + (f" ({reason})" if reason else ""))
        self._say(f"        trains  {what}; {train.optimizer}, learning rate {train.learning_rate:g}, {train.schedule}")
        self._say(f"        steps   {steps:,}, each of {train.batch} examples{length}")
        packed = "packed" if plan["packing"] else "padded"
        self._say(f"        passes  up to {plan['micro_batch_tokens']:,} tokens, {packed}, {recomputed}")
        if kept := plan.get("kept_layers"):
            counts = kept[:1] if len(set(kept)) == 1 else kept
            counted = " and ".join(map(str, counts))
            self._say(f"        layers  {counted} kept, the others come from host memory when they compute")
            if most := plan.get("walk_tokens"):
                self._say(f"                for {most:,} tokens at a time, whose inputs fit in host memory")
        if predicted := plan.get("predicted"):
            for name, why in predicted["left_out"].items():
                self._say(f"        {name} is left out: {why}", style="yellow")
            self._predicted = predicted["tokens_per_second"]
            for line in summary_lines(predicted):
                self._say(line)

    def _show_data(self, ledger, formats, examples, held_out, held_out_unused, left_out, **_) -> None:
        """Shows how many rows are used, dropped and changed."""
        names = ", ".join(sorted(set(filter(None, formats))))  # a source without readable rows has none
        self._say(
            f"data    {ledger['read']:,} rows read ({names}): {examples:,} examples to learn from, "
            f"{held_out:,} held out"
        )
        if held_out_unused:
            self._say(
                f"        {held_out_unused:,} more held-out examples are not evaluated: data.eval_limit", style="yellow"
            )
        for path, parts in left_out.items():
            self._say(f"        left out of {path}: {', '.join(parts)}", style="yellow")
        for action in ("dropped", "shortened", "changed"):
            for reason, rows in ledger[action].items():
                self._say(f"        {rows:,} {action}: {REASONS[reason]}", style="yellow")
        if ledger["unread"]:
            self._say(f"        columns not read: {describe(ledger['unread'])}", style="yellow")

    def show(self, event: str, values: dict) -> None:
        """Shows one event."""
        shown = getattr(self, f"_show_{event}", None)
        if shown:
            shown(**values)

    def _show_start(self, steps, trainable_parameters, parameters, loading_seconds, host_peak_bytes, **_) -> None:
        self._steps = steps
        share = trainable_parameters / parameters
        self._say(f"model   {count(parameters)} parameters, {count(trainable_parameters)} trained ({share:.1%})")
        self._say(f"        loaded in {loading_seconds:.1f} s, with up to {size(host_peak_bytes)} of host memory")
        self._began = time.monotonic()
        self._first_step = None

    def _show_step(self, step, loss, tokens_per_second, memory_bytes, tokens, seconds, joules=None, **_) -> None:
        if joules is not None:
            self._measured.append({"joules": joules, "tokens": tokens})
        self._first_step = self._first_step or step
        if self._predicted:
            self._compare(tokens, seconds)
        elapsed = time.monotonic() - self._began
        left = elapsed / (step - self._first_step + 1) * (self._steps - step)
        parts = [
            (0, f"step {step}/{self._steps}"),
            (1, f"loss {loss:.4f}"),
            (3, f"{tokens_per_second:,.0f} tokens/s"),
            (5, size(memory_bytes)),
            (4, f"{clock(elapsed)} elapsed"),
            (2, f"{clock(left)} left"),
        ]
        if self._live.is_shown:
            self._live.show(lambda width: fitting(parts, step / self._steps, width), force=step == self._steps)
        elif self._due() or step == self._steps:
            self._say("  ".join(text for priority, text in parts if priority != 4))

    def _compare(self, tokens: int, seconds: float) -> None:
        """Compares the speed with the plan's once there are enough steps."""
        self._first.append({"tokens": tokens, "seconds": seconds})
        if measured := settled_speed(self._first):
            self._say(f"speed   {measured:,.0f} tokens/s, {percent(measured / self._predicted)} of the plan's")
            self._predicted = None

    def _show_eval(self, step, loss, rows, **_) -> None:
        self._say(f"eval    step {step}: held-out loss {loss:.4f} over {rows:,} rows")

    def _show_checkpoint(self, step, bytes, seconds, best, **_) -> None:
        note = ", best so far" if best else ""
        self._say(f"saved   step {step}: {size(bytes)} in {seconds:.1f} s{note}", style="dim")

    def _show_compile(self, step, graphs, recompiles, seconds, **_) -> None:
        self._say(
            f"compile step {step}: {graphs} graphs in {seconds:.1f} s"
            + (", again as shapes changed" if recompiles else ""),
            style="dim",
        )

    def _show_warning(self, message, **_) -> None:
        self._say(f"warning {message}", style="yellow")

    def _show_pause(self, step, **_) -> None:
        self._say(f"pause   after step {step}; a checkpoint is saved, the model stays in memory")

    def _show_continue(self, step, seconds, **_) -> None:
        self._say(f"resume  after step {step}, paused for {clock(seconds)}")
        self._began += seconds

    def _show_recovered(self, step, processes, cause, **_) -> None:
        self._say(f"recover {cause}; training continues after step {step} with {_processes(processes)}", style="yellow")

    def _show_resume(self, step, processes=None, **_) -> None:
        self._say(f"resume  after step {step}" + (f", with {_processes(processes)}" if processes else ""))

    def close(self) -> None:
        """Takes the live line away."""
        self._live.clear()

    def _show_energy(self, joules, **values) -> None:
        """Shows the energy of the whole run, once that is known."""
        if self._is_stopped and joules is not None:
            taken = energy_in(values | {"joules": joules}, joules_per_token(self._measured), self._recipe.power)
            self._say(f"energy  {taken.text}")

    def _show_stop(self, step, reason, **_) -> None:
        self._is_stopped = True
        self._say(f"stop    after step {step}: {reason.replace('_', ' ')}")

    def _say(self, line: str, style: str | None = None) -> None:
        """Prints a line of its own; text of users and models is not markup."""
        self._live.clear()
        self.console.print(line, style=style, markup=False)

    def _due(self) -> bool:
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True


def _processes(number: int) -> str:
    return f"{number} process{'es' if number > 1 else ''}"
