"""Finds how many positions a model supports. Rotary embeddings have no limit; learned position embeddings, and some
computed ones, are tables of fixed length."""

from tunesmith.errors import UserError

MOST_EXTRA_ROWS = 2  # rows before the first position, as in OPT and BART


def trained_positions(config) -> int | None:
    """Returns `max_position_embeddings`, or None if the configuration has none."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def limit(model) -> int | None:
    """Returns the longest sequence that the model accepts, in tokens, if it has a table of positions, else None."""
    import torch

    from tunesmith.model.text import text_decoder

    positions, tokens = trained_positions(model.config), model.get_input_embeddings()
    if not positions:
        return None
    decoder = text_decoder(model)  # a vision tower has its own positions
    embeddings = [
        module.num_embeddings
        for module in decoder.modules()
        if isinstance(module, torch.nn.Embedding) and module is not tokens
    ]
    computed = [len(buffer) for buffer in decoder.buffers() if buffer.ndim == 2 and buffer.is_floating_point()]
    learned = any(positions <= rows <= positions + MOST_EXTRA_ROWS for rows in embeddings)
    return positions if learned or positions in computed else None


def limit_of(config) -> int | None:
    """Returns the `limit` of a model with this configuration, built on the meta device without its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return limit(AutoModelForCausalLM.from_config(config))
    except (ValueError, KeyError, ImportError, UserError):  # it cannot be built from its configuration alone
        return None
