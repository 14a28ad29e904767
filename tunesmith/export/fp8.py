"""A model folder in 8-bit floats as vLLM and transformers open it: the compressed-tensors format, FP8 E4M3.

Weights are scaled for each output channel, activations for each token while the model runs (Micikevicius et al. 2022).
Output head, embeddings and norms stay as they are.
"""

import io
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path

import torch

from tunesmith.errors import UserError
from tunesmith.export.engine import Transformers
from tunesmith.export.merged import write_model
from tunesmith.export.settle import copy_settings
from tunesmith.export.weights import Weights, weights_of
from tunesmith.model import experts
from tunesmith.recipe import Section
from tunesmith.run import Run

LARGEST = torch.finfo(torch.float8_e4m3fn).max
FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
FORMAT = {
    "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": FLOAT8 | {"strategy": "channel", "dynamic": False},
        "input_activations": FLOAT8 | {"strategy": "token", "dynamic": True}}}}


class Settings(Section):
    """Nothing to choose."""


def write(run: Run, folder: Path, settings: Settings) -> None:
    """Raises UserError for a mixture of experts, which transformers cannot open in this format."""
    if find_spec("compressed_tensors") is None:
        raise UserError("--to fp8: needs compressed-tensors: pip install 'tunesmith[fp8]'")
    weights = weights_of(run)
    if experts.stacks(weights.model):
        raise UserError("--to fp8: transformers opens no mixture of experts in this format; --to merged")
    linear = linear_weights(weights)
    copy_settings(run, folder)
    write_model(weights, folder, lambda tensors: _rounded(tensors, linear), FORMAT)


def linear_weights(weights: Weights) -> set[str]:
    """Names of what is stored in 8 bits."""
    head = weights.model.get_output_embeddings()
    return {f"{name}.weight" for name, module in weights.model.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head}


def _rounded(tensors: dict[str, torch.Tensor], linear: set[str]) -> dict[str, torch.Tensor]:
    written = {}
    for name, weight_OI in tensors.items():
        if name not in linear:
            written[name] = weight_OI
            continue
        scale_O1 = (weight_OI.float().abs().amax(1, keepdim=True) / LARGEST).clamp(min=1e-12)
        written[name] = (weight_OI.float() / scale_O1).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        written[f"{name}_scale"] = scale_O1.to(weight_OI.dtype)
    return written


def opened(run: Run, folder: Path, settings: Settings) -> Transformers:
    """As transformers opens it: weights are decompressed, and activations rounded while it runs."""
    with redirect_stderr(io.StringIO()):  # compressed-tensors draws four progress bars
        return Transformers.load(folder)


def precision(run: Run, settings: Settings) -> str:
    return "fp8"
