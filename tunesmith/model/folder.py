"""What a model folder holds beside weights and tokenizer: the base's own files, with only what training changed.

Whatever reads the base reads the result, also what knows only the keys of Transformers 4.
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
OTHERWISE = (CONFIG, "README.md", "parity.json", "*.index.json", "adapter_config.json", "params.json", ".*")
"""Files that are rewritten, or that describe weights that are not copied."""
LONGROPE_KEYS = ("short_factor", "long_factor")


def write_config(base: Path, config, target: Path, quantization: dict | None = None) -> None:
    """Writes config.json into the folder `target`: the base's, with what the model that is written has otherwise.

    `config`: transformers' config of that model, of which its dtype, the rows of its vocabulary, whether its head is
    tied and its architectures count; `quantization`: how its weights are stored.
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
    """Whether the head is the embedding: by the whole config, and by the text decoder, whose config may not say."""
    whole = config.tie_word_embeddings
    return whole, getattr(config.get_text_config(), "tie_word_embeddings", whole)


def spelled_for_both(file: dict, config_class) -> dict:
    """A config.json in which readers of Transformers 4's keys find dtype and rotary embedding as well, provided that
    Transformers 5 reads the same of it."""
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
    """What transformers makes of it, by Transformers 5's names."""
    found = config_class.from_dict(deepcopy(file)).to_dict()
    for part in (found, *(part for part in found.values() if isinstance(part, dict))):
        for key in ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor", "torch_dtype"):
            part.pop(key, None)
        rope = part.get("rope_parameters") or {}
        for one in (rope, *(one for one in rope.values() if isinstance(one, dict))):
            one.pop("type", None)
    return found


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
    kind = scaling.get("rope_type", "default")
    if kind == "longrope":  # of which Transformers 4 takes these three keys and no other
        part.setdefault("original_max_position_embeddings", scaling.get("original_max_position_embeddings"))
        scaling = {"type": kind} | {key: scaling[key] for key in LONGROPE_KEYS}
    part["rope_scaling"] = None if kind == "default" else scaling


def write_generation_config(base: Path, target: Path, stop_ids: list[int]) -> None:
    """The base's generation_config.json, if there is one, with what ends an answer."""
    own = read_json(base / GENERATION)
    if own is not None:
        write_json(target / GENERATION, own | {"eos_token_id": stop_ids})


def copy_others(base: Path, target: Path) -> None:
    """Copies the base's other files, such as processor configs and licences: no code, no weights, no folders, and
    nothing that `target` has already."""
    for path in sorted(base.iterdir()):
        left = path.suffix in CODE | WEIGHTS or any(fnmatch(path.name, name) for name in OTHERWISE)
        if left or is_of_tokenizer(path.name) or not path.is_file() or (target / path.name).exists():
            continue
        shutil.copyfile(path, target / path.name)
