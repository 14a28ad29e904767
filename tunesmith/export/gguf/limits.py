"""Where llama.cpp computes differently from the model: a UserError, or a note where both agree within limits."""

from collections.abc import Iterator

from tunesmith.errors import UserError
from tunesmith.export.gguf.families import FAMILIES, Family
from tunesmith.export.gguf.metadata import head_size, rope_of, trained_context

IMAGES = (
    "this file is the text decoder. For images llama.cpp reads a second file (--mmproj): that of the base stays "
    "valid, and convert_hf_to_gguf.py --mmproj makes it of the base's folder"
)
CONVERTER = "export `merged`, and convert that folder with llama.cpp's convert_hf_to_gguf.py, which has more families"


def family_of(config) -> Family:
    """Raises UserError for a model that has no mapping, or that llama.cpp would compute differently."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UserError(
            f"export: gguf: no mapping for {config.model_type}; {CONVERTER}. There is one for {', '.join(FAMILIES)}"
        )
    for problem in _problems(family, config):
        raise UserError(f"export: gguf: {config.model_type}: {problem}; export `merged` keeps it")
    return family


def notes(config) -> list[str]:
    """Where llama.cpp computes the same only within limits."""
    rope = rope_of(config)[0]
    found = []
    if trained_context(config) < config.max_position_embeddings:
        found.append(
            f"llama.cpp has no sliding window for {config.model_type}: context_length is "
            f"{trained_context(config)}, within which both compute the same"
        )
    if rope["rope_type"] == "yarn" and not rope.get("truncate", True):
        found.append(
            "llama.cpp rounds the ends of yarn's ramp, which this model does not (rope truncate: false): "
            "logits differ a little"
        )
    if rope["rope_type"] == "longrope":
        found.append(
            "llama.cpp takes the long rope factors for a context longer than "
            f"{rope['original_max_position_embeddings']}, transformers for a text that is"
        )
    return found


def _problems(family: Family, config) -> Iterator[str]:
    """What llama.cpp has fixed and this model has otherwise."""
    heads, size = config.num_attention_heads, head_size(config)
    if family.square and heads * size != config.hidden_size:
        yield f"llama.cpp needs {heads} heads of {size} to be hidden_size {config.hidden_size}"
    activation = (
        getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None) or family.activation
    )  # of one whose config does not name it, there is no other
    if activation != family.activation:
        yield f"llama.cpp computes {family.activation}, the model {activation}"
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
    kind = rope["rope_type"]
    if kind not in ("default", "linear", "yarn") and kind not in family.rope_factors:
        yield f"llama.cpp has no rope scaling {kind} for it"
    if local and local["rope_type"] != "default":
        yield f"llama.cpp has no rope scaling {local['rope_type']} in layers with a window"
    if kind == "yarn" and ((rope.get("beta_fast") or 32) != 32 or (rope.get("beta_slow") or 1) != 1):
        yield "llama.cpp has yarn's beta_fast 32 and beta_slow 1 only"
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and not family.partial_rotary:
        yield "llama.cpp rotates whole heads"


def _gemma_problems(config) -> Iterator[str]:
    # The largest of each generation scales attention otherwise; llama.cpp tells it by its layers.
    largest = {"gemma2": 46, "gemma3_text": 62}[config.model_type] == config.num_hidden_layers
    scale = config.hidden_size // config.num_attention_heads if largest else head_size(config)
    if config.query_pre_attn_scalar != scale:
        yield f"llama.cpp has query_pre_attn_scalar {scale}, the model {config.query_pre_attn_scalar}"
    if config.model_type == "gemma2" and not (config.attn_logit_softcapping and config.final_logit_softcapping):
        yield "llama.cpp always caps the logits"
    if config.model_type == "gemma3_text" and (config.attn_logit_softcapping or config.use_bidirectional_attention):
        yield "llama.cpp neither caps attention logits nor attends forwards"


def _gemma4_problems(config) -> Iterator[str]:
    if rope_of(config)[0]["rope_type"] != "proportional":
        yield "llama.cpp has proportional rope in layers without a window"
    if {*config.layer_types} != {"full_attention", "sliding_attention"}:
        yield "llama.cpp has layers with and without a window"
    if config.use_bidirectional_attention == "all":
        yield "llama.cpp does not attend forwards"
    if getattr(config, "hidden_size_per_layer_input", None) and config.vocab_size_per_layer_input != config.vocab_size:
        yield f"llama.cpp has embeddings of layers for all {config.vocab_size} tokens"
    own = config.num_hidden_layers - config.num_kv_shared_layers
    if config.num_kv_shared_layers and config.layer_types[own - 2 : own] != ["sliding_attention", "full_attention"]:
        yield "llama.cpp takes shared keys from the last two layers with their own, one with a window, then one without"


def _smollm3_problems(config) -> Iterator[str]:
    if list(config.no_rope_layers) != [int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)]:
        yield "llama.cpp leaves rope out of every fourth layer only (no_rope_layers)"


def _moe_problems(config) -> Iterator[str]:
    qwen = config.model_type == "qwen3_moe"
    if config.norm_topk_prob != qwen:
        yield f"llama.cpp has norm_topk_prob {str(qwen).lower()}"
    if qwen and (config.mlp_only_layers or config.decoder_sparse_step != 1):
        yield "llama.cpp has experts in every layer"
    if not qwen and (config.num_key_value_heads != config.num_attention_heads or config.clip_qkv):
        yield "llama.cpp has as many key heads as query heads, not clipped"


def _exaone_problems(config) -> Iterator[str]:
    if config.sliding_window:
        yield "llama.cpp takes the windows of the one with 64 layers only"


def _cohere_problems(config) -> Iterator[str]:
    if config.layer_types != [
        "full_attention" if n % 4 == 3 else "sliding_attention" for n in range(config.num_hidden_layers)
    ]:
        yield "llama.cpp has a window in all layers but every fourth"
    if not config.tie_word_embeddings:
        yield "llama.cpp takes the embedding for the output matrix"


def _olmo3_problems(config) -> Iterator[str]:
    rope, local = rope_of(config)
    if local and local["rope_theta"] != rope["rope_theta"]:
        yield "llama.cpp has one rope_theta for layers with and without a window"


def _qwen35_problems(config) -> Iterator[str]:
    if config.linear_key_head_dim != config.linear_value_head_dim:
        yield (
            f"llama.cpp has one size of key and value heads in linear attention, not {config.linear_key_head_dim} "
            f"and {config.linear_value_head_dim}"
        )
    if config.rms_norm_eps != 1e-6:
        yield "llama.cpp takes rms_norm_eps for the norms of linear attention's keys too, transformers 1e-6"


def _gpt_oss_problems(config) -> Iterator[str]:
    if (config.swiglu_alpha, config.swiglu_limit) != (1.702, 7.0):
        yield "llama.cpp has swiglu_alpha 1.702 and swiglu_limit 7"
