"""Speed and memory of Tunesmith beside TRL: python bench/run.py [--quick] [--full] [--device cuda].

Prints tables and writes them to bench/results/. Each trial is a process of its own; those of the two tools alternate,
so that what else the machine does falls on both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import corpus
from measure import HELD_OUT_ROWS, SEQUENCE_LENGTH, Case
from trials import heading, results_file, trial

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.machine import probe

VARIANTS = ("padded, same rows a step", "padded, group_by_length", "padded, group_by_length, whole batch",
            "packed bfd")
CASES = [("small", adapter, dtype) for adapter in ("full", "lora") for dtype in ("float32", "bfloat16")]
CASES += [("large", "full", "float32"), ("large", "lora", "bfloat16")]
QUICK = [("small", "full", "float32"), ("small", "lora", "bfloat16")]
BATCH = {"small": 32, "large": 16}
STEPS, WARMUP = 8, 2
TRIED = {"steps": 4, "warmup": 1}  # what finds the best of VARIANTS, and the steps whose losses are compared
SIZES = {"1 KB": 10**3, "100 MB": 10**8, "1 GB": 10**9}


def prepare(folder: Path) -> None:
    """Models and rows; those longer than the sequence length go, as the tools treat them differently."""
    for shape in corpus.SHAPES:
        corpus.save_model(shape, folder / shape)
    tokenizer = Tokenizer.load(folder / "small")
    rows = [r for r in corpus.conversations()
            if len(tokenizer.encode(tokenizer.render(r["messages"]))[0]) <= SEQUENCE_LENGTH]
    corpus.write_rows(folder / "held_out.jsonl", rows[:HELD_OUT_ROWS])
    train = rows[HELD_OUT_ROWS:]
    corpus.write_rows(folder / "train.jsonl", train)
    for batch in set(BATCH.values()):
        order = Schedule(np.ones(len(train)), batch, 10, 0).epoch(0)
        corpus.write_rows(folder / f"ordered-{batch}.jsonl", [train[i] for i in order])


def speed(folder: Path, cases, repeats: int, device: str):
    """Markdown rows: both tools' rates, TRL's best settings, and whether both learned the same."""
    yield "`a / b`: Tunesmith / TRL.\n"
    yield ("| model | trained | precision | Tunesmith tokens/s | TRL tokens/s | ratio | supervised tokens/s | "
           "tokens per core-second | held-out loss | step losses differ | TRL's settings, tokens/s when tried |")
    yield "|" + "---|" * 11
    for shape, adapter, dtype in cases:
        def once(tool: str, variant: str = "", **changes) -> dict:
            values = dict(tool=tool, shape=shape, adapter=adapter, dtype=dtype, batch=BATCH[shape], steps=STEPS,
                          warmup=WARMUP, folder=str(folder), device=device, variant=variant) | changes
            return trial(f"{tool}_trial.py", Case(**values).dumps())

        tried = {v: once("trl", v, **TRIED) for v in VARIANTS}
        best = max(tried, key=lambda v: tried[v]["tokens_per_core_second"])
        ours, theirs = [], []
        for _ in range(repeats):
            ours.append(once("tunesmith"))
            theirs.append(once("trl", best))
        same = max(abs(a - b) / b for a, b in zip(ours[0]["losses"], tried[VARIANTS[0]]["losses"]))
        ratio = statistics.median(a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, theirs))
        yield (f"| {shape} | {adapter} | {dtype} | {spread(ours, 'tokens_per_second')} | "
               f"{spread(theirs, 'tokens_per_second')} | {ratio:.2f} | {both(ours, theirs, 'supervised_per_second')} | "
               f"{both(ours, theirs, 'tokens_per_core_second')} | "
               f"{ours[0]['held_out']:.3f} / {theirs[0]['held_out']:.3f} | {same:.1e} | {settings(tried, best)} |")


def settings(tried: dict, best: str) -> str:
    found = {v: f"{v}: {r['tokens_per_second']:.0f}" for v, r in tried.items()}
    return "; ".join(f"**{text}**" if v == best else text for v, text in found.items())


def spread(results: list[dict], key: str) -> str:
    values = [r[key] for r in results]
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def both(ours: list[dict], theirs: list[dict], key: str) -> str:
    return " / ".join(f"{statistics.median(r[key] for r in side):.0f}" for side in (ours, theirs))


def data_path(folder: Path, sizes: list[str]):
    yield "| file | rows | tokens | encode rows/s | encode tokens/s | pack rows/s | peak memory, process tree |"
    yield "|" + "---|" * 7
    for size in sizes:
        file = folder / "data.jsonl"
        corpus.write_bytes(file, SIZES[size])
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            r = trial("data_trial.py", str(file), str(folder / "small"), cache, watch_memory=True)
        file.unlink()
        yield (f"| {size} | {r['rows']} | {r['tokens']} | {r['rows'] / r['encode_seconds']:.0f} | "
               f"{r['tokens'] / r['encode_seconds']:.0f} | {r['rows'] / r['pack_seconds']:.0f} | "
               f"{r['tree_bytes'] / 1e6:.0f} MB |")


def first_step(folder: Path, repeats: int):
    """Seconds from the command to the first step event. The first run fills the cache and is not counted."""
    recipe = {"model": {"path": str(folder / "small")}, "data": {"train": str(folder / "train.jsonl"), "eval_share": 0},
              "train": {"max_steps": 1}, "output": str(folder / "runs")}
    recipe_file, seconds = folder / "recipe.yaml", []
    for number in range(repeats + 1):
        run = folder / "runs" / f"first-{number}"
        recipe_file.write_text(json.dumps(recipe | {"name": run.name}))  # JSON is YAML
        began = time.time()
        subprocess.run([Path(sys.executable).with_name("tunesmith"), "train", recipe_file], check=True,
                       stdout=subprocess.DEVNULL)
        events = map(json.loads, (run / "events.jsonl").open(encoding="utf-8"))
        seconds.append(next(e["time"] for e in events if e["event"] == "step") - began)
    yield f"median {statistics.median(seconds[1:]):.1f} s ({min(seconds[1:]):.1f} to {max(seconds[1:]):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small cases, one repeat")
    parser.add_argument("--full", action="store_true", help="also the data path on 1 GB")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("speed", "data", "first"), help="one part alone")
    asked = parser.parse_args()
    if (asked.device == "cuda") != bool(probe().cards):
        parser.error(f"--device {asked.device}: Tunesmith trains on the card where there is one, and only there")
    repeats = 1 if asked.quick else 3
    sizes = list(SIZES)[: 3 if asked.full else 2]
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
        folder = Path(name)
        os.environ |= {"TUNESMITH_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        prepare(folder)
        parts = {"speed": ("Training", speed(folder, QUICK if asked.quick else CASES, repeats, asked.device)),
                 "data": ("Data path", data_path(folder, sizes)),
                 "first": ("Command to first step, warm cache", first_step(folder, repeats))}
        with open(results_file(f"-{asked.only}" if asked.only else ""), "w", encoding="utf-8") as file:
            for line in _lines(heading(asked.device), [p for k, p in parts.items() if asked.only in (None, k)]):
                print(line, flush=True)
                print(line, file=file, flush=True)


def _lines(heading, parts):
    yield from heading
    for title, lines in parts:
        yield f"\n## {title}\n"
        yield from lines


if __name__ == "__main__":
    main()
