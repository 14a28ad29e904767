"""How cost grows: tokens/s and memory against sequence length, model size, LoRA rank and dataset size,
as a table and plots.

    python bench/growth.py [--device cuda]

Each point is a process of its own that runs the very parts of the loop (feed, loss, optimizer) on random tokens of a
Llama with random weights, packed into 4096 tokens a step; for dataset size it is `tunesmith train`. Writes
bench/results/ and docs/images/performance-cpu.svg.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

from operations import CONVENTION, per_token
from trials import HERE, heading, in_process, results_file, trial

STEPS, WARMUP, TOKENS = 5, 2, 4096
SHAPES = {  # parameters: (layers, hidden size, intermediate size, heads)
    "5M": (4, 256, 704, 4),
    "15M": (6, 384, 1024, 6),
    "30M": (8, 512, 1376, 8),
    "100M": (12, 768, 2048, 12),
}
VOCABULARY = 8192


@dataclass(frozen=True)
class Point:
    shape: str = "5M"
    kind: str = "full"
    dtype: str = "float32"
    length: int = 256
    rank: int = 16
    device: str = "cpu"
    file_bytes: int = 0


def curves(device: str) -> dict[str, list[Point]]:
    """What is varied: the points of each plot."""
    base = Point(device=device)
    return {
        "tokens of an example": [
            replace(base, length=n, kind=k) for k in ("full", "lora") for n in (64, 256, 1024, 4096)
        ],
        "parameters": [
            replace(base, shape=s, kind=k, dtype=d)
            for k, d in (("full", "float32"), ("full", "bfloat16"), ("lora", "bfloat16"))
            for s in SHAPES
        ],
        "LoRA rank": [replace(base, kind="lora", rank=r) for r in (4, 16, 64, 256)],
        "bytes of the dataset": [
            replace(base, kind=k, file_bytes=n) for k in ("full", "lora") for n in (10**6, 10**7, 10**8)
        ],
    }


def train(point: Point) -> dict:
    """A point of dataset size: the main job itself, from the file on; one process, so its peak is all there is."""
    import tempfile

    import corpus
    import torch

    import tunesmith
    from tunesmith.model.memory import peak_bytes

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TUNESMITH_CACHE"] = str(folder / "cache")
        corpus.save_model(point.shape, folder / "model")
        corpus.write_bytes(folder / "rows.jsonl", point.file_bytes)
        run = tunesmith.train(
            tunesmith.Recipe.build(
                {
                    "model": {"path": str(folder / "model"), "dtype": point.dtype},
                    "data": {"train": str(folder / "rows.jsonl")},
                    "adapter": {"kind": point.kind, "rank": point.rank},
                    "evaluate": {"samples": 0},
                    "train": {"max_steps": WARMUP + STEPS, "batch": 32, "eval_every": 10**6, "save_every": 10**6},
                    "output": str(folder),
                    "name": "run",
                }
            )
        )
        rates = [e["tokens_per_second"] for e in run.events("step")][WARMUP:]
    return {
        "tokens_per_second": statistics.median(rates),
        "spread": [min(rates), max(rates)],
        "peak_bytes": peak_bytes(torch.device(point.device)),
        "operations_per_second": None,
    }


def measure(point: Point) -> dict:
    """One point: rate, peak memory and operations a second, of the steps after warm-up."""
    if point.file_bytes:
        return train(point)
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.model.adapt import adapt
    from tunesmith.model.memory import peak_bytes
    from tunesmith.recipe import Adapter, Train
    from tunesmith.training import packed_attention
    from tunesmith.training.batch import collate
    from tunesmith.training.loss import autocast, find_head, total_loss
    from tunesmith.training.optimizer import build_optimizer

    device = torch.device(point.device)
    layers, hidden, middle, heads = SHAPES[point.shape]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=middle,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        tie_word_embeddings=True,
    )
    weights = torch.float32 if point.kind == "full" else getattr(torch, point.dtype)
    model = LlamaForCausalLM._from_config(config, attn_implementation=packed_attention.NAME, dtype=weights)
    model = adapt(model, Adapter(kind=point.kind, rank=point.rank), [], 0).to(device).train()
    head, optimizer = find_head(model, packed=True), build_optimizer(model, Train())
    random, seconds = np.random.default_rng(0), []
    for _ in range(WARMUP + STEPS):
        rows = [
            (random.integers(0, VOCABULARY, point.length), np.arange(point.length) >= point.length // 2)
            for _ in range(TOKENS // point.length)
        ]
        batch = collate(rows, np.arange(len(rows)), packed=True).to(device)
        began = time.perf_counter()
        with autocast(SimpleNamespace(device=point.device, compute=point.dtype)):
            total = total_loss(model, batch, head)
        (total / batch.supervised_tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    taken = statistics.median(seconds[WARMUP:])
    operations = TOKENS * per_token(config, point.length, point.kind == "full", batch.supervised_tokens / TOKENS)
    return {
        "tokens_per_second": TOKENS / taken,
        "spread": [TOKENS / s for s in (max(seconds[WARMUP:]), min(seconds[WARMUP:]))],
        "peak_bytes": peak_bytes(device),
        "operations_per_second": operations / taken,
        "parameters": sum(p.numel() for p in LlamaForCausalLM._from_config(config).parameters()),
    }


def draw(found: dict[str, list[tuple[Point, dict]]], file: Path) -> None:
    """A row of plots: rate above, memory below."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "tunesmith", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(3.4 * len(found), 5), layout="constrained")
    at = {
        "tokens of an example": lambda p, r: (p.length, p.length),
        "LoRA rank": lambda p, r: (p.rank, p.rank),
        "parameters": lambda p, r: (r["parameters"], p.shape),
        "bytes of the dataset": lambda p, r: (p.file_bytes, f"{p.file_bytes // 10**6} MB"),
    }
    for column, (name, points) in enumerate(found.items()):
        lines: dict[str, list] = {}
        for point, result in points:
            lines.setdefault(f"{point.kind}, {point.dtype}", []).append((at[name](point, result)[0], result))
        ticks = dict(at[name](point, result) for point, result in points)
        for label, line in lines.items():
            x = [size for size, _ in line]
            axes[0][column].plot(x, [r["tokens_per_second"] for _, r in line], marker="o", label=label)
            axes[1][column].plot(x, [r["peak_bytes"] / 1e9 for _, r in line], marker="o", label=label)
        for row, title in enumerate(("tokens/s", "peak memory, GB")):
            axes[row][column].set(xscale="log", xlabel=name, ylabel=title if column == 0 else None)
            axes[row][column].set_ylim(0, 1.1 * axes[row][column].get_ylim()[1])
            axes[row][column].set_xticks(list(ticks), list(ticks.values()))
            axes[row][column].minorticks_off()
        axes[0][column].legend(frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Date": None})


def table(found, rates: dict[str, float], device: str):
    yield from heading(device)
    yield "\nMatmul rate: " + ", ".join(f"{dtype} {rate / 1e9:.0f} GFLOP/s" for dtype, rate in rates.items())
    yield f"\nShare of the matmul rate: {CONVENTION}."
    yield (
        "\n| model | trained | precision | tokens of an example | rank | dataset | tokens/s | share of matmul rate | "
        "peak memory |"
    )
    yield "|" + "---|" * 9
    for points in found.values():
        for p, r in points:
            low, high = r["spread"]
            done = r["operations_per_second"]
            yield (
                f"| {p.shape} | {p.kind} | {p.dtype} | {'' if p.file_bytes else p.length} | "
                f"{p.rank if p.kind == 'lora' else ''} | {f'{p.file_bytes // 10**6} MB' if p.file_bytes else ''} | "
                f"{r['tokens_per_second']:.0f} ({low:.0f} to {high:.0f}) | "
                f"{f'{done / rates[p.dtype]:.0%}' if done else ''} | {r['peak_bytes'] / 1e9:.2f} GB |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        print(json.dumps(measure(Point(**json.loads(asked.point)))))
    else:
        rates = in_process(get_context("spawn"), "trials", "matmul_rates", asked.device, limit_seconds=600)
        found = {
            name: [(p, trial("growth.py", "--point", json.dumps(asdict(p)))) for p in points]
            for name, points in curves(asked.device).items()
        }
        lines = list(table(found, rates, asked.device))
        results_file(f"-growth-{asked.device}").write_text("\n".join(lines) + "\n")
        draw(found, HERE.parent / "docs" / f"performance-{asked.device}.svg")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
