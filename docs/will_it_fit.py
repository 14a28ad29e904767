"""Computes the tables of `docs/how-to/will-it-fit.md`: `python docs/will_it_fit.py`. It takes half an hour.

The result is in `docs/will_it_fit.json`, from which `docs/generate.py` fills the page. No model is downloaded: the
shapes of the models are here.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_name("will_it_fit.json")
LENGTHS = (512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
MACHINES = {
    "8 GB": "3070",
    "12 GB": "3060-12GB",
    "16 GB": "4080",
    "20 GB": "A4500",
    "24 GB": "3090",
    "32 GB": "5090",
    "48 GB": "A6000",
    "80 GB": "A100-PCIe-80GB",
    "2 × 20 GB": "2xA4500",
    "2 × 24 GB": "2x3090",
    "24 + 12 GB": "3090+3060-12GB",
}
HOST = "host=64GB"
METHODS: dict[str, dict[str, Any]] = {
    "full, AdamW": {"adapter": {"kind": "full"}},
    "full, Adafactor": {"adapter": {"kind": "full"}, "train": {"weights": "bfloat16", "optimizer": "adafactor"}},
    "LoRA": {},
    "LoRA, nf4": {"model": {"quantize": "nf4"}},
}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256}
LLAMA |= {"num_key_value_heads": 8, "max_position_embeddings": 131072, "rope_theta": 500000.0}
QWEN = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "head_dim": 128}
QWEN |= {"num_key_value_heads": 8, "max_position_embeddings": 40960, "rope_theta": 1000000.0}


def _shape(family: dict[str, Any], hidden: int, wide: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": wide, "num_hidden_layers": layers}
    return family | sizes | {"num_attention_heads": heads, "tie_word_embeddings": False} | others


MOE = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_key_value_heads": 4}
MOE |= {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "decoder_sparse_step": 1}
SMALL = {"vocab_size": 49152, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True}
MODELS = {
    "SmolLM2-135M": _shape(LLAMA, 576, 1536, 30, 9, **SMALL),
    "Llama-3.2-1B": _shape(LLAMA, 2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True),
    "Llama-3.2-3B": _shape(LLAMA, 3072, 8192, 28, 24, head_dim=128, tie_word_embeddings=True),
    "Llama-3.1-8B": _shape(LLAMA, 4096, 14336, 32, 32),
    "Qwen3-8B": _shape(QWEN, 4096, 12288, 36, 32),
    "Qwen3-14B": _shape(QWEN, 5120, 17408, 40, 40),
    "Qwen3-32B": _shape(QWEN, 5120, 25600, 64, 64),
    "Llama-3.3-70B": _shape(LLAMA, 8192, 28672, 80, 64),
    "Qwen3-30B-A3B": _shape(QWEN | MOE, 2048, 6144, 48, 32),
}


def folder_of(model: str, within: Path) -> Path:
    """Writes the model's config.json, and returns its folder."""
    folder = within / model
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[model]))
    return folder


def cells(model: str, method: str, machines: dict[str, str], lengths: tuple[int, ...] = LENGTHS) -> Iterator[list[str]]:
    """A column's title and its cell, for each machine."""
    from tunesmith.model.load import config_of
    from tunesmith.planner.machine_spec import described
    from tunesmith.planner.most import Tries
    from tunesmith.recipe import Recipe, merge

    traced: dict[tuple, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        base = folder_of(model, Path(temporary))
        config = config_of(base)
        recipe = Recipe.build(merge({"model": {"path": str(base)}, "data": {"train": "none"}}, METHODS[method]))
        for title, gpus in machines.items():
            tries = Tries(recipe, described(f"{gpus},{HOST}"), config, base, traced)
            yield [title, _cell(tries, lengths)]


def _cell(tries: Any, lengths: tuple[int, ...]) -> str:
    """The longest examples with all layers on the GPU; else with layers in host memory (↓); else what is missing."""
    within = [length for length in lengths if length <= tries.positions]
    for kept_layers, mark in (("all", ""), ("auto", "↓")):
        if fit := tries.last_fit("data.sequence_length", within, {"train.kept_layers": kept_layers}):
            return f"{_length(fit.value)}{'+' * (fit.value == LENGTHS[-1])}{mark}"
    for words, place in ((r"need ([\d.,]+) GB of host memory", "host"), (r"([\d.,]+) GB are needed", "GPU")):
        if match := re.search(words, tries.refusal):
            return f"{place} {float(match[1].replace(',', '')):.0f} GB"
    return "no"


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)


def main() -> None:
    """Computes all cells, or those of the models that are named; keeps those of the others."""
    sys.path.insert(0, str(RESULT.parents[1]))
    found = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
    for model in sys.argv[1:] or MODELS:
        for method in METHODS:
            found.setdefault(method, {})[model] = dict(cells(model, method, MACHINES))
            found[method] = {each: found[method][each] for each in MODELS if each in found[method]}
            print(model, method, found[method][model], flush=True)
            RESULT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
