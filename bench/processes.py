"""Compares one and two processes on a CPU, one thread each: tokens/s, and how long they exchange gradients.

    python bench/processes.py [--model FOLDER] [--repeats 3] [--steps 3] [--batch 8]

Every method trains an adapter and the whole model, in float32, on Python's own documentation. By default the model is a
Llama of 30M random parameters. The first steps of a run are left out. A second process is a second core, so a ratio of
2.00 is the most there is to gain. The exchange includes waiting for the process that computes longer.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, here and in the training processes
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from corpus import conversations, save_model, write_rows
from trials import heading

from tunesmith import Recipe, train
from tunesmith.data.rows import Chat, Row, Text
from tunesmith.recipe import METHODS

SHAPE, SEQUENCE_LENGTH, WARM_UP = "30M", 512, 1
CHARACTERS = range(250, 700)  # of a row, about 60 to 200 tokens
PROCESSES = (1, 2)


def texts() -> list[dict]:
    """The answers of the conversations, one after the other."""
    return [{"text": row["messages"][-1]["content"]} for row in conversations()]


ROWS: dict[type[Row], Callable[[], list[dict]]] = {Text: texts, Chat: conversations}
"""Rows of each kind. A method learns from the first kind here that it reads."""


@dataclass(frozen=True)
class Options:
    model: Path
    folder: Path
    steps: int
    batch: int


@dataclass(frozen=True)
class Case:
    method: str
    adapter: str
    processes: int


@dataclass(frozen=True)
class Speed:
    tokens_per_second: float
    exchange_seconds: float
    """Mean of a step."""


def measure(case: Case, options: Options, repeat: int) -> Speed:
    recipe = Recipe.build(
        {
            "model": {"path": str(options.model), "dtype": "float32"},
            "data": {
                "train": str(options.folder / f"{case.method}.jsonl"),
                "eval_share": 0.0,
                "sequence_length": SEQUENCE_LENGTH,
            },
            "method": {"name": case.method},
            "adapter": {"kind": case.adapter},
            "train": {
                "processes": case.processes,
                "batch": options.batch,
                "max_steps": WARM_UP + options.steps,
                "save_every": 1000,
                "shares": "equal",
            },
            "evaluate": {"samples": 0},
            "output": str(options.folder / "runs"),
            "name": f"{case.method}-{case.adapter}-{case.processes}-{repeat}",
        }
    )
    steps = train(recipe).events("step")[WARM_UP:]
    seconds = sum(step["seconds"] for step in steps)
    exchanged = sum(step.get("exchange_seconds", 0.0) for step in steps)
    return Speed(sum(step["tokens"] for step in steps) / seconds, exchanged / len(steps))


def make_rows(method: str, options: Options) -> str | None:
    """Writes as many rows as the steps need. Returns why it cannot."""
    kind = next((kind for kind in ROWS if kind in METHODS[method].reads), None)
    if kind is None:
        names = ", ".join(kind.__name__ for kind in METHODS[method].reads)
        return f"this script makes no rows for it ({names})"
    of_length = (row for row in ROWS[kind]() if len(str(row)) in CHARACTERS)
    rows = list(islice(of_length, (WARM_UP + options.steps) * options.batch))
    write_rows(options.folder / f"{method}.jsonl", rows)
    return None


def spread(values: Sequence[float], digits: int = 0) -> str:
    """The median, and the smallest and largest value."""
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def compare(method: str, adapter: str, options: Options, repeats: int) -> None:
    """Prints a row of the table. Runs with one and two processes alternate, so that a machine that slows down meanwhile
    slows down both."""
    found: dict[int, list[Speed]] = {processes: [] for processes in PROCESSES}
    for repeat in range(repeats):
        for processes in PROCESSES:
            found[processes].append(measure(Case(method, adapter, processes), options, repeat))
    one, two = ([speed.tokens_per_second for speed in found[processes]] for processes in PROCESSES)
    ratio = statistics.median(two) / statistics.median(one)
    exchange = spread([speed.exchange_seconds for speed in found[2]], 2)
    print(f"| {method} | {adapter} | {spread(one)} | {spread(two)} | {ratio:.2f} | {exchange} |", flush=True)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--model", type=Path)
    asked.add_argument("--repeats", type=int, default=3)
    asked.add_argument("--steps", type=int, default=3)
    asked.add_argument("--batch", type=int, default=8)
    given = asked.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = Options(given.model or folder / "model", folder, given.steps, given.batch)
        print("\n".join(heading("cpu")))
        if not given.model:
            save_model(SHAPE, options.model)
        what = given.model.name if given.model else f"a Llama of {SHAPE} random parameters"
        print(
            f"\n`python bench/processes.py`: {what}, {given.batch} rows a step, {given.repeats} runs of each case, ",
            end="",
        )
        print(f"{given.steps} steps of each run. Medians, with the smallest and largest run.\n")
        print("| method | adapter | tokens/s, 1 process | tokens/s, 2 processes | 2 over 1 | exchange, s of a step |")
        print("|---|---|---|---|---|---|")
        for method in sorted(METHODS):
            if problem := make_rows(method, options):
                print(f"| {method} | | {problem} | | | |")
                continue
            for adapter in ("lora", "full"):
                compare(method, adapter, options, given.repeats)
    print(f"\nIt took {time.monotonic() - began:.0f} s.")


if __name__ == "__main__":
    main()
