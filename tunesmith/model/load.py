"""A base model from a folder or the hub: safetensors only, never remote code."""

import copy
from pathlib import Path

from tunesmith.errors import UserError, first_line
from tunesmith.files import read_json
from tunesmith.model.files import check_folder, masks
from tunesmith.recipe import Model

TRAINABLE = BITSANDBYTES, MXFP4 = "bitsandbytes", "mxfp4"  # as transformers calls them
NAMES_SHOWN = 3
HUB_FILES = [
    "*.json",
    "*.safetensors",
    "*.jinja",
    "*.model",
    "*.txt",
    "*.tiktoken",
    "LICEN[CS]E*",
    "NOTICE*",
    "*POLICY*",
]


def resolve(model: Model) -> Path:
    """The base model's folder; a hub id is downloaded into the hub's cache first. A GGUF file has none yet:
    `gguf_base.base_folder` makes one of it."""
    folder = Path(model.path).expanduser()
    if folder.is_file():
        raise UserError(f"model.path: {folder} is a file: give the folder of the model, or a .gguf file")
    if folder.is_dir():
        check_folder(folder, model.initialize == "pretrained")
        return folder
    if folder.suffix == ".gguf":
        raise UserError(f"model.path: no file {model.path}")
    if model.path.count("/") != 1 or model.path.startswith((".", "/", "~")):
        raise UserError(f"model.path: no folder {model.path}, and it is not a hub id like org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model.path, revision=model.revision, allow_patterns=HUB_FILES))
    except (HFValidationError, HTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model.path: cannot get {model.path} from the hub: {first_line(error)}") from None
    check_folder(folder, model.initialize == "pretrained")
    return folder


def local_folder(model: Model) -> Path:
    """The folder with the base model's config.json, which need not have weights. Nothing is downloaded: a hub id must
    be in the hub's cache. Raises UserError."""
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path: no config.json in {folder}")
        return folder
    if model.path.count("/") != 1 or model.path.startswith((".", "/", "~")):
        raise UserError(f"model.path: no folder {model.path}, and it is not a hub id like org/name")
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    if isinstance(found, str):
        return Path(found).parent
    raise UserError(
        f"model.path: {model.path} is not in the hub's cache, and planning downloads nothing; "
        f"`hf download {model.path} config.json` fetches what it needs"
    )


def config_of(folder: Path):
    """The model's transformers config. Raises UserError for an architecture that needs its own code."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"model.path: {folder}: transformers cannot read this model: {first_line(error)}") from None


def eos_ids(folder: Path) -> list[int]:
    """Tokens that end the model's answers, in the order of its generation_config.json; there one or a list."""
    found = (read_json(folder / "generation_config.json") or {}).get("eos_token_id")
    return found if isinstance(found, list) else [] if found is None else [found]


def stored_as(config) -> str | None:
    """How the base's own weights are quantised, by the name that transformers has for it."""
    return stored_settings(config).get("quant_method")


def stored_settings(config) -> dict:
    """How the base's own weights are quantised, as its config says; empty if they are not."""
    own = getattr(config, "quantization_config", None) or getattr(config.get_text_config(), "quantization_config", None)
    return own if isinstance(own, dict) else own.to_dict() if own else {}


def stored_in_8_bits(config) -> bool:
    """Whether bitsandbytes stored the base for LLM.int8."""
    return stored_as(config) == BITSANDBYTES and bool(stored_settings(config).get("load_in_8bit"))


def dequantising(config) -> dict:
    """Returns the arguments of from_pretrained that read a base in MXFP4 (gpt-oss as published) as full weights,
    because the kernels for 4 bits have no backward pass. Empty for other bases."""
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)} if stored_as(config) == MXFP4 else {}


