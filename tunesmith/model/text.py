"""The text part of a model that may also read images or sound: what text training walks, adapts and trains."""

from collections.abc import Iterator

from torch import nn

from tunesmith.errors import UserError


def base_of(model):
    """The language model under its adapter, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_multimodal(model) -> bool:
    config = base_of(model).config
    return config.get_text_config() is not config


def text_decoder(model) -> nn.Module:
    """The decoder that reads text embeddings; of a model of text alone, the whole model. Raises UserError for a
    multimodal model that does not show it: its decoder must hold the embeddings and not the vision tower."""
    base = base_of(model)
    if not is_multimodal(base):
        return base
    decoder = base.get_decoder()
    layers = decoder.config.get_text_config().num_hidden_layers if hasattr(decoder, "config") else 0
    holds_embeddings = any(module is base.get_input_embeddings() for module in decoder.modules())
    if decoder is base or not holds_embeddings or not layers:
        raise UserError(f"model.path: the text decoder of {type(base).__name__} cannot be told from the rest")
    return decoder


def text_modules(model) -> Iterator[tuple[str, nn.Module]]:
    """(name in the base model, module) of the text decoder and the output head."""
    base = base_of(model)
    decoder, head = text_decoder(base), base.get_output_embeddings()
    parts = {id(module) for module in decoder.modules()} | {id(head)}
    return ((name, module) for name, module in base.named_modules() if id(module) in parts)


def text_prefix(model) -> str:
    """What the names of the text decoder's weights begin with, in the base model."""
    base = base_of(model)
    decoder = text_decoder(base)
    name = next(name for name, module in base.named_modules() if module is decoder)
    return f"{name}." if name else ""


def freeze_the_rest(model) -> None:
    """Only the text part stays trainable."""
    if is_multimodal(model):
        trained = {id(parameter) for _, module in text_modules(model) for parameter in module.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
