"""Compares predictions of `tunesmith plan` with published measurements of other trainers.

    python bench/published.py

Nothing is trained: both sides are for the same model, GPU and batch, but for different programs. Sources are in RUNS.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from transformers import LlamaConfig, Qwen2Config

from tunesmith import Recipe
from tunesmith.model.load import config_of
from tunesmith.planner.machine_spec import described
from tunesmith.planner.predict import predict

SHAPE = {"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "num_key_value_heads": 8}
MODELS = {
    "8B": LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, **SHAPE),
    "70B": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, **SHAPE
    ),
    "7B": Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    ),
}
TORCHTUNE = "torchtune README, 0031bfb: 2 rows of 2,048 tokens, compiled"
ANSWER_AI = "Answer.AI FSDP-QLoRA, 2024: 1,024 rows of 2,048 tokens an epoch"
LLMQ = "LLMQ README, b77d969: steps of 524,288 tokens, bfloat16"
ROUNDPIPE = "RoundPipe README, e813c67: 64,000 tokens a GPU and step"
RECOMPUTE = {"batch": 2, "micro_batch": 2, "gradient_checkpointing": "on"}
SMALL = {"weights": "bfloat16", "optimizer": "adamw_8bit"}


@dataclass(frozen=True)
class Run:
    name: str
    model: str
    machine: str
    tokens_per_second: float
    gib: float | None
    source: str
    train: dict = field(default_factory=dict)
    adapter: dict = field(default_factory=lambda: {"kind": "lora", "rank": 8})
    quantize: str = "none"


RUNS = [
    Run("8B LoRA, 4090", "8B", "4090,host=64GB", 3083, 16.2, TORCHTUNE, RECOMPUTE),
    Run("8B QLoRA, 4090", "8B", "4090,host=64GB", 2413, 7.4, TORCHTUNE, RECOMPUTE, quantize="nf4"),
    Run("8B full, 4090", "8B", "4090,host=64GB", 1650, 18.9, TORCHTUNE, RECOMPUTE | SMALL, {"kind": "full"}),
    Run("70B QLoRA, 2x4090", "70B", "2x4090,host=128GB", 477, 14.92, ANSWER_AI, {"batch": 16}, quantize="nf4"),
    Run("70B QLoRA, 2x3090", "70B", "2x3090,host=128GB", 178, None, ANSWER_AI, {"batch": 16}, quantize="nf4"),
    Run("7B full, 4090", "7B", "4090,host=192GB", 2780, None, LLMQ, {"batch": 256} | SMALL, {"kind": "full"}),
    Run("7B full, 4x4090", "7B", "4x4090,host=192GB", 10900, None, LLMQ, {"batch": 256} | SMALL, {"kind": "full"}),
    Run("8B full, 4090", "8B", "4090,host=256GB,link=4.0x16", 3142, None, ROUNDPIPE, {"batch": 32}, {"kind": "full"}),
    Run("8B full, 8x4090", "8B", "8x4090,host=512GB", 24275, None, ROUNDPIPE, {"batch": 256}, {"kind": "full"}),
]


def main() -> None:
    print("| run | published tokens/s | predicted | published GiB | predicted | layers kept | source |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            base = Path(folder) / run.model
            MODELS[run.model].save_pretrained(base)
            recipe = Recipe.build(
                {
                    "model": {"path": str(base), "quantize": run.quantize},
                    "data": {"train": "none.jsonl", "sequence_length": 2048},
                    "adapter": run.adapter,
                    "train": run.train,
                }
            )
            found = predict(recipe, described(run.machine), config_of(base), base)
            speed = f"{found.speed.tokens_per_second:,.0f}" if found.speed else "–"
            memory = f"{found.tightest.nbytes / 2**30:.1f}" if found.tightest else found.not_predicted
            kept = ", ".join(map(str, found.plan.kept_layers or ["all"]))
            published = f"{run.gib:g}" if run.gib else "–"
            print(
                f"| {run.name} | {run.tokens_per_second:,} | {speed} | {published} | {memory} | {kept} | {run.source} |"
            )


if __name__ == "__main__":
    main()
