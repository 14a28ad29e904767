"""Model folders in the compressed-tensors format, which vLLM and transformers open; a layer at a time.

Which matrices are written small is the same for every kind: linear layers and experts of the text part. Output head,
embeddings, norms, routers and vision towers stay as they are.
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
    """Names of what is written small: linear layers and, where the files have each expert by itself, experts.

    Raises UserError where they have not, as transformers opens no stacks in this format, and without the package.
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
            f"--to {to}: this model's files have a layer's experts in one tensor, which transformers does "
            "not open in this format; --to merged, or --to gguf"
        )
    return linear | stacks


def write_compressed(run: Run, weights: Weights, folder: Path, chosen: set[str], scheme: dict, rounded) -> None:
    """Writes the folder. `chosen`: of `matrices`. `scheme`: format and weights, as the package has them; `rounded(name,
    weight_OI)`: what is written in the place of a weight of that name in the files."""
    copy_settings(run, folder)
    # Routers are of a class of their own to transformers, linear layers to vLLM.
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
        small = weights.of_files({name: tensor for name, tensor in layer.items() if name in chosen})
        found = weights.of_files({name: tensor for name, tensor in layer.items() if name not in chosen})
        for name, weight_OI in small.items():
            found |= rounded(name, weight_OI)
        return found

    write_model(weights, folder, stored, quantization)


def opened(folder: Path) -> Transformers:
    """As transformers opens it: weights are decompressed."""
    with redirect_stderr(io.StringIO()):  # compressed-tensors draws progress bars, also in the first pass
        engine = Transformers.load(folder)
        engine.log_probs([0, 0])
    return engine
