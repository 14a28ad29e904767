"""A base model from a folder or the hub: safetensors only, never remote code."""

from importlib.util import find_spec
from pathlib import Path

from tunesmith.errors import UserError, first_line
from tunesmith.recipe import Model
from tunesmith.run import read_json

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def resolve(model: Model) -> Path:
    """The base model's folder; a hub id is downloaded into the hub's cache first."""
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        _check(folder, model)
        return folder
    if model.path.count("/") != 1 or model.path.startswith((".", "/", "~")):
        raise UserError(f"model.path: no folder {model.path}, and it is not a hub id like org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model.path, revision=model.revision, allow_patterns=HUB_FILES))
    except (HFValidationError, HTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model.path: cannot get {model.path} from the hub: {first_line(error)}") from None
    _check(folder, model)
    return folder


def _check(folder: Path, model: Model) -> None:
    if not (folder / "config.json").exists():
        raise UserError(f"model.path: {folder} has no config.json, so it is not a model folder")
    if model.initialize == "pretrained" and not any(folder.glob("*.safetensors")):
        others = [f.name for f in folder.glob("*.bin")]
        hint = f"only {others[0]}, which Tunesmith never unpickles; convert it first" if others else "no weights"
        raise UserError(f"model.path: {folder} has no .safetensors: {hint}. To train from nothing: "
                        "model.initialize: random")


def config_of(folder: Path):
    """The model's transformers config. Raises UserError for an architecture that needs its own code."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"model.path: {folder}: transformers cannot read this model: {first_line(error)}") from None


def is_mixture(config) -> bool:
    """Whether the model has experts, by the names that transformers' configurations have for their number."""
    text = config.get_text_config()
    return any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def eos_ids(folder: Path) -> list[int]:
    """Tokens that end the model's answers, in the order of its generation_config.json; there one or a list."""
    found = (read_json(folder / "generation_config.json") or {}).get("eos_token_id")
    return found if isinstance(found, list) else [] if found is None else [found]


def check_quantize(model: Model, config) -> None:
    """That the base can be quantised as asked. Raises UserError."""
    if model.quantize == "none":
        return
    if find_spec("bitsandbytes") is None:
        raise UserError(f"model.quantize: {model.quantize} needs bitsandbytes: pip install 'tunesmith[bnb]'")
    if method := stored_as(config):
        raise UserError(f"model.quantize: {model.path} is quantised already ({method}); say model.quantize: none")


def stored_as(config) -> str | None:
    """How the base's own weights are quantised, by the name that transformers has for it."""
    own = getattr(config, "quantization_config", None)
    if own is None:
        return None
    return own["quant_method"] if isinstance(own, dict) else own.quant_method.value


def dequantising(config) -> dict:
    """What from_pretrained needs so that a base in MXFP4 (gpt-oss as published) is read as full weights: what computes
    with it in 4 bits has no backward pass. Nothing for others."""
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)} if stored_as(config) == "mxfp4" else {}


def load(model: Model, folder: Path, dtype, attention: str | None, seed: int):
    """The causal language model, on the CPU, or on the card if it is quantised; `dtype` a torch dtype, `attention` as
    transformers names it, or None for its own choice."""
    import torch
    from transformers import AutoModelForCausalLM

    quieten()
    config = config_of(folder)
    if model.initialize == "random":
        torch.manual_seed(seed)
        vars(config).pop("quantization_config", None)  # of the weights that are not read
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    whole = dequantising(config)
    options = dict(whole)
    if model.quantize != "none":
        from tunesmith.model import quantize

        options["quantization_config"] = quantize.settings(model.quantize, dtype)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False,
            **options)
    except (ValueError, OSError) as error:
        raise UserError(f"model.path: {folder}: transformers cannot load this model: {first_line(error)}") from None
    if whole:  # else it would be saved under the names of what it was read from
        vars(loaded).pop("_weight_conversions", None)
    if model.quantize != "none":
        quantize.settle(loaded)
    return loaded


def on_best(model):
    """The model on the card, if there is one with room for its weights and a quarter more; else where it is."""
    import torch

    if torch.cuda.is_available() and model.device.type == "cpu":
        bytes_ = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        if 1.25 * bytes_ < torch.cuda.mem_get_info()[0]:
            return model.to("cuda")
    return model


def quieten() -> None:
    """The screen is Tunesmith's: no progress bars of transformers, nor what it tells PEFT about an old name, nor what
    bitsandbytes tells about each layer."""
    import warnings
    from logging import ERROR, getLogger

    from transformers.utils import logging

    getLogger("bitsandbytes").setLevel(ERROR)

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def save_tokenizer(model: Model, folder: Path, target: Path) -> None:
    """Writes the tokenizer as the result will have it: with the recipe's new tokens and chat template."""
    from transformers import AutoTokenizer

    from tunesmith.data.tokenizer import Tokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, mistral_format=False)
    except (ValueError, OSError) as error:
        raise UserError(f"model.path: {folder}: transformers cannot read its tokenizer: {first_line(error)}") from None
    tokenizer.add_tokens(model.new_tokens)
    tokenizer.save_pretrained(target)
    template = Tokenizer.load(target, model.chat_template).chat_template
    if template != tokenizer.chat_template:
        tokenizer.chat_template = template
        tokenizer.save_pretrained(target)
