"""Maps model families to GGUF: architecture, tensor names and the layout of weights.

The facts come from llama.cpp (`src/llama-arch.cpp` and `src/models/`). Names on the left are those of Transformers 5 in
memory. `metadata.py` has the hyperparameters, `limits.py` the models that llama.cpp computes differently.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

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
IN_IMAGES = re.compile(r"(model\.)?\w*(vision|visual|projector|connector|image|audio)")


@dataclass(frozen=True)
class Family:
    architecture: str
    modules: dict[str, str]
    biases: frozenset[str] = frozenset(QKV.values())
    """GGUF modules that may have a bias. llama.cpp would ignore any other bias."""
    interleaved: bool = False
    """llama.cpp rotates neighbouring dimensions, not the two halves of a head, so the rows of q and k are reordered."""
    norm_offset: float = 0.0
    """The constant that Transformers adds to every norm's weight in the forward pass."""
    own_head: bool = False
    """The file must contain the output matrix even if it is tied to the embedding."""
    square: bool = False
    """heads * head_dim must be the hidden size."""
    window: bool = False
    """llama.cpp supports this family's sliding window."""
    activation: str = "silu"
    experts: str = ""
    """The layout of gate_up_proj. `halves`: (expert, gate then up, in); `strides`: (expert, in, gate and up
    alternating)."""
    expert_count: str = ""
    expert_width: str = "intermediate_size"
    experts_used: str = "num_experts_per_tok"
    rope_factors: frozenset[str] = frozenset()
    """Types of rope scaling that llama.cpp reads as a tensor of factors for this family."""
    partial_rotary: bool = False
    """llama.cpp supports rotating only a part of each head."""
    epsilon: str = "rms_norm_eps"
    """The name of the norms' epsilon in the config."""
    layer_norm: bool = False
    """The norms are LayerNorm, not RMSNorm."""
    scales: tuple[tuple[str, str], ...] = ()
    """Scaling factors: (GGUF key, name in the config)."""
    parameters: dict[str, str] = field(default_factory=dict)
    """{parameter: GGUF name} of a layer's parameters that are neither a module's weight nor its bias."""
    forms: dict[str, Callable[..., torch.Tensor]] = field(default_factory=dict)
    """{GGUF module or name: function (config, parameter) that returns its weight}."""
    inputs: dict[str, Callable[..., torch.Tensor]] = field(default_factory=dict)
    """The same for functions that reorder the inputs of a weight instead of its rows."""


_LLAMA: dict[str, Any] = dict(
    modules={**ATTENTION, **MLP, **NORMS},
    interleaved=True,
    rope_factors=frozenset({"llama3"}),
    biases=frozenset({*ATTENTION.values(), *MLP.values()}),
)
_MOE: dict[str, Any] = dict(experts="halves", modules={**ATTENTION, **NORMS, **ROUTER})
_GEMMA: dict[str, Any] = dict(norm_offset=1.0, window=True, activation="gelu_pytorch_tanh")
_GEMMA4: dict[str, Any] = dict(
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
_OLMO2: dict[str, Any] = dict(modules={**ATTENTION, **HEAD_NORMS, **MLP, **POST_NORMS}, own_head=True, square=True)
_BIASED = frozenset({*ATTENTION.values(), "attn_norm", "ffn_norm", "ffn_up", "ffn_down"})

FAMILIES = {
    "llama": Family("llama", **_LLAMA),
    "mistral": Family("llama", **_LLAMA),
    "ministral3": Family("mistral3", **_LLAMA),
    "mixtral": Family("llama", **{**_LLAMA, **_MOE}, expert_count="num_local_experts"),
    "smollm3": Family("smollm3", {**ATTENTION, **MLP, **NORMS}, interleaved=True),
    "qwen2": Family("qwen2", {**ATTENTION, **MLP, **NORMS}, square=True),
    "qwen3": Family("qwen3", {**ATTENTION, **HEAD_NORMS, **MLP, **NORMS}),
    "qwen3_moe": Family(
        "qwen3moe",
        {**_MOE["modules"], **HEAD_NORMS},
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
        {**_MOE["modules"], **HEAD_NORMS},
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


def targets(config, name: str) -> list[tuple[str, Transform]]:
    """Returns the GGUF names of a parameter, each with the function that converts the parameter to the GGUF weight.
    Raises UserError for a parameter that llama.cpp does not have."""
    family = FAMILIES[config.model_type]
    if name in OUTSIDE:
        both = name == "model.embed_tokens.weight" and family.own_head and config.tie_word_embeddings
        shifted = name == "model.norm.weight" and family.norm_offset
        form: Transform = partial(layout.plus, family.norm_offset) if shifted else layout.same
        return [(OUTSIDE[name], form)] + ([("output.weight", layout.same)] if both else [])
    prefix, _, rest = name.removeprefix("model.layers.").partition(".")
    if name.startswith("model.layers.") and prefix.isdigit():
        in_layer = _in_layer(family, config, rest)
        if in_layer:
            return [(f"blk.{prefix}.{gguf_name}", form) for gguf_name, form in in_layer]
    raise UserError(f"export: gguf: llama.cpp's {family.architecture} does not have {name}; export `merged` keeps it")


def inputs_form(config, gguf_name: str) -> Transform | None:
    """Returns the function that reorders a parameter's inputs, (..., in), for a GGUF weight, or None if the order is
    the same."""
    form = FAMILIES[config.model_type].inputs.get(re.sub(r"^blk\.\d+\.|\.weight$", "", gguf_name))
    return partial(form, config) if form else None


def is_of_text(name: str) -> bool:
    """Whether a parameter belongs to the text decoder."""
    return "language_model." in name or name.startswith("lm_head.") or not IN_IMAGES.match(name)


def text_name(name: str) -> str:
    """Returns a parameter's name in a text-only model."""
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
    names: dict[str, list[tuple[str, Transform]]]
    if order == "halves":
        halves = [("ffn_gate_exps.weight", partial(layout.half, 0)), ("ffn_up_exps.weight", partial(layout.half, 1))]
        names = {"gate_up_proj": [*halves], "down_proj": [("ffn_down_exps.weight", layout.same)]}
        return names.get(name, [])
    gates = [("ffn_gate_exps", 0), ("ffn_up_exps", 1)]
    names = {
        "gate_up_proj": [(f"{g}.weight", partial(layout.stride, first, True)) for g, first in gates],
        "gate_up_proj_bias": [(f"{g}.bias", partial(layout.stride, first, False)) for g, first in gates],
        "down_proj": [("ffn_down_exps.weight", layout.transposed)],
        "down_proj_bias": [("ffn_down_exps.bias", layout.same)],
    }
    return names.get(name, [])
