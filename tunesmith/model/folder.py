"""Writes a model folder's files other than weights and tokenizer: the base's own files, with the changes of training.

Every program that reads the base can read the result, including those that know only the keys of Transformers 4.
"""

import json
import shutil
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path

from tunesmith.files import read_json, write_json
from tunesmith.model.load import config_of
from tunesmith.model.tokenizer_files import is_of_tokenizer, without_code

CONFIG, GENERATION = "config.json", "generation_config.json"
CODE = {".py", ".ipynb", ".sh", ".so"}
WEIGHTS = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".ggml",
    ".tflite",
    ".pb",
    ".ot",
    ".npz",
    ".nemo",
    ".mlmodel",
    ".engine",
    ".pkl",
    ".pickle",
}
NOT_COPIED = (CONFIG, "README.md", "parity.json", "*.index.json", "adapter_config.json", "params.json", ".*")
"""Files that are rewritten, or that describe the base's weights."""
LONGROPE_KEYS = ("short_factor", "long_factor")


def write_config(base: Path, config, target: Path, quantization: dict | None = None) -> None:
    """Writes config.json into the folder `target`: the base's config.json, updated for the model that is written.

    `config` is that model's Transformers config. From it come the dtype, the vocabulary size, whether the output head
    is tied, and the architectures. `quantization` is the `quantization_config` of its weights, if any.
    """
    was = config_of(base)
    same_class = type(was) is type(config)
    file = without_code(read_json(base / CONFIG) if same_class else json.loads(config.to_json_string()))
    text, text_was = config.get_text_config(), was.get_text_config()
    of_text = file.get(next((name for name in was.sub_configs if getattr(was, name) is text_was), ""), file)
    every = [file, *(part for part in file.values() if isinstance(part, dict))]
    for part in every:
        part.pop("quantization_config", None)
    if text.vocab_size != text_was.vocab_size:
        for part in [part for part in (file, of_text) if "vocab_size" in part] or [of_text]:
            part["vocab_size"] = text.vocab_size
    if _ties(config) != _ties(was):
        for part in (file, of_text):
            part["tie_word_embeddings"] = _ties(config)[1]
    dtype = str(config.dtype).removeprefix("torch.")
    file |= {} if file.keys() & {"dtype", "torch_dtype"} else {"torch_dtype": dtype}
    for part in every:
        part |= {key: dtype for key in ("dtype", "torch_dtype") if isinstance(part.get(key), str)}
    file["architectures"] = config.architectures
    file |= {"quantization_config": quantization} if quantization else {}
    write_json(target / CONFIG, spelled_for_both(file, type(config)))


def _ties(config) -> tuple[bool, bool]:
    """Whether the output head is tied to the embedding, by the whole config and by the text decoder's config, which may
    not say."""
    whole = config.tie_word_embeddings
    return whole, getattr(config.get_text_config(), "tie_word_embeddings", whole)


def spelled_for_both(file: dict, config_class) -> dict:
    """Adds Transformers 4's keys for dtype and rotary embedding to a config.json, if Transformers 5 still reads the
    same config from it."""
    read = _read(file, config_class)
    for keeps_new in (True, False):
        tried = deepcopy(file)
        for part in (tried, *(part for part in tried.values() if isinstance(part, dict))):
            if "dtype" in part:
                part.setdefault("torch_dtype", part["dtype"])
            if part.get("rope_parameters"):
                _spell_rope(part, keeps_new)
        if _read(tried, config_class) == read:
            return tried
    return file


def _read(file: dict, config_class) -> dict:
    """Returns the config that Transformers reads from a config.json, without the keys of Transformers 4."""
    read = config_class.from_dict(deepcopy(file)).to_dict()
    for part in (read, *(part for part in read.values() if isinstance(part, dict))):
        for key in ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "torch_dtype"):
            part.pop(key, None)
        rope = part.get("rope_parameters") or {}
        for one in (rope, *(one for one in rope.values() if isinstance(one, dict))):
            one.pop("type", None)
    return read


def _spell_rope(part: dict, keeps_new: bool) -> None:
    rope = part["rope_parameters"] if keeps_new else part.pop("rope_parameters")
    main = rope.get("full_attention", rope)
    if "sliding_attention" in rope:
        part["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if "rope_theta" in main:
        part["rope_theta"] = main["rope_theta"]
    if "partial_rotary_factor" in main:
        part["partial_rotary_factor"] = main["partial_rotary_factor"]
    scaling = {key: value for key, value in main.items() if key not in ("rope_theta", "partial_rotary_factor")}
    rope_type = scaling.get("rope_type", "default")
    if rope_type == "longrope":  # Transformers 4 accepts only these three keys
        part.setdefault("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
        scaling = {"type": rope_type} | {key: scaling[key] for key in LONGROPE_KEYS}
    part["rope_scaling"] = None if rope_type == "default" else scaling


def write_generation_config(base: Path, target: Path, stop_ids: list[int]) -> None:
    """Writes the base's generation_config.json, if there is one, with `stop_ids` as its stop tokens."""
    own = read_json(base / GENERATION)
    if own is not None:
        write_json(target / GENERATION, own | {"eos_token_id": stop_ids})


def copy_others(base: Path, target: Path) -> None:
    """Copies the base's other files, such as processor configs and licences. Skips code, weights, folders, and files
    that `target` already has."""
    for path in sorted(base.iterdir()):
        skipped = path.suffix in CODE | WEIGHTS or any(fnmatch(path.name, name) for name in NOT_COPIED)
        if skipped or is_of_tokenizer(path.name) or not path.is_file() or (target / path.name).exists():
            continue
        shutil.copyfile(path, target / path.name)
