"""Writes a LoRA adapter of PEFT as GGUF, which llama.cpp loads on top of the base model's GGUF."""

import json
import math
import re
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from tunesmith.errors import UserError
from tunesmith.export.gguf.families import inputs_form, targets, text_name
from tunesmith.export.gguf.limits import family_of
from tunesmith.export.gguf.write import write_values
from tunesmith.files import replaced
from tunesmith.inference.llama_cpp import gguf_package

NOT_LORA = {
    "use_dora": "DoRA",
    "modules_to_save": "fully trained modules",
    "trainable_token_indices": "trained tokens",
    "lora_bias": "trained biases",
    "fan_in_fan_out": "transposed layers",
}


def write_adapter(peft_folder: Path, base_config, target: Path) -> None:
    """Writes `target` atomically, in float32. PEFT's scale of each module is multiplied into its B matrix.

    Raises UserError for an adapter that is not plain LoRA of linear layers.
    """
    gguf = gguf_package()
    base_config = base_config.get_text_config()
    architecture = family_of(base_config).architecture
    settings = json.loads((peft_folder / "adapter_config.json").read_text("utf-8"))
    _check(settings)
    tensors = load_file(peft_folder / "adapter_model.safetensors")
    with replaced(target) as draft, closing(gguf.GGUFWriter(draft, architecture)) as writer:
        write_values(writer, {"general.type": "adapter", "adapter.type": "lora", "general.name": peft_folder.name})
        for name, pair in _pairs(tensors).items():
            for gguf_name, a, b in _factors(base_config, settings, name, *pair):
                writer.add_tensor(f"{gguf_name}.lora_a", np.ascontiguousarray(a.float().numpy()))
                writer.add_tensor(f"{gguf_name}.lora_b", np.ascontiguousarray(b.float().numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _check(settings: dict) -> None:
    more = [what for key, what in NOT_LORA.items() if settings.get(key)]
    if settings.get("peft_type") != "LORA" or more:
        raise _refused(more[0] if more else str(settings.get("peft_type")))


def _pairs(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns {name of the adapted module or weight: (A, B)}."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if not match:
            raise _refused(key)
        pairs.setdefault(text_name(match[1]), {})[match[2]] = tensor
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


def _factors(config, settings: dict, name: str, a: torch.Tensor, b: torch.Tensor):
    """Yields (GGUF name, A, B) for each GGUF weight that the adapted weight becomes."""
    module = re.sub(r"(\.base_layer)+$", "", name)
    if module == "lm_head" and config.tie_word_embeddings:
        raise _refused("the output layer, which is the embedding")
    if module == "model.per_layer_model_projection":
        raise _refused(f"{module}, which llama.cpp computes without an adapter")
    if a.ndim != 2:
        raise _refused(f"the convolution {module}")
    stack = module.endswith(".experts")
    experts = getattr(config, family_of(config).expert_count) if stack else 1
    rank = a.shape[0] // experts
    b = b.float() * _scale(settings, module, rank)
    if not stack:
        for gguf_name, form in targets(config, f"{module}.weight"):
            ordered = inputs_form(config, gguf_name)
            yield (gguf_name, ordered(a), b) if ordered else (gguf_name, a, form(b))
        return
    a_ERI, b_EOR = a.reshape(experts, rank, -1), b.reshape(-1, rank, experts).permute(2, 0, 1)
    # A layer's experts have two nested adapters, one for gate_up_proj and one for down_proj; their shapes differ.
    family = family_of(config)
    reads = (b_EOR.shape[1], a_ERI.shape[2]) == (2 * getattr(config, family.expert_width), config.hidden_size)
    if not reads and "ffn_down_exps.scale" in family.parameters.values():
        raise _refused(f"{module}.down_proj, whose scale of each expert llama.cpp does not apply to an adapter")
    turned = family.experts == "strides"
    for gguf_name, form in targets(config, f"{module}.{'gate_up_proj' if reads else 'down_proj'}"):
        yield gguf_name, a_ERI, form(b_EOR.transpose(1, 2) if turned else b_EOR)


def _scale(settings: dict, module: str, rank: int) -> float:
    alphas = settings.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(alphas, module), settings["lora_alpha"])
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _refused(what: str) -> UserError:
    return UserError(
        f"export: gguf adapter: llama.cpp supports only LoRA of linear layers, this adapter has {what}; export merged"
    )
