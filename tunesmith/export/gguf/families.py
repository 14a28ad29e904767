"""What each family is called in GGUF: architecture, tensor names, the form weights are kept in, hyperparameters.

Facts of llama.cpp (its `src/llama-arch.cpp` and `src/models/`). Names on the left are those of transformers 5 in
memory. What llama.cpp would compute differently is a UserError; what it computes the same within limits is a note.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch

from tunesmith.errors import UserError
from tunesmith.export.gguf import layout

Transform = Callable[[torch.Tensor], torch.Tensor]


QKV = {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"}
ATTENTION = {**QKV, "self_attn.o_proj": "attn_output"}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
MLP = {f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
POST_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
GEMMA_NORMS = {"input_layernorm": "attn_norm", "pre_feedforward_layernorm": "ffn_norm", **POST_NORMS}
ROUTER = {"mlp.gate": "ffn_gate_inp"}
BOTH_NORMS = {
    "input_layernorm": "attn_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_mlp_layernorm": "post_ffw_norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "model.norm.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
    "model.embedding_norm.weight": "token_embd_norm.weight",
    "model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}
STILL = 1e30  # divides the frequency of what is not rotated
IN_IMAGES = re.compile(r"(model\.)?\w*(vision|visual|projector|connector|image|audio)")
IMAGES = (
    "this file is the text decoder. For images llama.cpp reads a second file (--mmproj): that of the base stays "
    "valid, and convert_hf_to_gguf.py --mmproj makes it of the base's folder"
)
CONVERTER = "export `merged`, and convert that folder with llama.cpp's convert_hf_to_gguf.py, which has more families"


@dataclass(frozen=True)
class Family:
    architecture: str
    modules: dict[str, str]
    biases: frozenset[str] = frozenset(QKV.values())
    """GGUF modules that may have a bias; one anywhere else, llama.cpp would not read."""
    interleaved: bool = False
    """Rotary pairs are neighbours, not halves apart, so rows of q and k change place."""
    norm_offset: float = 0.0
    """What transformers adds to every norm's weight as it computes."""
    own_head: bool = False
    """The output matrix must be in the file even if it is the embedding."""
    square: bool = False
    """heads * head_dim must be the hidden size."""
    window: bool = False
    """llama.cpp has this family's sliding window."""
    activation: str = "silu"
    experts: str = ""
    """`halves`: (expert, gate then up, in); `strides`: (expert, in, gate and up by turns)."""
    expert_count: str = ""
    expert_width: str = "intermediate_size"
    experts_used: str = "num_experts_per_tok"
    rope_factors: frozenset[str] = frozenset()
    """Kinds of rope scaling that this family takes as a tensor of factors."""
    partial_rotary: bool = False
    """Part of a head may be rotated."""
    epsilon: str = "rms_norm_eps"
    """The config's name of the norms' epsilon."""
    layer_norm: bool = False
    """The norms are LayerNorm, not RMSNorm."""
    scales: tuple[tuple[str, str], ...] = ()
    """GGUF keys of numbers that something is multiplied with, and the config's names of them."""
    parameters: dict[str, str] = field(default_factory=dict)
    """Of a layer, what is neither a module's weight nor its bias."""
    forms: dict[str, Callable[..., torch.Tensor]] = field(default_factory=dict)
    """By GGUF module or name, what makes its weight of (config, parameter)."""
    inputs: dict[str, Callable[..., torch.Tensor]] = field(default_factory=dict)
    """The same, where that reorders inputs instead of rows."""


