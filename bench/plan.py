"""Compares what `tunesmith plan` predicts with a run on a CPU: its peak resident memory and its speed.

    python bench/plan.py [--shape 30M]

Trains Llamas of random parameters on texts that fill every pass. Each run has a process of its own. Speeds are
predicted only after `tunesmith doctor --measure`, and without the corrections of earlier runs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from corpus import conversations, save_model, write_rows
from trials import heading

from tunesmith import Recipe, train
from tunesmith.machine import probe
from tunesmith.model.load import config_of
from tunesmith.planner.predict import predict
from tunesmith.run import settled_speed

CASES = {
    "LoRA": {"adapter": {"kind": "lora"}},
    "LoRA, recomputing": {"adapter": {"kind": "lora"}, "train": {"gradient_checkpointing": "on"}},
    "full": {"adapter": {"kind": "full"}},
    "full, recomputing": {"adapter": {"kind": "full"}, "train": {"gradient_checkpointing": "on"}},
    "bfloat16, Adafactor": {"adapter": {"kind": "full"}, "train": {"weights": "bfloat16", "optimizer": "adafactor"}},
}


def recipe_of(folder: Path, case: str) -> Recipe:
    asked = CASES[case]
    return Recipe.build(
        {
            "model": {"path": str(folder / "model")},
            "data": {"train": str(folder / "data.jsonl"), "eval_share": 0.0, "sequence_length": 512},
            "method": {"name": "cpt"},
            "evaluate": {"samples": 0},
            "output": str(folder / "runs"),
        }
        | asked
        | {"train": {"batch": 8, "max_steps": 6, "save_every": 100} | asked.get("train", {})}
    )


def measure(folder: Path, case: str) -> None:
    """Prints the bytes that a run takes, and its tokens per second."""
    steps = train(recipe_of(folder, case)).events("step")
    print(json.dumps([max(step["memory_bytes"] for step in steps), settled_speed(steps)]))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--shape", default="30M")
    asked.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.measure:
        return measure(Path(given.measure[0]), given.measure[1])
    print("\n".join(heading("cpu")))
    print(f"\n`python bench/plan.py --shape {given.shape}`: 4,096 tokens a pass.\n")
    print(
        "| run | predicted | resident | ratio | predicted tokens/s | measured | ratio |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(given.shape, folder / "model")
        write_rows(
            folder / "data.jsonl", [{"text": row["messages"][-1]["content"] * 20} for row in conversations()][:200]
        )
        for case in CASES:
            command = [sys.executable, __file__, "--measure", str(folder), case]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            resident, speed = json.loads(said.splitlines()[-1])
            model = folder / "model"
            found = predict(recipe_of(folder, case), probe(), config_of(model), model)
            needed = found.tightest.nbytes
            predicted = found.speed.tokens_per_second / found.correction if found.speed else None
            speeds = (
                f"{predicted:,.0f} | {speed:,.0f} | {predicted / speed:.2f}" if predicted else f"– | {speed:,.0f} | –"
            )
            print(
                f"| {case} | {needed / 1e9:.2f} GB | {resident / 1e9:.2f} GB | {needed / resident:.2f} | {speeds} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
