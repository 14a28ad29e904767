"""The price in quality of a change that saves memory: published results, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published comparison of a precision with 16 or 32 bits."""

    precision: str
    """As in `model.quantize`, or the name of a GGUF type."""
    result: str
    source: str


PUBLISHED = (
    Published(
        "nf4",
        "MMLU (5-shot) after LoRA, mean of LLaMA 7B to 65B on two datasets: 53.1, in bfloat16 53.0",
        "https://arxiv.org/abs/2305.14314",
    ),
    Published(
        "nf4",
        "Llama 3.1 8B, mean accuracy of four benchmarks, not trained: 60.2, in bfloat16 61.1",
        "https://huggingface.co/datasets/derekl35/quantization-benchmarks",
    ),
    Published(
        "nf4",
        "Llama 3 8B, MMLU: 4-bit LoRA on Alpaca loses more than 4 bits alone, unlike LLaMA 1 and 2 (figures not read)",
        "https://arxiv.org/abs/2404.14047",
    ),
    Published(
        "int8",
        "C4 perplexity of a 13B model (LLM.int8): 12.45, in float32 12.45; of 6.7B 13.24 and 13.30",
        "https://arxiv.org/abs/2208.07339",
    ),
    *(
        Published(
            name,
            f"Llama 3 8B, Wikitext-2 perplexity: {perplexity}, in float16 6.233",
            "https://github.com/ggml-org/llama.cpp/blob/master/tools/perplexity/README.md",
        )
        for name, perplexity in (("Q8_0", "6.234"), ("Q6_K", "6.253"), ("Q5_K_M", "6.289"), ("Q4_K_M", "6.407"))
    ),
)
QUANTIZED = {
    "nf4": "accuracy 60.2 instead of 61.1 (published, Llama 3.1 8B)",
    "int8": "perplexity 12.45 instead of 12.45 (published, 13B)",
}
LONGER = {
    "drop": "longer examples are dropped",
    "truncate": "longer examples are cut",
    "refuse": "refused if an example is longer",
}


def price_in_quality(change: Mapping[str, Any], too_long: str) -> str:
    """Returns what a change of some keys costs in quality; empty: nothing. `too_long`: as `data.too_long`."""
    prices = []
    if change.get("adapter.kind") == "lora":
        prices.append("trains an adapter instead of all weights")
    if note := QUANTIZED.get(change.get("model.quantize", "")):
        prices.append(note)
    if "data.sequence_length" in change:
        prices.append(LONGER[too_long])
    return "; ".join(prices)
