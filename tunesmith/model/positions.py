"""How many positions a model has. Rotary ones have no end; learned ones, and some computed ones, are in a table."""

from tunesmith.errors import UserError

MOST_EXTRA_ROWS = 2  # before the first position, as OPT and BART have them


def trained_positions(config) -> int | None:
    """Positions that the model was trained with, or None if its configuration names none."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def limit(model) -> int | None:
    """The longest row that the model can take, in tokens, if its modules show a table of positions, else None."""
    import torch

    from tunesmith.model.text import text_decoder

    positions, tokens = trained_positions(model.config), model.get_input_embeddings()
    if not positions:
        return None
    decoder = text_decoder(model)  # a vision tower has positions of its own
    embeddings = [
        module.num_embeddings
        for module in decoder.modules()
        if isinstance(module, torch.nn.Embedding) and module is not tokens
    ]
    computed = [len(buffer) for buffer in decoder.buffers() if buffer.ndim == 2 and buffer.is_floating_point()]
    learned = any(positions <= rows <= positions + MOST_EXTRA_ROWS for rows in embeddings)
    return positions if learned or positions in computed else None


def limit_of(config) -> int | None:
    """That of a model with this configuration. No weights are read."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return limit(AutoModelForCausalLM.from_config(config))
    except (ValueError, KeyError, ImportError, UserError):  # it cannot be built from its configuration alone
        return None