def load(model: Model, folder: Path, dtype, attention: str | None, seed: int, on_host: bool = False):
    """The language model, on the CPU, or on the GPU if it is quantised and not `on_host`; `dtype` a torch dtype,
    `attention` as transformers names it, or None for its own choice. Raises UserError unless the files hold all of its
    weights and nothing else."""
    import torch

    quieten()
    config = config_of(folder)
    if model.initialize == "random":
        torch.manual_seed(seed)
        return with_random_weights(config, dtype, attention)
    whole = dequantising(config)
    options = dict(whole)
    if model.quantize != "none":
        from tunesmith.model import quantize

        options["quantization_config"] = quantize.settings(model.quantize, dtype, empty(config))
    if on_host and (model.quantize != "none" or stored_as(config) == BITSANDBYTES):
        options["device_map"] = {"": "cpu"}
    try:
        loaded, info = opener_of(config).from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    except (ValueError, OSError, ImportError) as error:
        raise UserError(f"model.path: {folder}: transformers cannot load this model: {first_line(error)}") from None
    if stored_as(config) in (None, *TRAINABLE):  # other forms name their parts otherwise
        check_complete(folder, loaded, info)
    if dtype == torch.float16:
        _check_range(folder, loaded)
    if whole:  # else it would be saved under the names of what it was read from
        vars(loaded).pop("_weight_conversions", None)
    if model.quantize != "none" or stored_as(config) == BITSANDBYTES:
        from tunesmith.model import quantize

        quantize.settle(loaded)
    return loaded


def with_random_weights(config, dtype=None, attention: str | None = None):
    """The model that a config describes. `dtype` and `attention` as of `load`; None: full precision."""
    quieten()
    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)  # of weights that are not read
    options = {} if dtype is None else {"dtype": dtype, "attn_implementation": attention}
    return opener_of(config).from_config(config, **options)


def empty(config):
    """The model without storage, in full precision."""
    import torch

    with torch.device("meta"):
        return with_random_weights(config)


def saved_dtype(model: Model, config):
    """Returns the precision in which a model that trained whole is saved: the base's, or float32 for a model with
    random weights."""
    import torch

    return torch.float32 if model.initialize == "random" else config.dtype or torch.float32


def opener_of(config):
    """The class of transformers' AutoModel family that opens the model as its config names it: as a causal language
    model, or with what it sees beside text. Raises UserError if there is none."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    found = {
        opener._model_mapping[type(config)].__name__: opener
        for opener in (AutoModelForImageTextToText, AutoModelForCausalLM)
        if type(config) in opener._model_mapping
    }
    if not found:
        raise UserError(
            f"model.path: transformers has no language model for model_type {config.model_type}; use a "
            "causal language model"
        )
    return found.get(next(iter(config.architectures or []), None), [*found.values()][-1])


def _check_range(folder: Path, model) -> None:
    """Raises UserError for weights that float16 does not hold."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float16 and not all(x.isfinite() for x in torch.aminmax(parameter.detach())):
            raise UserError(
                f"model.path: {folder}: weights of {name} are beyond 65,504, the largest number of float16; "
                "set model.dtype: float32"
            )


def check_complete(folder: Path, model, info: dict) -> None:
    """Raises UserError where transformers' loading info names weights that the model lacks in its files, that it has no
    place for, or that have another shape. What is tied, or known to be left over, is not in it; masks that older models
    saved do not count."""
    left_over = info["unexpected_keys"]
    if left_over:  # there under the name in the file, or with the base model's prefix
        left_over = {name for name in left_over if not any(f".{name}".endswith(f".{mask}") for mask in masks(folder))}
    problems = {
        "missing": info["missing_keys"],
        "not part of it": left_over,
        "of another shape": {
            f"{name} {tuple(stored)} for {tuple(own)}" for name, stored, own in info["mismatched_keys"]
        },
    }
    listed = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
    if listed:
        raise UserError(
            f"model.path: {folder} does not hold the weights of {type(model).__name__}: {listed}. Its "
            "config.json and weights must be those of one causal language model"
        )


def _some(names: set[str]) -> str:
    """The first names, layers in order, and how many more there are."""
    ordered = sorted(
        names,
        key=lambda name: [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")],
    )
    more = len(ordered) - NAMES_SHOWN
    return ", ".join(ordered[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def quieten() -> None:
    """The screen is Tunesmith's: no progress bars, load reports and warnings of transformers, nor what bitsandbytes
    logs about each layer."""
    import warnings
    from logging import ERROR, getLogger

    from transformers.utils import logging

    getLogger("bitsandbytes").setLevel(ERROR)

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
