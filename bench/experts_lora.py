"""Compares adapters of stacked experts in PEFT and in Tunesmith: time and memory of a layer, forward and backward.

    python bench/experts_lora.py

Each case runs in a process of its own. The experts have the shape of Qwen3-30B-A3B, but are fewer, as a CPU is slow.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
from trials import heading

from tunesmith.model import experts_lora
from tunesmith.model.memory import peak_bytes, reset_peak

HIDDEN, INNER, EXPERTS, TOP, RANK, REPEATS = 2048, 768, 32, 8, 16, 3
CPU = torch.device("cpu")


def measure(ours: bool, tokens: int) -> tuple[float, int]:
    """Seconds of the fastest pass, and bytes beyond those of the weights."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, moe_intermediate_size=INNER, num_experts=EXPERTS, num_experts_per_tok=TOP
    )
    config._experts_implementation = "grouped_mm"
    model = nn.ModuleDict({"experts": Qwen3MoeExperts(config)})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02).requires_grad_(False)
    names = ["experts.gate_up_proj", "experts.down_proj"]
    adapted = inject_adapter_in_model(LoraConfig(r=RANK, target_modules=[], target_parameters=names), model)
    if ours:
        experts_lora.fuse(adapted)
    chosen = torch.rand(tokens, EXPERTS).topk(TOP).indices
    weights, hidden = torch.full((tokens, TOP), 1 / TOP), torch.randn(tokens, HIDDEN)
    reset_peak(CPU)
    before, seconds = peak_bytes(CPU), []
    for _ in range(REPEATS):
        began = time.monotonic()
        adapted["experts"](hidden.requires_grad_(), chosen, weights).sum().backward()
        seconds.append(time.monotonic() - began)
    return min(seconds), peak_bytes(CPU) - before


def main() -> None:
    print("\n".join(heading("cpu")))
    print(f"`python bench/experts_lora.py`: {EXPERTS} experts, float32, rank {RANK}, forward and backward.\n")
    print("| tokens | by | seconds | MB beyond the weights |\n|---|---|---|---|")
    for tokens in (64, 512, 2048):
        for name, ours in (("PEFT", False), ("Tunesmith", True)):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                seconds, peak = pool.submit(measure, ours, tokens).result()
            print(f"| {tokens:,} | {name} | {seconds:.2f} | {peak / 1e6:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
