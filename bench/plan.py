"""Compares what `tunesmith plan` predicts with runs on a CPU: their peak resident memory and their speed.

    python bench/plan.py [--svg FILE]

Trains Llamas of random parameters on texts that fill every pass. Each run has a process of its own. Speeds are
predicted only after `tunesmith doctor --measure`. They are compared as such, and corrected as a run of the same kind
with other rows was wrong (planner/correction.py). The corrections that this machine has kept play no part.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from corpus import conversations, save_model, write_rows
from trials import heading

from tunesmith import Recipe, train
from tunesmith.machine import probe
from tunesmith.model.load import config_of
from tunesmith.planner.predict import predict
from tunesmith.run import settled_speed

SHAPES = ("5M", "30M")
LENGTHS = (512, 1024)  # tokens of a row; the first one's run corrects the second
CASES = {
    "LoRA": {"adapter": {"kind": "lora"}},
    "LoRA, recomputing": {"adapter": {"kind": "lora"}, "train": {"gradient_checkpointing": "on"}},
    "full": {"adapter": {"kind": "full"}},
    "full, recomputing": {"adapter": {"kind": "full"}, "train": {"gradient_checkpointing": "on"}},
    "bfloat16, Adafactor": {"adapter": {"kind": "full"}, "train": {"weights": "bfloat16", "optimizer": "adafactor"}},
}
PASS_TOKENS = 4096


@dataclass(frozen=True)
class Compared:
    """A run of so many tokens in each row."""

    name: str
    length: int
    predicted_bytes: int
    resident_bytes: int
    predicted_speed: float
    speed: float
    """Tokens per second."""
    corrected_speed: float | None = None


def recipe_of(folder: Path, shape: str, case: str, length: int) -> Recipe:
    asked = CASES[case]
    return Recipe.build(
        {
            "model": {"path": str(folder / shape)},
            "data": {"train": str(folder / "data.jsonl"), "eval_share": 0.0, "sequence_length": length},
            "method": {"name": "cpt"},
            "evaluate": {"samples": 0},
            "output": str(folder / "runs"),
        }
        | asked
        | {"train": {"batch": PASS_TOKENS // length, "max_steps": 6, "save_every": 100} | asked.get("train", {})}
    )


def measure(folder: Path, shape: str, case: str, length: int) -> None:
    """Prints the bytes that a run takes, and its tokens per second."""
    steps = train(recipe_of(folder, shape, case, length)).events("step")
    print(json.dumps([max(step["memory_bytes"] for step in steps), settled_speed(steps)]))


def compared(folder: Path, shape: str, case: str, length: int, corrected_by: Compared | None) -> Compared:
    command = [sys.executable, __file__, "--measure", str(folder), shape, case, str(length)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    resident, speed = json.loads(said.splitlines()[-1])
    found = predict(recipe_of(folder, shape, case, length), probe(), config_of(folder / shape), folder / shape)
    predicted = found.speed.tokens_per_second / found.correction
    corrected = predicted * corrected_by.speed / corrected_by.predicted_speed if corrected_by else None
    return Compared(f"{shape} {case}", length, found.tightest.nbytes, resident, predicted, speed, corrected)


def runs(folder: Path) -> Iterator[Compared]:
    texts = [{"text": row["messages"][-1]["content"] * 20} for row in conversations()]
    write_rows(folder / "data.jsonl", texts[:200])
    for shape in SHAPES:
        save_model(shape, folder / shape)
    for shape, case in product(SHAPES, CASES):
        before = None
        for length in LENGTHS:
            before = compared(folder, shape, case, length, before)
            yield before


def row(one: Compared) -> str:
    corrected = one.corrected_speed and f"{one.corrected_speed:,.0f} | {one.corrected_speed / one.speed:.2f}"
    return (
        f"| {one.name} | {one.length:,} | {one.predicted_bytes / 1e9:.2f} GB | {one.resident_bytes / 1e9:.2f} GB "
        f"| {one.predicted_bytes / one.resident_bytes:.2f} | {one.predicted_speed:,.0f} | {one.speed:,.0f} "
        f"| {one.predicted_speed / one.speed:.2f} | {corrected or '– | –'} |"
    )


def draw(found: list[Compared], file: Path) -> None:
    """Draws predictions over measurements; on the diagonal both are equal."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "tunesmith", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    from matplotlib import pyplot

    figure, (memory, speed) = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    corrected = [one for one in found if one.corrected_speed]
    memory.scatter([one.resident_bytes / 1e9 for one in found], [one.predicted_bytes / 1e9 for one in found])
    speed.scatter([one.speed for one in found], [one.predicted_speed for one in found], label="from measured rates")
    speed.scatter(
        [one.speed for one in corrected],
        [one.corrected_speed for one in corrected],
        label="corrected by an earlier run",
        marker="x",
    )
    speed.set(xscale="log", yscale="log")
    for axes, what in ((memory, "resident memory, GB"), (speed, "tokens/s")):
        ends = [min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])]
        axes.plot(ends, ends, color="grey", linewidth=1, zorder=0)
        axes.set(xlabel=f"measured {what}", ylabel=f"predicted {what}", xlim=ends, ylim=ends)
    speed.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--svg", type=Path, help="where to draw the comparison")
    asked.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.measure:
        folder, shape, case, length = given.measure
        return measure(Path(folder), shape, case, int(length))
    print("\n".join(heading("cpu")))
    print(f"\n`python bench/plan.py`: {PASS_TOKENS:,} tokens a pass and a step.\n")
    print("| run | row | predicted | resident | ratio | predicted tokens/s | measured | ratio | corrected | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory() as name:
        for one in runs(Path(name)):
            print(row(one), flush=True)
            found.append(one)
    if given.svg:
        draw(found, given.svg)


if __name__ == "__main__":
    main()
