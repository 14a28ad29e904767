"""Compares steps whose layers are in host memory with the same steps whose layers are on the GPU.

    python bench/streaming.py [--tokens 4096 16384 65536] [--layers 16] [--small]

Each case runs in a process of its own: an 8B model in bfloat16 with LoRA, the same trained whole in bfloat16 with
Adafactor, and a 70B model in nf4 with LoRA, where bitsandbytes is installed. The models have the widths of Llama 3.1
but fewer layers, because the share of the rate does not depend on their number. `--small`: narrow models, for a CPU.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing import get_context

import numpy as np
import torch
from shapes_trial import random_base
from transformers import LlamaConfig
from trials import heading

from tunesmith.machine import probe
from tunesmith.model import adapt
from tunesmith.model.memory import peak_bytes, reset_peak
from tunesmith.planner.decide import choose
from tunesmith.planner.fit import MULTIPLE
from tunesmith.recipe import Recipe
from tunesmith.training import distributed
from tunesmith.training.batch import Batch, collate
from tunesmith.training.build import inspect, place, transform
from tunesmith.training.loss import autocast, total_loss
from tunesmith.training.walk import backward

WIDTHS = {"8B": (4096, 14336, 32), "70B": (8192, 28672, 64), "small": (256, 512, 8)}  # hidden, MLP, heads
VOCABULARY, KEY_HEADS = 128256, 8
MICRO_BATCH_TOKENS, WARM_UP, STEPS = 4096, 1, 3


@dataclass(frozen=True)
class Case:
    width: str
    kind: str
    quantize: str
    layers: int
    tokens: int
    kept: int | None  # layers that stay on the GPU; None: all, and no walk

    def config(self) -> LlamaConfig:
        hidden, wide, heads = WIDTHS[self.width]
        return LlamaConfig(
            vocab_size=VOCABULARY if self.width != "small" else 512,
            hidden_size=hidden,
            intermediate_size=wide,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=KEY_HEADS,
        )

    def recipe(self) -> Recipe:
        return Recipe.build(
            {
                "model": {"path": self.width, "dtype": "bfloat16", "quantize": self.quantize},
                "data": {"train": "random", "sequence_length": MICRO_BATCH_TOKENS},
                "adapter": {"kind": self.kind},
                "train": {"weights": "bfloat16", "optimizer": "adafactor", "gradient_checkpointing": "on"},
            }
        )


@dataclass(frozen=True)
class Result:
    tokens_per_second: float
    update_seconds: float
    peak_bytes: int
    brought_bytes_per_second: float


def measure(case: Case) -> Result:
    recipe, machine = case.recipe(), probe()
    plan = choose(recipe, machine)
    offload = plan.device == "cuda" and case.kept is not None
    plan = replace(plan, kept_layers=None if case.kept is None else [case.kept], activation_offload=offload)
    device = distributed.join(plan.device)
    model = adapt.adapt(random_base(case.config(), plan, recipe, device), recipe.adapter, [], 0)
    home = place(model.to("cpu"), plan, device, _ignore, case.kind == "full")
    built = transform(model, recipe, plan, inspect(model, plan, _ignore), _ignore, home)
    built.model.train()

    def loss(batch: Batch) -> torch.Tensor:
        with autocast(built.plan):
            return total_loss(built.model, batch, built.head) / case.tokens

    ids = np.random.default_rng(0).integers(0, case.config().vocab_size, (case.tokens // MULTIPLE, MULTIPLE))
    rows = [(row, np.ones(len(row), bool)) for row in ids.reshape(-1, min(case.tokens, MICRO_BATCH_TOKENS))]
    batches = [collate(rows, np.array([number]), built.plan.packing).to(device) for number in range(len(rows))]
    seconds, updates = [], []
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            reset_peak(device)
            brought = home.brought_bytes if home else 0
        began = _now(device)
        backward(built.walk, batches, loss, lambda batch: 0.0, lambda batch: None)
        learned = _now(device)
        built.optimizer.clip(1.0)
        built.optimizer.step((0, step))
        built.optimizer.zero_grad()
        seconds.append(_now(device) - began)
        updates.append(_now(device) - learned)
    counted = sum(seconds[WARM_UP:])
    return Result(
        tokens_per_second=STEPS * case.tokens / counted,
        update_seconds=sum(updates[WARM_UP:]) / STEPS,
        peak_bytes=peak_bytes(device),
        brought_bytes_per_second=(home.brought_bytes - brought) / counted if home else 0.0,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _ignore(*_, **__) -> None:
    pass


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384, 65536])
    asked.add_argument("--layers", type=int, default=16)
    asked.add_argument("--small", action="store_true")
    options = asked.parse_args()
    kinds = [("8B", "lora", "none"), ("8B", "full", "none")]
    kinds += [("70B", "lora", "nf4")] if find_spec("bitsandbytes") else []
    print("\n".join(heading("cuda" if torch.cuda.is_available() else "cpu")))
    print(f"\n`python bench/streaming.py`: {options.layers} layers, micro-batches of {MICRO_BATCH_TOKENS:,} tokens.\n")
    print("| model | tokens a step | layers on the GPU | tokens/s | share | update | peak | brought |")
    print("|---|---|---|---|---|---|---|---|")
    for width, kind, quantize in kinds:
        for tokens in options.tokens:
            whole = None
            for kept in (None, 0):
                case = Case("small" if options.small else width, kind, quantize, options.layers, tokens, kept)
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    try:
                        found = pool.submit(measure, case).result()
                    except (RuntimeError, OSError) as error:
                        print(
                            f"| {width}, {kind}, {quantize} | {tokens:,} | {kept} | {str(error)[:60]} |||||", flush=True
                        )
                        continue
                share = f"{found.tokens_per_second / whole:.0%}" if whole else ""
                whole = found.tokens_per_second if kept is None else whole
                print(
                    f"| {width}, {kind}, {quantize} | {tokens:,} | {'all' if kept is None else kept} "
                    f"| {found.tokens_per_second:,.0f} | {share} | {found.update_seconds:.2f} s "
                    f"| {found.peak_bytes / 1e9:.1f} GB | {found.brought_bytes_per_second / 1e9:.1f} GB/s |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