_LLAMA = dict(
    modules={**ATTENTION, **MLP, **NORMS},
    interleaved=True,
    rope_factors=frozenset({"llama3"}),
    biases=frozenset({*ATTENTION.values(), *MLP.values()}),
)
_MIXTURE = dict(experts="halves", modules={**ATTENTION, **NORMS, **ROUTER})
_GEMMA = dict(norm_offset=1.0, window=True, activation="gelu_pytorch_tanh")
_GEMMA4 = dict(
    modules={
        **ATTENTION,
        **HEAD_NORMS,
        **MLP,
        **GEMMA_NORMS,
        "post_feedforward_layernorm_1": "post_ffw_norm_1",
        "post_feedforward_layernorm_2": "post_ffw_norm_2",
        "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
        "router.proj": "ffn_gate_inp",
        "per_layer_input_gate": "inp_gate",
        "per_layer_projection": "proj",
        "post_per_layer_input_norm": "post_norm",
    },
    parameters={
        "layer_scalar": "layer_output_scale.weight",
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
    },
    biases=frozenset(),
    window=True,
    activation="gelu_pytorch_tanh",
    rope_factors=frozenset({"proportional"}),
    partial_rotary=True,
)
_OLMO2 = dict(modules={**ATTENTION, **HEAD_NORMS, **MLP, **POST_NORMS}, own_head=True, square=True)
_BIASED = frozenset({*ATTENTION.values(), "attn_norm", "ffn_norm", "ffn_up", "ffn_down"})

