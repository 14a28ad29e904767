"""Floating-point operations of training, counted from a model's configuration."""

CONVENTION = (
    "counting for each token 6 operations a weight that trains and 4 a frozen one (its own gradient is not computed), "
    "over the matrices a token goes through: of a mixture its chosen experts and the router, the output layer at "
    "supervised tokens, not the embedding, not the adapter's own; and causal attention; nothing that is computed twice"
)


def per_token(config, length: int, trained: bool, supervised: float = 1.0) -> float:
    """Operations a token of a step from rows of `length` tokens, of which the share `supervised` is learned from.

    `config` is that of a causal language model in transformers; `trained`: all its weights are, not an adapter alone.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // heads
    projections = hidden * head_size * 2 * (heads + config.num_key_value_heads)
    layer = projections + _feed_forward(config)
    weights = config.num_hidden_layers * layer + supervised * config.vocab_size * hidden
    # Scores and their use: 4 operations a head's number and token seen, on average half of the row, three times.
    attention = 3 * 4 * config.num_hidden_layers * heads * head_size * length / 2
    return (6 if trained else 4) * weights + attention


def _feed_forward(config) -> int:
    """Weights that a token goes through after attention, gate, up and down projections."""
    experts = getattr(config, "num_experts", None)
    if not experts:
        return 3 * config.hidden_size * config.intermediate_size
    chosen = config.num_experts_per_tok * 3 * config.hidden_size * config.moe_intermediate_size
    return chosen + config.hidden_size * experts
