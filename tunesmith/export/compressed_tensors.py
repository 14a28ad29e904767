"""Writes model folders in the compressed-tensors format of vLLM and Transformers, one layer at a time.

All schemes quantise the same matrices: the linear layers and experts of the text part. The output head, embeddings,
norms, routers and vision towers keep their precision.
"""

import io
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path

import torch

from tunesmith.errors import UserError
from tunesmith.export.forms.merged import write_model
from tunesmith.export.merged_weights import Weights
from tunesmith.export.model_folder import copy_settings
from tunesmith.export.parity.subject import Transformers
from tunesmith.model import experts
from tunesmith.model.text import text_modules
from tunesmith.run import Run


def matrices(weights: Weights, to: str) -> set[str]:
    """Returns the names of the weights to quantise: linear layers and experts.

    Raises UserError if the files store a layer's experts in one tensor, which Transformers cannot open in this format,
    or if the package compressed-tensors is missing. `to` is the export form, for messages.
    """
    if find_spec("compressed_tensors") is None:
        raise UserError(f"--to {to}: needs compressed-tensors: pip install 'tunesmith[fp8]'")
    model, head = weights.model, weights.model.get_output_embeddings()
    linear = {
        f"{name}.weight"
        for name, module in text_modules(model)
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    stacks = {
        f"{name}.{key}"
        for name, module in text_modules(model)
        for key, _ in module.named_parameters(recurse=False)
        if experts.is_stack(module, key)
    }
    if any(tensor.ndim > 2 for tensor in weights.of_files(weights.empty(stacks)).values()):
        raise UserError(
            f"--to {to}: this model's files have a layer's experts in one tensor, which Transformers cannot open "
            "in this format; use --to merged or --to gguf"
        )
    return linear | stacks


def write_compressed(run: Run, weights: Weights, folder: Path, chosen: set[str], scheme: dict, rounded) -> None:
    """Writes the folder. `chosen` is a subset of `matrices`. `scheme` has the package's names for `format` and `group`.
    `rounded(name, weight_OI)` returns the tensors to store for a weight."""
    copy_settings(run, folder)
    # vLLM treats routers as linear layers, so they must be listed as ignored.
    routers = weights.of_files(weights.empty(f"{name}.weight" for name in experts.routers(weights.model)))
    linear = {f"{name}.weight" for name, module in weights.model.named_modules() if isinstance(module, torch.nn.Linear)}
    whole = weights.of_files(weights.empty(sorted((linear & weights.shapes.keys()) - chosen)))
    quantization = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": scheme["format"],
        "ignore": [
            "lm_head",
            *(name.removesuffix(".weight") for name in (*routers, *whole) if name != "lm_head.weight"),
        ],
        "config_groups": {"group_0": {"targets": ["Linear"]} | scheme["group"]},
    }

    def stored(layer: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        quantised = weights.of_files({name: tensor for name, tensor in layer.items() if name in chosen})
        tensors = weights.of_files({name: tensor for name, tensor in layer.items() if name not in chosen})
        for name, weight_OI in quantised.items():
            tensors |= rounded(name, weight_OI)
        return tensors

    write_model(weights, folder, stored, quantization)


def opened(folder: Path) -> Transformers:
    """Opens a folder with Transformers, which decompresses the weights."""
    with redirect_stderr(io.StringIO()):  # compressed-tensors draws progress bars, also in the first forward pass
        engine = Transformers.load(folder)
        engine.log_probs([0, 0])
    return engine
