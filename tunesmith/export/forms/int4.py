"""A model folder in 4-bit integers as vLLM and transformers open it: compressed-tensors, packed, activations whole.

Groups of neighbouring weights of an output channel share a scale; each weight is rounded to the nearest (W4A16).
"""

from pathlib import Path

import torch

from tunesmith.errors import UserError
from tunesmith.export import compressed_tensors
from tunesmith.export.merged_weights import Weights, weights_of
from tunesmith.export.parity import in_vllm
from tunesmith.export.parity.subject import Transformers
from tunesmith.export.settings import NoSettings as Settings
from tunesmith.run import Run

GROUPS = (128, 64, 32)  # sizes that vLLM's kernels have; the largest that suits every layer
LARGEST = 7.5  # of -8 to 7, so that both signs lose the same
elsewhere = in_vllm.elsewhere


def write(run: Run, folder: Path, settings: Settings) -> list[str]:
    """Returns a note where groups are smaller. Raises UserError for layers of odd widths, and as `matrices` does."""
    weights = weights_of(run)
    chosen = compressed_tensors.matrices(weights, "int4")
    group = _group(weights, chosen)
    scheme = {
        "format": "pack-quantized",
        "group": {
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": group,
                "dynamic": False,
            }
        },
    }

    def rounded(name: str, weight_OI: torch.Tensor) -> dict[str, torch.Tensor]:
        weight_OGK = weight_OI.float().unflatten(1, (-1, group))
        scale_OG = (weight_OGK.abs().amax(2) / LARGEST).clamp(min=1e-12).to(weight_OI.dtype)
        codes_OI = (weight_OGK / scale_OG.float()[:, :, None]).round().clamp(-8, 7).flatten(1)
        return {
            f"{name}_packed": packed(codes_OI),
            f"{name}_scale": scale_OG,
            f"{name}_shape": torch.tensor(weight_OI.shape),
        }

    compressed_tensors.write_compressed(run, weights, folder, chosen, scheme, rounded)
    return [] if group == GROUPS[0] else [f"groups are of {group} weights, as a layer's inputs are no multiple of more"]


def packed(codes_OI: torch.Tensor) -> torch.Tensor:
    """Eight whole numbers in an int32, made positive, the first in the lowest bits: (O, I / 8)."""
    nibbles = (codes_OI + 8).to(torch.uint8)
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).contiguous().view(torch.int32)


def _group(weights: Weights, chosen: set[str]) -> int:
    widths = {tensor.shape[1]: name for name, tensor in weights.of_files(weights.empty(chosen)).items()}
    for group in GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    width, name = next((w, name) for w, name in widths.items() if w % GROUPS[-1])
    raise UserError(f"--to int4: needs layers of a multiple of {GROUPS[-1]} inputs, {name} has {width}; --to fp8")


def opened(run: Run, folder: Path, settings: Settings) -> Transformers:
    return compressed_tensors.opened(folder)


def precision(run: Run, settings: Settings) -> str:
    return "int4"


def instead(settings: Settings) -> str:
    """Both lose less: 8 bits, and 4 bits with a scale and a least value for 32 weights."""
    return "--to fp8, or --to gguf --precision q4_k_m"
