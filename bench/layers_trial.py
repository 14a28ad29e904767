"""What each switch of the decoder layers costs and saves on this machine's CPU, one thread.

    python bench/layers_trial.py [float32|bfloat16]

A Llama of 8 layers, hidden size 512, LoRA on all linear layers; packed steps of about 2048 tokens, never twice the
same length. Each switch runs in a process of its own. Time is the processor's, so that other work does not count;
memory is what the steps add to the process at most.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.model.adapt import adapt
from tunesmith.model.memory import peak_bytes
from tunesmith.recipe import Adapter
from tunesmith.training import packed_attention
from tunesmith.training.batch import collate
from tunesmith.training.layer_transforms import CompileWatch, checkpoint_layers, compile_layers, tile_mlps
from tunesmith.training.loss import find_head, total_loss

WARMUP, STEPS = 2, 6
SWITCHES = {
    "plain": lambda model, cache: None,
    "checkpointing on": lambda model, cache: checkpoint_layers(model, "on"),
    "checkpointing 0.5": lambda model, cache: checkpoint_layers(model, 0.5),
    "selective": lambda model, cache: checkpoint_layers(model, "selective"),
    "tiled MLP": lambda model, cache: tile_mlps(model),
    "compile": lambda model, cache: compile_layers(model, cache),
    "compile, second run": lambda model, cache: compile_layers(model, cache),
}


def trial(switch: str, dtype: str, cache: Path) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM._from_config(
        config, attn_implementation=packed_attention.NAME, dtype=getattr(torch, dtype)
    )
    model = adapt(model, Adapter(), [], 0).train()
    head = find_head(model, packed=True)
    SWITCHES[switch](model, cache)
    random, watch = np.random.default_rng(0), CompileWatch()
    began, before = {}, peak_bytes(torch.device("cpu"))
    for step in range(WARMUP + STEPS):
        if step == WARMUP:
            began = {"seconds": time.process_time(), "tokens": 0}
        rows = [(random.integers(0, 2000, n), np.ones(n, bool)) for n in random.integers(200, 480, 6)]
        batch = collate(rows, np.arange(6), packed=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            total_loss(model, batch, head).backward()
        model.zero_grad()
        if began:
            began["tokens"] += sum(batch.lengths)
    seconds = (time.process_time() - began["seconds"]) / began["tokens"] * 1000
    return {
        "switch": switch,
        "dtype": dtype,
        "seconds_per_1000_tokens": round(seconds, 3),
        "added_MB": round((peak_bytes(torch.device("cpu")) - before) / 1e6),
        "compiled": watch.news(),
    }


def main() -> None:
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    with tempfile.TemporaryDirectory() as cache:
        for switch in SWITCHES:
            subprocess.run([sys.executable, __file__, dtype, switch, cache], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(trial(sys.argv[2], sys.argv[1], Path(sys.argv[3]))), flush=True)
    else:
        main()
