"""Writes a model as a GGUF file, one tensor at a time."""

import re
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from tunesmith.errors import UserError
from tunesmith.export.gguf.families import is_of_text, targets, text_name
from tunesmith.export.gguf.limits import IMAGES, family_of, notes
from tunesmith.export.gguf.metadata import extra_tensors, metadata
from tunesmith.export.gguf.vocabulary import Vocabulary, vocabulary_of
from tunesmith.files import replaced
from tunesmith.inference.llama_cpp import gguf_package

PHI3 = r"(?i)phi-?3"
EXACT = (
    "ffn_gate_inp",
    "shortconv.conv.",
    "ssm_conv1d",
)  # kept in float32: routers, and convolution kernels, which llama.cpp reads only so
KINDS = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}


def write_gguf(weights, folder: Path, target: Path, kind: str, stop_ids: tuple[int, ...] = ()) -> list[str]:
    """Writes `target` atomically. Returns notes for the user on how llama.cpp differs from the model.

    `weights` has `.config` (Transformers) and `.shapes` ({name in memory in Transformers 5: shape}, without a tied
    head), and iterates once over (name, tensor) in that order. `folder` has the tokenizer, the chat template and
    generation_config.json. `kind` is f32, f16, bf16 or q8_0; vectors, biases, routers and kernels stay in float32.
    `stop_ids` are further stop tokens besides the eos in generation_config.json. Raises UserError.
    """
    gguf = gguf_package()
    image_notes = [] if weights.config.get_text_config() is weights.config else [IMAGES]
    weights = TextPart(weights) if image_notes else weights
    config = weights.config
    architecture = family_of(config).architecture
    vocabulary = vocabulary_of(folder, weights.shapes["model.embed_tokens.weight"][0], tuple(stop_ids))
    with replaced(target) as draft, closing(gguf.GGUFWriter(draft, architecture)) as writer:
        _describe(writer, config, vocabulary, _name(folder, vocabulary), kind, gguf)
        extra = extra_tensors(config)
        for name, tensor in extra.items():
            _announce(writer, name, tensor.shape, "f32", gguf)
        for name, shape in weights.shapes.items():
            for gguf_name, form in targets(config, name):
                _announce(writer, gguf_name, form(torch.empty(shape, device="meta")).shape, kind, gguf)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in extra.items():
            writer.write_tensor_data(_encoded(name, tensor, "f32", gguf))
        for (name, tensor), expected in zip(weights, weights.shapes, strict=True):
            if name != expected:
                raise ValueError(f"{name} came where {expected} was announced")
            for gguf_name, form in targets(config, name):
                writer.write_tensor_data(_encoded(gguf_name, form(tensor.detach()), kind, gguf))
    return image_notes + notes(config) + vocabulary.notes


class TextPart:
    """The text decoder's weights of a multimodal model, under the names of a text-only model."""

    def __init__(self, weights):
        self.config, self._weights = weights.config.get_text_config(), weights
        self.shapes = {text_name(name): shape for name, shape in weights.shapes.items() if is_of_text(name)}

    def __iter__(self):
        return ((text_name(name), tensor) for name, tensor in self._weights if is_of_text(name))


def write_values(writer, values: dict[str, object]) -> None:
    """Adds metadata by GGUF key, in the type of the Python value: int as uint32, float as float32."""
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in values.items():
        add[type(value)](key, value)


def _describe(writer, config, vocabulary: Vocabulary, name: str, kind: str, gguf) -> None:
    write_values(
        writer,
        {
            "general.type": "model",
            "general.name": name,
            "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
            "general.file_type": int(gguf.LlamaFileType[KINDS[kind]]),
        },
    )
    write_values(writer, {f"{writer.arch}.{key}": value for key, value in metadata(config).items()})
    write_values(writer, vocabulary.metadata)


def _name(folder: Path, vocabulary: Vocabulary) -> str:
    """Returns the folder's name, changed so that it contains phi-3 only if special tokens consume whitespace."""
    name = re.sub(PHI3, "phi_3", folder.resolve().name)
    return f"phi-3 {name}" if vocabulary.strips else name


def is_phi3(name: str) -> bool:
    """Whether special tokens consume whitespace when llama.cpp loads a model of that name."""
    return bool(re.search(PHI3, name))


def _announce(writer, name: str, shape: torch.Size, kind: str, gguf) -> None:
    encoding = _type(name, shape, kind, gguf)
    block, size = gguf.GGML_QUANT_SIZES[encoding]
    writer.add_tensor_info(name, list(shape), np.dtype(np.float32), shape.numel() // block * size, raw_dtype=encoding)


def _type(name: str, shape: torch.Size, kind: str, gguf):
    """Returns the type of a tensor. In q8_0, a matrix whose rows are not a multiple of the block size is f16."""
    types = gguf.GGMLQuantizationType
    if len(shape) == 1 or name.endswith(".bias") or any(part in name for part in EXACT):
        return types.F32
    if kind == "q8_0" and shape[-1] % gguf.GGML_QUANT_SIZES[types.Q8_0][0]:
        return types.F16
    return types[kind.upper()]


def _encoded(name: str, tensor: torch.Tensor, kind: str, gguf) -> np.ndarray:
    types = gguf.GGMLQuantizationType
    encoding = _type(name, tensor.shape, kind, gguf)
    tensor = tensor.cpu().contiguous()
    if encoding == types.BF16:
        return tensor.bfloat16().view(torch.int16).numpy()
    if encoding == types.F16:
        half = tensor.half()
        if not half.isfinite().all():
            raise UserError(f"export: gguf: {name} has numbers that f16 cannot represent; choose bf16 or q8_0")
        return half.numpy()
    return gguf.quants.quantize(tensor.float().numpy(), encoding)
