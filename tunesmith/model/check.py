"""Refuses base models and adapters that cannot be trained, from the config and the headers of the files alone."""

from importlib.util import find_spec
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.model.files import shapes
from tunesmith.model.load import BITSANDBYTES, TRAINABLE, check_complete, empty, stored_as
from tunesmith.recipe import Adapter, Model


def check_base(model: Model, adapter: Adapter, folder: Path, config) -> None:
    """Raises UserError for a base that cannot be trained so."""
    check_config(model, adapter, folder, config)
    if model.initialize == "pretrained" and not stored_as(config):
        _check_weights(folder, config)


def check_config(model: Model, adapter: Adapter, folder: Path, config) -> None:
    """Raises UserError for a base that cannot be trained so, as its config.json alone shows."""
    _check_stored(model, adapter, config)
    _check_architecture(folder, config)


def _check_stored(model: Model, adapter: Adapter, config) -> None:
    """That the base's own quantisation, if any, and that of the recipe go with training."""
    stored = stored_as(config) if model.initialize == "pretrained" else None
    if model.quantize != "none" and stored:
        raise UserError(f"model.quantize: {model.path} is quantised already ({stored}); say model.quantize: none")
    if stored not in (None, *TRAINABLE):
        raise UserError(
            f"model.path: {model.path} is quantised for inference ({stored}), which cannot be trained; use "
            "the model in full precision, with model.quantize: nf4 if memory is short"
        )
    if (model.quantize != "none" or stored == BITSANDBYTES) and find_spec("bitsandbytes") is None:
        key = f"model.quantize: {model.quantize}" if model.quantize != "none" else f"model.path: {model.path}"
        raise UserError(f"{key} needs bitsandbytes: pip install 'tunesmith[bnb]'")
    if stored == BITSANDBYTES and adapter.kind == "full":
        raise UserError(
            f"adapter.kind: full: the weights of {model.path} are stored quantised (bitsandbytes), and "
            "quantised weights cannot be trained; use adapter.kind: lora, or the model in full precision"
        )


def _check_architecture(folder: Path, config) -> None:
    """That config.json does not name a class for another task, such as a classifier or a masked language model."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    named = next(iter(config.architectures or []), None)
    usable = [
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        auto.MODEL_MAPPING_NAMES,
    ]  # the last without a head: whether that is there, the weights show
    known = {
        name
        for mapping in usable
        for value in mapping.values()
        for name in (value if isinstance(value, (list, tuple)) else [value])
    }
    if named and named not in known and hasattr(transformers, named):
        raise UserError(
            f"model.path: {folder} is a {named}, not a causal language model; use one whose config.json "
            "says …ForCausalLM"
        )


def _check_weights(folder: Path, config) -> None:
    """That the files hold each weight that transformers expects, in its shape, and no other: its own loading, done
    with the headers alone."""
    import torch

    hollow = empty(config)
    kind = type(hollow)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes(folder).items()}
    try:
        _, info = kind.from_pretrained(
            None,
            config=hollow.config,
            state_dict=state,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except RuntimeError:
        raise UserError(
            f"model.path: {folder} does not hold the weights of {kind.__name__}: parts of those that it "
            "stacks, such as experts, are missing or of another shape; download it again"
        ) from None
    check_complete(folder, hollow, info)


def check_adapter(adapter: Adapter, new_tokens: list[str], tokenizer, config) -> list[str]:
    """Returns notes on modules that the adapter leaves out. Raises UserError for an adapter that the model cannot have:
    the model gets one here, without storage."""
    import torch

    from tunesmith.model.adapt import adapt, left_out, new_token_ids
    from tunesmith.model.experts import unknown_stacks

    if adapter.kind == "full":
        return []
    hollow = empty(config)
    skipped = left_out(hollow, adapter)
    stacked = unknown_stacks(hollow) if adapter.targets == "all-linear" and adapter.experts else []
    with torch.device("meta"):
        adapt(hollow, adapter, new_token_ids(tokenizer, new_tokens), vocabulary=0)
    notes = {"whose names PEFT takes for the experts'": skipped, "stacked weights of an unknown form": stacked}
    return [
        f"adapter.targets: all-linear leaves out {', '.join(names)}, {why}" for why, names in notes.items() if names
    ]
