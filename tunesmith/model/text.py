"""Finds the text part of a model that may also read images or sound. Only the text part is adapted and trained."""

from collections.abc import Iterator

from torch import nn

from tunesmith.errors import UserError


def base_of(model):
    """Returns the base model under a PEFT adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_multimodal(model) -> bool:
    config = base_of(model).config
    return config.get_text_config() is not config


def text_decoder(model) -> nn.Module:
    """Returns the text decoder of a multimodal model, or the whole model if it reads only text. Raises UserError if the
    decoder cannot be identified: it must contain the embeddings and not be the whole model."""
    base = base_of(model)
    if not is_multimodal(base):
        return base
    decoder = base.get_decoder()
    layers = decoder.config.get_text_config().num_hidden_layers if hasattr(decoder, "config") else 0
    holds_embeddings = any(module is base.get_input_embeddings() for module in decoder.modules())
    if decoder is base or not holds_embeddings or not layers:
        raise UserError(
            f"model.path: the text decoder of {type(base).__name__} cannot be identified; use a text-only model"
        )
    return decoder


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The text decoder's layers, in order. Raises UserError for a model without any."""
    count = model.config.get_text_config().num_hidden_layers
    for module in text_decoder(model).modules():  # from the outside in, so a layer's own lists come later
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UserError(
        f"{type(base_of(model)).__name__} has no list of {count} layers; set train.gradient_checkpointing, "
        "train.tiled_mlp and train.compile to off"
    )


def text_modules(model) -> Iterator[tuple[str, nn.Module]]:
    """Yields (name in the base model, module) for the text decoder and the output head."""
    base = base_of(model)
    decoder, head = text_decoder(base), base.get_output_embeddings()
    parts = {id(module) for module in decoder.modules()} | {id(head)}
    return ((name, module) for name, module in base.named_modules() if id(module) in parts)


def text_prefix(model) -> str:
    """Returns the prefix of the names of the text decoder's weights in the base model."""
    base = base_of(model)
    decoder = text_decoder(base)
    name = next(name for name, module in base.named_modules() if module is decoder)
    return f"{name}." if name else ""


def freeze_the_rest(model) -> None:
    """Freezes the parameters of a multimodal model outside its text part."""
    if is_multimodal(model):
        trained = {id(parameter) for _, module in text_modules(model) for parameter in module.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
