"""A model folder as transformers and vLLM open it: the adapter merged into the base's weights, a layer at a time."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from tunesmith.export.merged_weights import Weights, weights_of
from tunesmith.export.model_folder import copy_settings
from tunesmith.export.parity import in_vllm
from tunesmith.export.parity.subject import Transformers
from tunesmith.export.settings import MergeSettings as Settings
from tunesmith.files import follow_umask, write_json
from tunesmith.model.folder import copy_others, write_config
from tunesmith.model.load import config_of, stored_in_8_bits
from tunesmith.run import Run

SHARD_BYTES = 500_000_000
elsewhere = in_vllm.elsewhere
BY_DTYPE = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def write(run: Run, folder: Path, settings: Settings) -> None:
    """Writes weights, config, tokenizer, chat template and generation settings into `folder`, which exists."""
    weights = weights_of(run, settings.into)
    copy_settings(run, folder)
    write_model(weights, folder)


def write_model(weights: Weights, folder: Path, stored=None, quantization: dict | None = None):
    """Writes config.json, the weights in pieces and the base's other files. `stored(layer)` gives the tensors of the
    files, by default those of the model's own; `quantization` describes others to those who open them."""
    stored = stored or weights.of_files
    weights.config.dtype, weights.config.architectures = weights.dtype, [weights.architecture]
    write_config(weights.folder, weights.config, folder, quantization)
    copy_others(weights.folder, folder)
    shards: list[list[str]] = []
    waiting: dict[str, torch.Tensor] = {}
    total = 0
    for layer in weights.layers():
        waiting |= stored(layer)
        if _bytes(waiting) >= SHARD_BYTES:
            total += _save(waiting, folder, shards)
            waiting = {}
    total += _save(waiting, folder, shards) if waiting else 0
    _name(folder, shards, total)


def _save(tensors: dict[str, torch.Tensor], folder: Path, shards: list[list[str]]) -> int:
    file = folder / f"{len(shards)}.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    follow_umask(file)
    shards.append(list(tensors))
    return _bytes(tensors)


def _name(folder: Path, shards: list[list[str]], total: int) -> None:
    """Gives the pieces the names that transformers looks for, and where there are several their index."""
    if len(shards) == 1:
        (folder / "0.safetensors").rename(folder / "model.safetensors")
        return
    files = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    for number, file in enumerate(files):
        (folder / f"{number}.safetensors").rename(folder / file)
    where = {name: file for file, names in zip(files, shards) for name in names}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def opened(run: Run, folder: Path, settings: Settings) -> Transformers:
    """The model as transformers opens it."""
    return Transformers.load(folder)


def precision(run: Run, settings: Settings) -> str:
    """By which bound of parity it is judged."""
    rounded = settings.into == "dequantised" and run.recipe.model.quantize == "int8"
    if rounded or stored_in_8_bits(config_of(run.base)):
        return "q8_0"  # LLM.int8 rounds activations too
    return BY_DTYPE[run.plan.weights]
