"""Speed and memory of Tunesmith beside its peers: python bench/run.py [--quick] [--full] [--device cuda].

Prints tables and writes them to bench/results/. Each trial is a process of its own; those of the tools alternate, so
that what else the machine does falls on all.
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
import numpy as np
from measure import HELD_OUT_ROWS, SEQUENCE_LENGTH, Case
from operations import CONVENTION, per_token
from peers import SAME, VARIANTS, python_of
from trials import heading, matmul_rates, results_file, trial

from tunesmith.data.row_order import Schedule
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.machine import probe

CASES = [
    (shape, adapter, dtype)
    for shape in corpus.SHAPES
    for adapter in ("full", "lora")
    for dtype in ("float32", "bfloat16")
]
QUICK = [("5M", "full", "float32"), ("5M", "lora", "bfloat16")]
BATCH = {"5M": 32, "30M": 16, "100M": 16}
STEPS, WARMUP, REPEATS = 6, 1, 5
TRIED = {"steps": 3, "warmup": 1}  # what finds a peer's best settings, and the steps whose losses are compared
SIZES = {"1 KB": 10**3, "100 MB": 10**8, "1 GB": 10**9}


def prepare(folder: Path) -> None:
    """Models and rows; those longer than the sequence length go, as the tools treat them differently."""
    for shape in corpus.SHAPES:
        corpus.save_model(shape, folder / shape)
    tokenizer = Tokenizer.load(folder / "5M")
    rows = [
        r
        for r in corpus.conversations()
        if len(tokenizer.encode(tokenizer.render(r["messages"]))[0]) <= SEQUENCE_LENGTH
    ]
    train = rows[HELD_OUT_ROWS:]
    corpus.write_rows(folder / "held_out.jsonl", rows[:HELD_OUT_ROWS])
    corpus.write_rows(folder / "train.jsonl", train)
    for batch in set(BATCH.values()):
        order = Schedule(np.ones(len(train)), batch, 10, 0).epoch(0)
        corpus.write_rows(folder / f"ordered-{batch}.jsonl", [train[i] for i in order])


def speed(folder: Path, cases, peers: list[str], repeats: int, device: str):
    """Markdown lines: a row for each case and tool, then what each peer's settings gave when tried."""
    rates = matmul_rates(device)
    yield "Matmul rate: " + ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items())
    yield (
        f'\n{repeats} repeats of {STEPS - WARMUP} steps after warm-up: median (least to most). "ratio" is the median '
        f"of the repeats' ratios. Share of the matmul rate (6N + attention): {CONVENTION}. Losses of the first steps "
        "are compared with the peer's under \"" + SAME + '".\n'
    )
    yield (
        "| model | trained | precision | tool | settings | tokens/s | ratio | share of matmul rate | supervised "
        "tokens/s | tokens per core-second | peak memory | held-out loss | first losses differ |"
    )
    yield "|" + "---|" * 13
    tried = []
    for case in cases:
        found = _compared(folder, case, peers, repeats, device)
        lines = [_tried(case, tool, results) for tool, (_, results, _) in found.items() if results]
        for line in lines:  # below the table they come only when all is done
            print(line, file=sys.stderr, flush=True)
        tried += lines
        for tool, (best, results, repeated) in found.items():
            if repeated:
                yield _row(folder, case, tool, best, results, repeated, found["tunesmith"][2], rates)
    yield "\nSettings tried, tokens/s:\n"
    yield from tried


def _compared(folder: Path, case, peers: list[str], repeats: int, device: str) -> dict[str, tuple]:
    """{tool: (its best settings, what all its settings gave when tried, results of the repeats)}."""
    shape, adapter, dtype = case

    def once(tool: str, variant: str = "", **changes) -> dict:
        values = (
            dict(
                tool=tool,
                shape=shape,
                adapter=adapter,
                dtype=dtype,
                batch=BATCH[shape],
                steps=STEPS,
                warmup=WARMUP,
                folder=str(folder),
                device=device,
                variant=variant,
            )
            | changes
        )
        return trial(f"{tool}_trial.py", Case(**values).dumps(), python=python_of(tool))

    def attempt(tool: str, variant: str) -> dict:
        try:
            return once(tool, variant, **TRIED)
        except RuntimeError as error:
            return {"problem": str(error).splitlines()[-1]}

    found = {"tunesmith": ("", {}, [])}
    for tool in peers:
        results = {variant: attempt(tool, variant) for variant in VARIANTS[tool]}
        best = max(results, key=lambda v: results[v].get("tokens_per_core_second", 0))
        found[tool] = (best, results, [])
    for _ in range(repeats):
        for tool, (best, results, repeated) in found.items():
            if not results or "problem" not in results[best]:
                repeated.append(once(tool, best))
    return found


