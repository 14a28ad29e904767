"""Time and peak memory of exports against model size: python bench/export.py. Without parity, which loads the model.

The model is Llama's shape with random bfloat16 weights and a random LoRA adapter; each export is a process of its own.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from trials import heading, results_file, trial

SHAPES = {"100M": (768, 8, 32_000), "400M": (1024, 20, 64_000), "1B": (2048, 14, 128_256)}  # width, layers, vocabulary
FORMS = {
    "merged": ("merged", {}),
    "gguf bf16": ("gguf", {"precision": "bf16"}),
    "gguf q8_0": ("gguf", {"precision": "q8_0"}),
    "gguf q4_k_m": ("gguf", {"precision": "q4_k_m"}),
}


def make_run(folder: Path, shape: str) -> dict:
    """Trains nothing: a run folder with a random base and a fresh adapter of one step. Returns sizes in bytes."""
    import corpus
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tunesmith import Recipe, train

    width, layers, vocabulary = SHAPES[shape]
    corpus.save_model("5M", folder / "small")
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(folder / "small").save_pretrained(folder / "base")
    sizes = {"bytes": sum(p.numel() * 2 for p in model.parameters()), "largest": vocabulary * width * 2}
    del model
    corpus.write_rows(folder / "rows.jsonl", corpus.conversations()[:64])
    train(
        Recipe.build(
            {
                "model": {"path": str(folder / "base"), "dtype": "bfloat16"},
                "data": {"train": str(folder / "rows.jsonl"), "eval_share": 0},
                "train": {"max_steps": 1, "batch": 1},
                "evaluate": {"samples": 0},
                "name": "run",
                "output": str(folder),
            }
        )
    )
    return sizes


def one(run: str, to: str, settings: str) -> dict:
    """What one export took; memory beyond that of the imported packages."""
    import tunesmith.export.forms.gguf  # noqa: F401, its imports are no part of the export
    from tunesmith.export.export import export
    from tunesmith.run import Run

    target, before, began = Path(run) / "out", _peak(), time.perf_counter()
    export(Run.open(run), to, target, json.loads(settings), parity=False)
    found = {
        "seconds": time.perf_counter() - began,
        "peak": _peak(),
        "before": before,
        "written": sum(f.stat().st_size for f in target.iterdir()),
    }
    shutil.rmtree(target)
    return found


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return print(json.dumps(one(*asked.one)))
    if asked.make:
        return print(json.dumps(make_run(Path(asked.make[0]), asked.make[1])))
    with open(results_file("-export"), "w", encoding="utf-8") as file:
        for line in (*heading("cpu"), *_table(asked.shapes)):
            print(line, flush=True)
            print(line, file=file, flush=True)


def _table(shapes: list[str]):
    yield (
        "\nGoal: peak memory of an export no more than the largest tensor × 4 plus 1 GB. The peak is the process's "
        "own, packages included (their share in brackets); without parity.\n"
    )
    yield "| model | bfloat16 weights | largest tensor | goal | form | seconds | peak memory | written |"
    yield "|" + "---|" * 8
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as name:
            sizes = trial("export.py", "--make", name, shape)
            goal = sizes["largest"] * 4 + 10**9
            for title, (to, settings) in FORMS.items():
                r = trial("export.py", "--one", f"{name}/run", to, json.dumps(settings))
                yield (
                    f"| {shape} | {sizes['bytes'] / 1e9:.2f} GB | {sizes['largest'] / 1e9:.2f} GB | {goal / 1e9:.2f} "
                    f"GB | {title} | {r['seconds']:.1f} | {r['peak'] / 1e9:.2f} ({r['before'] / 1e9:.2f}) GB | "
                    f"{r['written'] / 1e9:.2f} GB |"
                )


if __name__ == "__main__":
    sys.exit(main())
