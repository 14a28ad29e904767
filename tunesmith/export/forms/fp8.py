"""A model folder in 8-bit floats as vLLM and transformers open it: the compressed-tensors format, FP8 E4M3.

Weights are scaled for each output channel, activations for each token while the model runs (Micikevicius et al. 2022).
"""

from pathlib import Path

import torch

from tunesmith.export import compressed_tensors
from tunesmith.export.merged_weights import weights_of
from tunesmith.export.parity import in_vllm
from tunesmith.export.parity.subject import Transformers
from tunesmith.export.settings import NoSettings as Settings
from tunesmith.run import Run

LARGEST = torch.finfo(torch.float8_e4m3fn).max
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
SCHEME = {
    "format": "float-quantized",
    "group": {
        "weights": FLOAT8 | {"strategy": "channel", "dynamic": False},
        "input_activations": FLOAT8 | {"strategy": "token", "dynamic": True},
    },
}
elsewhere = in_vllm.elsewhere


def write(run: Run, folder: Path, settings: Settings) -> None:
    """Raises UserError for a mixture of experts whose files have the experts stacked."""
    weights = weights_of(run)
    compressed_tensors.write_compressed(
        run, weights, folder, compressed_tensors.matrices(weights, "fp8"), SCHEME, _rounded
    )


def _rounded(name: str, weight_OI: torch.Tensor) -> dict[str, torch.Tensor]:
    scale_O1 = (weight_OI.float().abs().amax(1, keepdim=True) / LARGEST).clamp(min=1e-12)
    small_OI = (weight_OI.float() / scale_O1).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return {name: small_OI, f"{name}_scale": scale_O1.to(weight_OI.dtype)}


def opened(run: Run, folder: Path, settings: Settings) -> Transformers:
    """Opens it with Transformers, which rounds activations while it runs, except those of experts."""
    return compressed_tensors.opened(folder)


def precision(run: Run, settings: Settings) -> str:
    return "fp8"


def instead(settings: Settings) -> str:
    return "--to merged"