def _row(folder: Path, case, tool: str, best: str, tried: dict, repeated: list[dict], ours: list[dict], rates) -> str:
    from transformers import AutoConfig

    shape, adapter, dtype = case
    rate = statistics.median(r["tokens_per_second"] for r in repeated)
    mean = repeated[0]["tokens_per_step"] / BATCH[shape]
    supervised = repeated[0]["supervised_per_second"] / repeated[0]["tokens_per_second"]
    work = per_token(AutoConfig.from_pretrained(folder / shape), mean, adapter == "full", supervised)
    ratio = statistics.median(a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, repeated))
    losses = tried.get(SAME, {}).get("losses", [])
    differ = max((abs(a - b) / b for a, b in zip(ours[0]["losses"], losses)), default=None)
    return (
        f"| {shape} | {adapter} | {dtype} | {tool} | {best} | {_spread(repeated, 'tokens_per_second')} | "
        f"{ratio:.2f} | {rate * work / rates[dtype]:.0%} | {_median(repeated, 'supervised_per_second'):.0f} | "
        f"{_median(repeated, 'tokens_per_core_second'):.0f} | {_median(repeated, 'peak_bytes') / 1e9:.2f} GB | "
        f"{repeated[0]['held_out']:.3f} | {'' if differ is None else f'{differ:.1e}'} |"
    )


def _tried(case, tool: str, results: dict) -> str:
    each = (f"{v} {r['problem'] if 'problem' in r else round(r['tokens_per_second'])}" for v, r in results.items())
    return f"- {' '.join(case)}, {tool}: " + "; ".join(each)


def _median(results: list[dict], key: str) -> float:
    return statistics.median(r[key] for r in results)


def _spread(results: list[dict], key: str) -> str:
    values = [r[key] for r in results]
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def data_path(folder: Path, sizes: list[str]):
    yield "| file | rows | tokens | encode rows/s | encode tokens/s | pack rows/s | peak memory, process tree |"
    yield "|" + "---|" * 7
    for size in sizes:
        file = folder / "data.jsonl"
        corpus.write_bytes(file, SIZES[size])
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            r = trial("data_trial.py", str(file), str(folder / "5M"), cache, watch_memory=True)
        file.unlink()
        yield (
            f"| {size} | {r['rows']} | {r['tokens']} | {r['rows'] / r['encode_seconds']:.0f} | "
            f"{r['tokens'] / r['encode_seconds']:.0f} | {r['rows'] / r['pack_seconds']:.0f} | "
            f"{r['tree_bytes'] / 1e6:.0f} MB |"
        )


def first_step(folder: Path, repeats: int):
    """Seconds from the command to the first step event. The first run fills the cache and is not counted."""
    recipe = {
        "model": {"path": str(folder / "5M")},
        "data": {"train": str(folder / "train.jsonl"), "eval_share": 0},
        "train": {"max_steps": 1},
        "output": str(folder / "runs"),
    }
    recipe_file, seconds = folder / "recipe.yaml", []
    for number in range(repeats + 1):
        run = folder / "runs" / f"first-{number}"
        recipe_file.write_text(json.dumps(recipe | {"name": run.name}))  # JSON is YAML
        began = time.time()
        subprocess.run(
            [Path(sys.executable).with_name("tunesmith"), "train", recipe_file], check=True, stdout=subprocess.DEVNULL
        )
        events = map(json.loads, (run / "events.jsonl").open(encoding="utf-8"))
        seconds.append(next(e["time"] for e in events if e["event"] == "step") - began)
    yield f"median {statistics.median(seconds[1:]):.1f} s ({min(seconds[1:]):.1f} to {max(seconds[1:]):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two small cases, one repeat, TRL alone")
    parser.add_argument("--full", action="store_true", help="also the data path on 1 GB")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", choices=("speed", "data", "first"), help="one part alone")
    parser.add_argument("--cases", nargs="+", help="e.g. 5M-full-float32", choices=["-".join(c) for c in CASES])
    parser.add_argument("--peers", nargs="+", choices=VARIANTS)
    asked = parser.parse_args()
    if (asked.device == "cuda") != bool(probe().gpus):
        parser.error(f"--device {asked.device}: Tunesmith trains on the GPU where there is one, and only there")
    cases = [tuple(c.split("-")) for c in asked.cases] if asked.cases else QUICK if asked.quick else CASES
    repeats = 1 if asked.quick else REPEATS
    sizes = list(SIZES)[: 3 if asked.full else 2]
    wanted = asked.peers or (["trl"] if asked.quick else list(VARIANTS))
    missing = [tool for tool in wanted if not python_of(tool)]
    peers = [tool for tool in wanted if tool not in missing]
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
        folder = Path(name)
        os.environ |= {"TUNESMITH_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        prepare(folder)
        parts = {
            "speed": ("Training", speed(folder, cases, peers, repeats, asked.device)),
            "data": ("Data path", data_path(folder, sizes)),
            "first": ("Command to first step, warm cache", first_step(folder, 3)),
        }
        with open(results_file(f"-{asked.only}" if asked.only else ""), "w", encoding="utf-8") as file:
            for line in _lines(asked.device, missing, [p for k, p in parts.items() if asked.only in (None, k)]):
                print(line, flush=True)
                print(line, file=file, flush=True)


def _lines(device: str, missing: list[str], parts):
    yield from heading(device)
    if missing:
        yield f"\nNot installed, so not compared: {', '.join(missing)} (make bench-peers)."
    for title, lines in parts:
        yield f"\n## {title}\n"
        yield from lines


if __name__ == "__main__":
    main()
