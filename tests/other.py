"""Small models of further architectures, all with one tokenizer: of text, and of text and images."""

from pathlib import Path

import torch
import transformers

from tests import tiny

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
SHARED = {
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
TEXT = {
    "Falcon": {
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "ffn_hidden_size": 64,
        "alibi": False,
        "bias": False,
    },
    "Gemma3nText": {
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": 500,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "Glm4Moe": SHARED | {"head_dim": 16},
    "DeepseekV3": SHARED
    | {
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "Qwen2Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "decoder_sparse_step": 1,
    },
    "Ernie4_5_Moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1},
    "Llama4Text": {
        "head_dim": 16,
        "intermediate_size_mlp": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 64,
    },
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": 14,
}
# Text and vision have the same number of layers.
IMAGES = {
    "Gemma3": (
        {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 16},
        {},
        {"mm_tokens_per_image": 4, "image_token_index": 3},
    ),
    "Mistral3": ({"model_type": "mistral"}, {"model_type": "pixtral", "head_dim": 16}, {"image_token_index": 3}),
    "Llava": (
        {"model_type": "llama"},
        {"model_type": "clip_vision_model", "projection_dim": 32},
        {"image_token_index": 3},
    ),
    "Qwen2_5_VL": (
        MROPE | {"tie_word_embeddings": True},
        QWEN_VISION | {"fullatt_block_indexes": [1]},
        {"image_token_id": 3, "tie_word_embeddings": True},
    ),
    "Qwen3VL": (
        MROPE,
        QWEN_VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        {"image_token_id": 3},
    ),
    "Idefics3": ({"model_type": "llama"}, {}, {"image_token_id": 3, "scale_factor": 2}),
    "SmolVLM": ({"model_type": "llama"}, {}, {"image_token_id": 3, "scale_factor": 2}),
    "InternVL": ({"model_type": "qwen2"}, {"image_size": [28, 28], "patch_size": [14, 14]}, {"image_token_id": 3}),
}


def save_text(prefix: str, folder: Path, **changes) -> Path:
    tokens = _tokens(folder)
    config = getattr(transformers, f"{prefix}Config")(**SIZES | tokens | TEXT.get(prefix, {}) | changes)
    return _save(f"{prefix.removesuffix('Text')}ForCausalLM", config, folder)


def save_images(prefix: str, folder: Path) -> Path:
    tokens = _tokens(folder)
    text, vision, whole = IMAGES[prefix]
    own = {} if prefix.startswith("Qwen") else VISION
    config = getattr(transformers, f"{prefix}Config")(
        text_config=SIZES | tokens | {"head_dim": 16} | text,
        vision_config=own | vision,
        **{"pad_token_id": tokens["pad_token_id"]} | whole,
    )
    return _save(f"{prefix}ForConditionalGeneration", config, folder)


def _tokens(folder: Path) -> dict[str, int]:
    tokenizer = tiny.save_tokenizer("qwen2", folder)
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
    }


def _save(kind: str, config, folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(transformers, kind)(config).save_pretrained(folder)
    return Path(folder)
