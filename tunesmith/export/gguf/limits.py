"""Finds models that llama.cpp computes differently: a UserError, or a note if both agree within limits."""

from collections.abc import Iterator

from tunesmith.errors import UserError
from tunesmith.export.gguf.families import FAMILIES, Family
from tunesmith.export.gguf.metadata import head_size, rope_of, trained_context

IMAGES = (
    "this file contains only the text decoder. For images, llama.cpp reads a second file (--mmproj): the base's stays "
    "valid, and convert_hf_to_gguf.py --mmproj creates it from the base's folder"
)
CONVERTER = "export `merged`, and convert that folder with llama.cpp's convert_hf_to_gguf.py, which has more families"


def family_of(config) -> Family:
    """Returns the GGUF mapping of a model. Raises UserError if there is none, or if llama.cpp would compute the model
    differently."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(
            f"export: gguf: no mapping for {config.model_type}; {CONVERTER}. Supported here are {', '.join(FAMILIES)}"
        )
    for problem in _problems(family, config):
        raise UserError(f"export: gguf: {config.model_type}: {problem}; export `merged` keeps it")
    return family


def notes(config) -> list[str]:
    """Returns notes for the user on the limits within which llama.cpp computes the same."""
    rope = rope_of(config)[0]
    texts = []
    if trained_context(config) < config.max_position_embeddings:
        texts.append(
            f"llama.cpp has no sliding window for {config.model_type}, so context_length is "
            f"{trained_context(config)}, up to which both compute the same"
        )
    if rope["rope_type"] == "yarn" and not rope.get("truncate", True):
        texts.append(
            "llama.cpp rounds the ends of yarn's ramp, but this model does not (rope truncate: false), so logits "
            "differ slightly"
        )
    if rope["rope_type"] == "longrope":
        texts.append(
            "llama.cpp uses the long rope factors if the context is longer than "
            f"{rope['original_max_position_embeddings']}, Transformers if the text is"
        )
    return texts


def _problems(family: Family, config) -> Iterator[str]:
    """Yields each setting of this model that differs from a fixed one in llama.cpp."""
    heads, size = config.num_attention_heads, head_size(config)
    if family.square and heads * size != config.hidden_size:
        yield f"llama.cpp requires {heads} heads of {size} to equal hidden_size {config.hidden_size}"
    activation = (
        getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None) or family.activation
    )  # a family whose config does not name its activation has only one
    if activation != family.activation:
        yield f"llama.cpp uses the activation {family.activation}, the model {activation}"
    yield from _rope_problems(family, config)
    yield from {
        "gemma2": _gemma_problems,
        "gemma3_text": _gemma_problems,
        "smollm3": _smollm3_problems,
        "qwen3_moe": _moe_problems,
        "olmoe": _moe_problems,
        "gpt_oss": _gpt_oss_problems,
        "exaone4": _exaone_problems,
        "cohere2": _cohere_problems,
        "olmo3": _olmo3_problems,
        "qwen3_5_text": _qwen35_problems,
        "gemma4_text": _gemma4_problems,
        "gemma4_unified_text": _gemma4_problems,
    }.get(config.model_type, lambda _: ())(config)


def _rope_problems(family: Family, config) -> Iterator[str]:
    rope, local = rope_of(config)
    rope_type = rope["rope_type"]
    if rope_type not in ("default", "linear", "yarn") and rope_type not in family.rope_factors:
        yield f"llama.cpp does not support the rope scaling {rope_type} for it"
    if local and local["rope_type"] != "default":
        yield f"llama.cpp does not support the rope scaling {local['rope_type']} in layers with a sliding window"
    if rope_type == "yarn" and ((rope.get("beta_fast") or 32) != 32 or (rope.get("beta_slow") or 1) != 1):
        yield "llama.cpp supports only beta_fast 32 and beta_slow 1 of yarn"
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and not family.partial_rotary:
        yield "llama.cpp always rotates whole heads (partial_rotary_factor)"


def _gemma_problems(config) -> Iterator[str]:
    # The largest model of each generation scales attention differently; llama.cpp recognises it by its layer count.
    largest = {"gemma2": 46, "gemma3_text": 62}[config.model_type] == config.num_hidden_layers
    scale = config.hidden_size // config.num_attention_heads if largest else head_size(config)
    if config.query_pre_attn_scalar != scale:
        yield f"llama.cpp uses query_pre_attn_scalar {scale}, the model {config.query_pre_attn_scalar}"
    if config.model_type == "gemma2" and not (config.attn_logit_softcapping and config.final_logit_softcapping):
        yield "llama.cpp always caps the logits"
    if config.model_type == "gemma3_text" and (config.attn_logit_softcapping or config.use_bidirectional_attention):
        yield "llama.cpp supports neither capped attention logits nor bidirectional attention"


def _gemma4_problems(config) -> Iterator[str]:
    if rope_of(config)[0]["rope_type"] != "proportional":
        yield "llama.cpp always uses proportional rope in layers without a sliding window"
    if {*config.layer_types} != {"full_attention", "sliding_attention"}:
        yield "llama.cpp requires both layers with and layers without a sliding window"
    if config.use_bidirectional_attention == "all":
        yield "llama.cpp does not support bidirectional attention"
    if getattr(config, "hidden_size_per_layer_input", None) and config.vocab_size_per_layer_input != config.vocab_size:
        yield f"llama.cpp requires per-layer embeddings for all {config.vocab_size} tokens"
    own = config.num_hidden_layers - config.num_kv_shared_layers
    if config.num_kv_shared_layers and config.layer_types[own - 2 : own] != ["sliding_attention", "full_attention"]:
        yield (
            "llama.cpp shares the keys of the last two layers that have their own, which must be one with a sliding "
            "window, then one without"
        )


def _smollm3_problems(config) -> Iterator[str]:
    if list(config.no_rope_layers) != [int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)]:
        yield "llama.cpp omits rope in every fourth layer only (no_rope_layers)"


def _moe_problems(config) -> Iterator[str]:
    qwen = config.model_type == "qwen3_moe"
    if config.norm_topk_prob != qwen:
        yield f"llama.cpp always uses norm_topk_prob {str(qwen).lower()}"
    if qwen and (config.mlp_only_layers or config.decoder_sparse_step != 1):
        yield "llama.cpp requires experts in every layer"
    if not qwen and (config.num_key_value_heads != config.num_attention_heads or config.clip_qkv):
        yield "llama.cpp requires as many key heads as query heads, and no clip_qkv"


def _exaone_problems(config) -> Iterator[str]:
    if config.sliding_window:
        yield "llama.cpp supports sliding windows only in the model with 64 layers"


def _cohere_problems(config) -> Iterator[str]:
    if config.layer_types != [
        "full_attention" if n % 4 == 3 else "sliding_attention" for n in range(config.num_hidden_layers)
    ]:
        yield "llama.cpp uses a sliding window in all layers except every fourth"
    if not config.tie_word_embeddings:
        yield "llama.cpp always uses the embedding as the output matrix"


def _olmo3_problems(config) -> Iterator[str]:
    rope, local = rope_of(config)
    if local and local["rope_theta"] != rope["rope_theta"]:
        yield "llama.cpp uses one rope_theta for layers with and without a sliding window"


def _qwen35_problems(config) -> Iterator[str]:
    if config.linear_key_head_dim != config.linear_value_head_dim:
        yield (
            f"llama.cpp requires one size of key and value heads in linear attention, not {config.linear_key_head_dim} "
            f"and {config.linear_value_head_dim}"
        )
    if config.rms_norm_eps != 1e-6:
        yield "llama.cpp also uses rms_norm_eps for the key norms of linear attention, where Transformers uses 1e-6"


def _gpt_oss_problems(config) -> Iterator[str]:
    if (config.swiglu_alpha, config.swiglu_limit) != (1.702, 7.0):
        yield "llama.cpp always uses swiglu_alpha 1.702 and swiglu_limit 7"