FAMILIES = {
    "llama": Family("llama", **_LLAMA),
    "mistral": Family("llama", **_LLAMA),
    "ministral3": Family("mistral3", **_LLAMA),
    "mixtral": Family("llama", **{**_LLAMA, **_MIXTURE}, expert_count="num_local_experts"),
    "smollm3": Family("smollm3", {**ATTENTION, **MLP, **NORMS}, interleaved=True),
    "qwen2": Family("qwen2", {**ATTENTION, **MLP, **NORMS}, square=True),
    "qwen3": Family("qwen3", {**ATTENTION, **HEAD_NORMS, **MLP, **NORMS}),
    "qwen3_moe": Family(
        "qwen3moe",
        {**_MIXTURE["modules"], **HEAD_NORMS},
        experts="halves",
        expert_count="num_experts",
        expert_width="moe_intermediate_size",
    ),
    "gemma2": Family("gemma2", {**ATTENTION, **MLP, **GEMMA_NORMS}, **_GEMMA),
    "gemma3_text": Family("gemma3", {**ATTENTION, **HEAD_NORMS, **MLP, **GEMMA_NORMS}, **_GEMMA),
    "gemma4_text": Family(
        "gemma4",
        **_GEMMA4,
        experts="halves",
        expert_count="num_experts",
        expert_width="moe_intermediate_size",
        experts_used="top_k_experts",
    ),
    "gemma4_unified_text": Family("gemma4", **_GEMMA4),
    "phi3": Family(
        "phi3",
        {
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
            **NORMS,
        },
        biases=frozenset(),
        square=True,
        rope_factors=frozenset({"longrope"}),
        partial_rotary=True,
    ),
    "olmo2": Family("olmo2", **_OLMO2),
    "olmo3": Family("olmo2", **_OLMO2, window=True),
    "olmoe": Family(
        "olmoe",
        {**_MIXTURE["modules"], **HEAD_NORMS},
        own_head=True,
        square=True,
        experts="halves",
        expert_count="num_experts",
    ),
    "gpt_oss": Family(
        "gpt-oss",
        {
            **ATTENTION,
            "input_layernorm": "attn_norm",
            "mlp.router": "ffn_gate_inp",
            "post_attention_layernorm": "post_attention_norm",
        },
        biases=frozenset({*ATTENTION.values(), "ffn_gate_inp"}),
        own_head=True,
        window=True,
        experts="strides",
        expert_count="num_local_experts",
        parameters={"self_attn.sinks": "attn_sinks.weight"},
    ),
    "granite": Family(
        "granite",
        **_LLAMA,
        scales=(
            ("attention.scale", "attention_multiplier"),
            ("embedding_scale", "embedding_multiplier"),
            ("residual_scale", "residual_multiplier"),
            ("logit_scale", "logits_scaling"),
        ),
    ),
    "seed_oss": Family(
        "seed_oss",
        {**ATTENTION, **MLP, "input_layernorm": "attn_norm", "post_attention_layernorm": "post_attention_norm"},
    ),
    "exaone4": Family(
        "exaone4",
        {**ATTENTION, **HEAD_NORMS, **MLP, **POST_NORMS},
        biases=frozenset(),
        rope_factors=frozenset({"llama3"}),
    ),
    "ernie4_5": Family("ernie4_5", {**ATTENTION, **MLP, **NORMS}, biases=frozenset()),
    "hunyuan_v1_dense": Family(
        "hunyuan-dense",
        {
            **ATTENTION,
            "self_attn.query_layernorm": "attn_q_norm",
            "self_attn.key_layernorm": "attn_k_norm",
            **MLP,
            **NORMS,
        },
        biases=frozenset(),
    ),
    "glm4": Family(
        "glm4",
        {**ATTENTION, "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down", **BOTH_NORMS},
        partial_rotary=True,
    ),
    "cohere2": Family(
        "cohere2",
        {**ATTENTION, **MLP, "input_layernorm": "attn_norm"},
        biases=frozenset(),
        window=True,
        epsilon="layer_norm_eps",
        layer_norm=True,
        scales=(("logit_scale", "logit_scale"),),
    ),
    "starcoder2": Family(
        "starcoder2",
        {**ATTENTION, "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", **NORMS},
        biases=_BIASED,
        activation="gelu_pytorch_tanh",
        epsilon="norm_epsilon",
        layer_norm=True,
    ),
    "nemotron": Family(
        "nemotron",
        {**ATTENTION, "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", **NORMS},
        biases=_BIASED,
        activation="relu2",
        norm_offset=1.0,
        partial_rotary=True,
        epsilon="norm_eps",
        layer_norm=True,
    ),
    "lfm2": Family(
        "lfm2",
        {
            **QKV,
            "self_attn.out_proj": "attn_output",
            "self_attn.q_layernorm": "attn_q_norm",
            "self_attn.k_layernorm": "attn_k_norm",
            "conv.in_proj": "shortconv.in_proj",
            "conv.conv": "shortconv.conv",
            "conv.out_proj": "shortconv.out_proj",
            "feed_forward.w1": "ffn_gate",
            "feed_forward.w2": "ffn_down",
            "feed_forward.w3": "ffn_up",
            "operator_norm": "attn_norm",
            "ffn_norm": "ffn_norm",
        },
        biases=frozenset(),
        square=True,
        epsilon="norm_eps",
        forms={"shortconv.conv": layout.kernel},
    ),
    "qwen3_5_text": Family(
        "qwen35",
        {
            **ATTENTION,
            **HEAD_NORMS,
            **MLP,
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "post_attention_norm",
            "linear_attn.in_proj_qkv": "attn_qkv",
            "linear_attn.in_proj_z": "attn_gate",
            "linear_attn.in_proj_b": "ssm_beta",
            "linear_attn.in_proj_a": "ssm_alpha",
            "linear_attn.conv1d": "ssm_conv1d",
            "linear_attn.norm": "ssm_norm",
            "linear_attn.out_proj": "ssm_out",
        },
        biases=frozenset(),
        norm_offset=1.0,
        partial_rotary=True,
        parameters={"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"},
        forms={
            "attn_qkv": layout.mixed_rows,
            "ssm_conv1d": layout.mixed_kernel,
            "ssm_norm": layout.kept,
            "ssm_a": layout.decay,
            **dict.fromkeys(("attn_gate", "ssm_beta", "ssm_alpha", "ssm_dt.bias"), layout.value_rows),
        },
        inputs={"ssm_out": layout.value_inputs},
    ),
}


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


def targets(config, name: str) -> list[tuple[str, Transform]]:
    """GGUF names of a parameter, each with what makes its weight of the parameter. Raises UserError."""
    family = FAMILIES[config.model_type]
    if name in OUTSIDE:
        both = name == "model.embed_tokens.weight" and family.own_head and config.tie_word_embeddings
        shifted = name == "model.norm.weight" and family.norm_offset
        form = partial(layout.plus, family.norm_offset) if shifted else layout.same
        return [(OUTSIDE[name], form)] + ([("output.weight", layout.same)] if both else [])
    prefix, _, rest = name.removeprefix("model.layers.").partition(".")
    if name.startswith("model.layers.") and prefix.isdigit():
        found = _in_layer(family, config, rest)
        if found:
            return [(f"blk.{prefix}.{gguf_name}", form) for gguf_name, form in found]
    raise UserError(
        f"export: gguf: llama.cpp has no place for {name} in {family.architecture}; export `merged` keeps it"
    )


