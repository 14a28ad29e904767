"""Builds the hyperparameters of a GGUF header, and the tensors that follow from the config alone."""

import math
from typing import Any

import torch

from tunesmith.export.gguf.families import FAMILIES

STILL = 1e30  # divisor of the frequency of dimensions that are not rotated


def metadata(config) -> dict[str, Any]:
    """Returns the hyperparameters by GGUF key, without the architecture's prefix."""
    family = FAMILIES[config.model_type]
    size = head_size(config)
    values = {
        "context_length": trained_context(config),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": _of_full_layers(config).num_key_value_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "vocab_size": config.vocab_size,
    }
    norm = "layer_norm_epsilon" if family.layer_norm else "layer_norm_rms_epsilon"
    values[f"attention.{norm}"] = float(getattr(config, family.epsilon))
    values |= {key: float(getattr(config, name)) for key, name in family.scales}
    if family.experts and getattr(config, family.expert_count):
        values |= {
            "expert_count": getattr(config, family.expert_count),
            "expert_used_count": getattr(config, family.experts_used),
            "expert_feed_forward_length": getattr(config, family.expert_width),
        }
    if family.window and getattr(config, "sliding_window", None):
        values |= {
            "attention.sliding_window": config.sliding_window,
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
        }
    for key, name in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        if getattr(config, name, None):
            values[key] = float(getattr(config, name))
    own = {
        "lfm2": _lfm2_values,
        "ministral3": _ministral_values,
        "qwen3_5_text": _qwen35_values,
        "gemma4_text": _gemma4_values,
        "gemma4_unified_text": _gemma4_values,
    }.get(config.model_type, lambda _: {})
    return values | _rope(config, size) | own(config)


def _lfm2_values(config) -> dict[str, Any]:
    """Returns LFM2's own values. llama.cpp recognises convolution layers by 0 key heads."""
    width = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        width = int(2 * width / 3)
        if config.block_ffn_dim_multiplier is not None:
            multiple = config.block_multiple_of
            width = -(int(config.block_ffn_dim_multiplier * width) // -multiple) * multiple
    return {
        "feed_forward_length": width,
        "shortconv.l_cache": config.conv_L_cache,
        "attention.head_count_kv": [0 if kind == "conv" else config.num_key_value_heads for kind in config.layer_types],
    }


def _ministral_values(config) -> dict[str, Any]:
    """Returns the values of Llama 4's attention temperature, which scales queries by the logarithm of the position over
    the original context."""
    rope = config.rope_parameters
    return {
        "attention.temperature_scale": float(rope["llama_4_scaling_beta"]),
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
    }


def _qwen35_values(config) -> dict[str, Any]:
    linear = [kind == "linear_attention" for kind in config.layer_types]
    sections = config.rope_parameters.get("mrope_section", [11, 11, 10])
    return {
        "rope.dimension_sections": [*sections, 0],
        "attention.recurrent_layers": linear,
        "full_attention_interval": (linear.index(False) if False in linear else len(linear)) + 1,
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
    }


def _gemma4_values(config) -> dict[str, Any]:
    layers = [config.per_layer_config[layer] for layer in range(config.num_hidden_layers)]
    own = config.num_hidden_layers - config.num_kv_shared_layers
    local = config.per_layer_config["sliding_attention"].head_dim
    return {
        "attention.key_length_swa": local,
        "attention.value_length_swa": local,
        "rope.dimension_count": head_size(config),
        "rope.dimension_count_swa": local,
        "attention.head_count_kv": [layer.num_key_value_heads for layer in layers],
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "final_logit_softcapping": float(config.final_logit_softcapping or 0),  # llama.cpp's default is 30
        "embedding_length_per_layer_input": getattr(config, "hidden_size_per_layer_input", None) or 0,
        "feed_forward_length": [
            config.intermediate_size * (2 if config.use_double_wide_mlp and n >= own else 1) for n in range(len(layers))
        ],
    }


def extra_tensors(config) -> dict[str, torch.Tensor]:
    """Returns tensors that Transformers computes and llama.cpp reads: factors of rotary frequencies, (head_dim /
    2,)."""
    rope = rope_of(config)[0]
    if rope["rope_type"] in ("llama3", "proportional"):
        frequencies, _ = _rotary(config, rope)
        plain = rope["rope_theta"] ** -(torch.arange(len(frequencies)) / len(frequencies))
        return {"rope_freqs.weight": (plain / frequencies).float().clamp(max=STILL)}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{kind}.weight": torch.tensor(rope[f"{kind}_factor"]).float() for kind in ("long", "short")
        }
    return {}


def head_size(config) -> int:
    """Returns the head size of the layers without a sliding window."""
    config = _of_full_layers(config)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_of(config) -> tuple[dict, dict | None]:
    """Returns the rope settings of layers with full attention, and of layers with a sliding window if they have their
    own, else None."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "dynamic" and rope.get("alpha"):  # a fixed factor, as in Hunyuan
        size = head_size(config)
        return rope | {
            "rope_type": "default",
            "rope_theta": rope["rope_theta"] * rope["alpha"] ** (size / (size - 2)),
        }, None
    if "full_attention" in rope:
        return rope["full_attention"], rope.get("sliding_attention")
    return rope, None


def trained_context(config) -> int:
    """Returns the number of tokens up to which llama.cpp attends as the model does."""
    window = getattr(config, "sliding_window", None)
    used = window and getattr(config, "use_sliding_window", True)
    if used and not FAMILIES[config.model_type].window:
        return min(window, config.max_position_embeddings)
    return config.max_position_embeddings


def _of_full_layers(config):
    """Returns the config of the layers without a sliding window, if a model has configs per layer."""
    return config.per_layer_config["full_attention"] if getattr(config, "is_heterogeneous", False) else config


def _rope(config, size: int) -> dict[str, Any]:
    rope, local = rope_of(config)
    values = {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(size * rope.get("partial_rotary_factor", 1.0)),
    }
    if local:
        values["rope.freq_base_swa"] = float(local["rope_theta"])
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind in ("yarn", "longrope"):
        values["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        values["rope.scaling.attn_factor"] = _attention_factor(config, rope)
    return values


def _rotary(config, rope: dict) -> tuple[torch.Tensor, float]:
    """Returns the rotary frequencies, (head_dim / 2,), and the factor of cosine and sine, as Transformers computes
    them."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    layers = "full_attention" if "full_attention" in config.rope_parameters else None
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", layer_type=layers)


def _attention_factor(config, rope: dict) -> float:
    """Returns the factor of rotated queries and keys, divided by the one that llama.cpp itself derives for yarn."""
    whole = _rotary(config, rope)[1]
    return float(whole / (0.1 * math.log(rope["factor"]) + 1)) if rope["rope_type"] == "yarn" else float(whole)
