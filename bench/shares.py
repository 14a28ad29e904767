"""Compares equal and measured shares: tokens/s of two processes, one of which is made slower.

    python bench/shares.py

A pass of the slow process sleeps three times as long for each token, so long that sleep dominates. Each rate is that of
the second half of the steps.
"""

import tempfile
import time
from pathlib import Path

from trials import heading

from tests import tiny
from tunesmith import Recipe, train
from tunesmith.finetune import launch, worker
from tunesmith.training import distributed, loop

SECONDS_PER_TOKEN = (1e-3, 3e-3)
STEPS, FIRST = 16, 8


def slow_second(folder: Path) -> None:
    gradients = loop._gradients

    def sleeping(job, state, data, units, tokens):
        time.sleep(data.tokens * SECONDS_PER_TOKEN[distributed.rank()])
        return gradients(job, state, data, units, tokens)

    loop._gradients = sleeping
    worker.work(folder)


def rate(folder: Path, shares: str) -> tuple[float, list[float]]:
    """Tokens a second, and the last shares."""
    run = train(
        Recipe.model_validate(
            {
                "model": {"path": str(folder / "model")},
                "data": {"train": str(folder / "data.jsonl"), "sequence_length": 256},
                "train": {"max_steps": STEPS, "batch": 32, "processes": 2, "shares": shares},
                "evaluate": {"samples": 0},
                "output": str(folder / "runs"),
                "name": shares,
            }
        )
    )
    steps = run.events("step")
    later = steps[FIRST:]
    return sum(s["tokens"] for s in later) / sum(s["seconds"] for s in later), steps[-1].get("shares", [0.5, 0.5])


def main() -> None:
    start = launch.launch
    launch.launch = lambda entry, processes, folder: start(slow_second, processes, folder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.save("llama3", folder / "model")
        rows = (f'{{"prompt": "What is {n} times {n}?", "completion": "It is {n * n}."}}\n' for n in range(400))
        (folder / "data.jsonl").write_text("".join(rows), "utf-8")
        rates = {shares: rate(folder, shares) for shares in ("equal", "measured")}
    print("\n".join(heading("cpu")))
    for shares, (found, last) in rates.items():
        print(f"{shares:10} {found:6.0f} tokens/s, shares {last}")
    print(f"measured over equal: {rates['measured'][0] / rates['equal'][0]:.2f}; at best 2.00")


if __name__ == "__main__":
    main()