def inputs_form(config, gguf_name: str) -> Transform | None:
    """What brings a parameter's inputs into the order of a GGUF weight, (..., in); None where they are in it."""
    found = FAMILIES[config.model_type].inputs.get(re.sub(r"^blk\.\d+\.|\.weight$", "", gguf_name))
    return partial(found, config) if found else None


def is_of_text(name: str) -> bool:
    """Whether a parameter belongs to the text decoder."""
    return "language_model." in name or name.startswith("lm_head.") or not IN_IMAGES.match(name)


def text_name(name: str) -> str:
    """A parameter's name in a model of text alone."""
    return name.replace("language_model.", "", 1)


def _in_layer(family: Family, config, rest: str) -> list[tuple[str, Transform]]:
    if rest in family.parameters:
        gguf_name = family.parameters[rest]
        return [(gguf_name, partial(family.forms.get(gguf_name, layout.kept), config))]
    if family.experts and (expert := re.fullmatch(r"(?:mlp\.)?experts\.(.+)", rest)):
        return _stacked(family.experts, expert[1])
    module, _, kind = rest.rpartition(".")
    gguf_name = family.modules.get(module)
    if gguf_name is None or kind not in ("weight", "bias") or (kind == "bias" and gguf_name not in family.biases):
        return []
    if own := family.forms.get(gguf_name) or family.inputs.get(gguf_name):
        return [(f"{gguf_name}.{kind}", partial(own, config))]
    if gguf_name.endswith("_norm") and kind == "weight" and family.norm_offset:
        return [(f"{gguf_name}.{kind}", partial(layout.plus, family.norm_offset))]
    if family.interleaved and gguf_name in ("attn_q", "attn_k"):
        heads = config.num_attention_heads if gguf_name == "attn_q" else config.num_key_value_heads
        return [(f"{gguf_name}.{kind}", partial(layout.interleave, heads))]
    return [(f"{gguf_name}.{kind}", layout.same)]


def _stacked(order: str, name: str) -> list[tuple[str, Transform]]:
    if order == "halves":
        gates = [("ffn_gate_exps.weight", partial(layout.half, 0)), ("ffn_up_exps.weight", partial(layout.half, 1))]
        return {"gate_up_proj": gates, "down_proj": [("ffn_down_exps.weight", layout.same)]}.get(name, [])
    gates = [("ffn_gate_exps", 0), ("ffn_up_exps", 1)]
    return {
        "gate_up_proj": [(f"{g}.weight", partial(layout.stride, first, True)) for g, first in gates],
        "gate_up_proj_bias": [(f"{g}.bias", partial(layout.stride, first, False)) for g, first in gates],
        "down_proj": [("ffn_down_exps.weight", layout.transposed)],
        "down_proj_bias": [("ffn_down_exps.bias", layout.same)],
    }.get(name, [])


def metadata(config) -> dict[str, object]:
    """Hyperparameters by GGUF key, the architecture's prefix left out."""
    family = FAMILIES[config.model_type]
    size = head_size(config)
    values = {
        "context_length": _trained_context(config),
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


def _lfm2_values(config) -> dict[str, object]:
    """llama.cpp tells layers that convolve by their having no key heads."""
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


def _ministral_values(config) -> dict[str, object]:
    """Queries grow with the logarithm of how many times the original context went by."""
    rope = config.rope_parameters
    return {
        "attention.temperature_scale": float(rope["llama_4_scaling_beta"]),
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
    }


def _qwen35_values(config) -> dict[str, object]:
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


def _gemma4_values(config) -> dict[str, object]:
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
        "final_logit_softcapping": float(config.final_logit_softcapping or 0),  # left out, it is 30 to llama.cpp
        "embedding_length_per_layer_input": getattr(config, "hidden_size_per_layer_input", None) or 0,
        "feed_forward_length": [
            config.intermediate_size * (2 if config.use_double_wide_mlp and n >= own else 1) for n in range(len(layers))
        ],
    }


def head_size(config) -> int:
    """Of layers without a window, where others have another size."""
    config = _of_full_layers(config)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _of_full_layers(config):
    """Of a model whose layers have settings of their own, those of layers without a window."""
    return config.per_layer_config["full_attention"] if getattr(config, "is_heterogeneous", False) else config


def extra_tensors(config) -> dict[str, torch.Tensor]:
    """Tensors that the model computes and llama.cpp reads: factors of the rotary frequencies, (head_dim / 2,)."""
    rope = _rope_of(config)[0]
    if rope["rope_type"] in ("llama3", "proportional"):
        frequencies, _ = _rotary(config, rope)
        plain = rope["rope_theta"] ** -(torch.arange(len(frequencies)) / len(frequencies))
        return {"rope_freqs.weight": (plain / frequencies).float().clamp(max=STILL)}
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{kind}.weight": torch.tensor(rope[f"{kind}_factor"]).float() for kind in ("long", "short")
        }
    return {}


def notes(config) -> list[str]:
    """Where llama.cpp computes the same only within limits."""
    rope = _rope_of(config)[0]
    found = []
    if _trained_context(config) < config.max_position_embeddings:
        found.append(
            f"llama.cpp has no sliding window for {config.model_type}: context_length is "
            f"{_trained_context(config)}, within which both compute the same"
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


def _trained_context(config) -> int:
    """Tokens within which llama.cpp attends as the model does."""
    window = getattr(config, "sliding_window", None)
    used = window and getattr(config, "use_sliding_window", True)
    if used and not FAMILIES[config.model_type].window:
        return min(window, config.max_position_embeddings)
    return config.max_position_embeddings


def _rope_of(config) -> tuple[dict, dict | None]:
    """Rope settings of the layers that see everything, and of those with a window if they have their own."""
    rope = config.rope_parameters
    if rope.get("rope_type") == "dynamic" and rope.get("alpha"):  # a fixed factor, as Hunyuan has it
        size = head_size(config)
        return rope | {
            "rope_type": "default",
            "rope_theta": rope["rope_theta"] * rope["alpha"] ** (size / (size - 2)),
        }, None
    if "full_attention" in rope:
        return rope["full_attention"], rope.get("sliding_attention")
    return rope, None


def _rope(config, size: int) -> dict[str, object]:
    rope, local = _rope_of(config)
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
    """Frequencies, (head_dim / 2,), and the factor of cosine and sine, as transformers computes them."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    layers = "full_attention" if "full_attention" in config.rope_parameters else None
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", layer_type=layers)


def _attention_factor(config, rope: dict) -> float:
    """What llama.cpp multiplies rotated queries and keys with, besides what it takes from yarn's factor itself."""
    whole = _rotary(config, rope)[1]
    return float(whole / (0.1 * math.log(rope["factor"]) + 1)) if rope["rope_type"] == "yarn" else float(whole)


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
        "qwen3_moe": _mixture_problems,
        "olmoe": _mixture_problems,
        "gpt_oss": _gpt_oss_problems,
        "exaone4": _exaone_problems,
        "cohere2": _cohere_problems,
        "olmo3": _olmo3_problems,
        "qwen3_5_text": _qwen35_problems,
        "gemma4_text": _gemma4_problems,
        "gemma4_unified_text": _gemma4_problems,
    }.get(config.model_type, lambda _: ())(config)


def _rope_problems(family: Family, config) -> Iterator[str]:
    rope, local = _rope_of(config)
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
    if _rope_of(config)[0]["rope_type"] != "proportional":
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


def _mixture_problems(config) -> Iterator[str]:
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
    rope, local = _rope_of(config)
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
