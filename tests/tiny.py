"""Small random models of real architectures, each with a real tokenizer of its family's kind and chat template.

The templates are our own short writing of what each family's does: same markers, same treatment of whitespace,
system turns, tools, reasoning and history.
"""

import json
import pydoc_data.topics
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN35_REGEX

from tests.tiny_templates import GEMMA3, GPT_OSS, LLAMA3, MISTRAL, OLMO2, PHI3, PHI4, QWEN2, QWEN3, SMOLLM3


@dataclass(frozen=True)
class Family:
    """`end` ends a turn; `plain` tokens are in the vocabulary without being special.

    `rstrip` tokens, special or not, eat the whitespace after them.
    """

    prefix: str
    kind: str
    template: str
    eos: str
    end: str
    special: tuple[str, ...]
    bos: str | None = None
    pad: str | None = None
    plain: tuple[str, ...] = ()
    rstrip: tuple[str, ...] = ()
    adds_bos: bool = False
    config: dict = field(default_factory=dict)


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MISTRAL_SPECIAL = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
QWEN_PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 16,
}
EXPERTS = {"num_experts_per_tok": 2}

FAMILIES = {
    "llama3": Family(
        "Llama",
        "bytes",
        LLAMA3,
        "<|eot_id|>",
        "<|eot_id|>",
        bos="<|begin_of_text|>",
        adds_bos=True,
        special=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "qwen2": Family(
        "Qwen2",
        "qwen",
        QWEN2,
        "<|im_end|>",
        "<|im_end|>",
        CHATML,
        pad="<|endoftext|>",
        plain=QWEN_PLAIN[:2],
        config={"tie_word_embeddings": True},
    ),
    "qwen3": Family(
        "Qwen3",
        "qwen",
        QWEN3,
        "<|im_end|>",
        "<|im_end|>",
        CHATML,
        pad="<|endoftext|>",
        plain=QWEN_PLAIN,
        config={"tie_word_embeddings": True, "head_dim": 16},
    ),
    "mistral": Family(
        "Mistral",
        "metaspace",
        MISTRAL,
        "</s>",
        "</s>",
        bos="<s>",
        adds_bos=True,
        special=MISTRAL_SPECIAL,
        config={"sliding_window": 16},
    ),
    "gemma3": Family(
        "Gemma3Text",
        "gemma",
        GEMMA3,
        "<eos>",
        "<end_of_turn>",
        bos="<bos>",
        adds_bos=True,
        pad="<pad>",
        special=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
        config={
            "tie_word_embeddings": True,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma2": Family(
        "Gemma2",
        "gemma",
        GEMMA3,
        "<eos>",
        "<end_of_turn>",
        bos="<bos>",
        adds_bos=True,
        pad="<pad>",
        special=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
        config={
            "tie_word_embeddings": True,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "phi3": Family(
        "Phi3",
        "metaspace",
        PHI3,
        "<|endoftext|>",
        "<|end|>",
        bos="<s>",
        pad="<|endoftext|>",
        special=("<unk>", "<s>", "<|endoftext|>"),
        plain=("</s>",),
        rstrip=("</s>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
    ),
    "smollm3": Family(
        "SmolLM3",
        "bytes",
        SMOLLM3,
        "<|im_end|>",
        "<|im_end|>",
        ("<|begin_of_text|>", *CHATML[1:]),
        pad="<|im_end|>",
        plain=QWEN_PLAIN[2:],
        config={"tie_word_embeddings": True, "no_rope_layers": [1, 0]},
    ),
    "olmo2": Family(
        "Olmo2",
        "bytes",
        OLMO2,
        "<|endoftext|>",
        "<|endoftext|>",
        ("<|endoftext|>", "<|pad|>"),
        bos="<|endoftext|>",
        pad="<|pad|>",
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        "qwen",
        QWEN3,
        "<|im_end|>",
        "<|im_end|>",
        CHATML,
        pad="<|endoftext|>",
        plain=QWEN_PLAIN,
        config={**EXPERTS, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16},
    ),
    "mixtral": Family(
        "Mixtral",
        "metaspace",
        MISTRAL,
        "</s>",
        "</s>",
        bos="<s>",
        adds_bos=True,
        special=MISTRAL_SPECIAL,
        config={**EXPERTS, "num_local_experts": 4},
    ),
    "olmoe": Family(
        "Olmoe",
        "bytes",
        OLMO2,
        "<|endoftext|>",
        "<|endoftext|>",
        ("<|endoftext|>", "<|pad|>"),
        bos="<|endoftext|>",
        pad="<|pad|>",
        config={**EXPERTS, "num_experts": 4},
    ),
    "gpt_oss": Family(
        "GptOss",
        "bytes",
        GPT_OSS,
        "<|return|>",
        "<|return|>",
        bos="<|startoftext|>",
        pad="<|endoftext|>",
        special=(
            "<|startoftext|>",
            "<|endoftext|>",
            "<|return|>",
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|channel|>",
            "<|call|>",
        ),
        config={
            **EXPERTS,
            "num_local_experts": 4,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": YARN,
        },
    ),
}

LLAMA4 = YARN | {"truncate": True, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}
FULL, WINDOW = "full_attention", "sliding_attention"
_LIKE = {
    "llama3": {
        "granite": (
            "Granite",
            {
                "attention_multiplier": 0.3,
                "embedding_multiplier": 3.0,
                "residual_multiplier": 0.5,
                "logits_scaling": 2.0,
            },
        ),
        "ministral3": ("Ministral3", {"head_dim": 32, "rope_parameters": LLAMA4}),
        "ernie4_5": ("Ernie4_5", {"tie_word_embeddings": True, "head_dim": 16}),
        "hunyuan": ("HunYuanDenseV1", {"head_dim": 16}),
        "glm4": ("Glm4", {"head_dim": 16, "attention_bias": True}),
        "nemotron": ("Nemotron", {}),
    },
    "olmo2": {
        "olmo3": ("Olmo3", {"sliding_window": 16, "layer_types": [WINDOW, FULL]}),
        "cohere2": (
            "Cohere2",
            {"num_hidden_layers": 4, "sliding_window": 16, "logit_scale": 0.25, "layer_types": 3 * [WINDOW] + [FULL]},
        ),
        "starcoder2": ("Starcoder2", {"sliding_window": None}),
    },
    "qwen3": {
        "qwen3_5": (
            "Qwen3_5Text",
            {
                "layer_types": ["linear_attention", FULL],
                "head_dim": 32,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 6,
                "linear_key_head_dim": 16,
                "linear_value_head_dim": 16,
            },
        ),
        "seed_oss": ("SeedOss", {"head_dim": 16, "attention_bias": True}),
        "exaone4": ("Exaone4", {"sliding_window": None, "layer_types": [FULL, FULL]}),
        "lfm2": (
            "Lfm2",
            {
                "num_hidden_layers": 3,
                "layer_types": ["conv", FULL, "conv"],
                "tie_word_embeddings": True,
                "block_multiple_of": 32,
            },
        ),
    },
    "gemma3": {
        "gemma4": (
            "Gemma4Text",
            {
                "num_hidden_layers": 4,
                "layer_types": 2 * [WINDOW, FULL],
                "sliding_window": 16,
                "head_dim": 16,
                "global_head_dim": 32,
                "num_kv_shared_layers": 2,
                "use_double_wide_mlp": True,
                "hidden_size_per_layer_input": 16,
                "final_logit_softcapping": 30.0,
            },
        ),
        "gemma4_unified": (
            "Gemma4UnifiedText",
            {
                "layer_types": [WINDOW, FULL],
                "sliding_window": 16,
                "head_dim": 16,
                "global_head_dim": 32,
                "num_global_key_value_heads": 1,
                "attention_k_eq_v": True,
                "final_logit_softcapping": 30.0,
            },
        ),
        "gemma4_moe": (
            "Gemma4Text",
            {
                "layer_types": [WINDOW, FULL],
                "sliding_window": 16,
                "head_dim": 16,
                "global_head_dim": 32,
                "num_global_key_value_heads": 1,
                "attention_k_eq_v": True,
                "hidden_size_per_layer_input": 0,
                "enable_moe_block": True,
                "num_experts": 4,
                "top_k_experts": 2,
                "moe_intermediate_size": 32,
            },
        ),
    },
}
OTHERS = {
    name: replace(FAMILIES[like], prefix=prefix, config=config)
    for like, them in _LIKE.items()
    for name, (prefix, config) in them.items()
}
"""Families whose tokenizer and template are those of another here."""
OTHERS["phi4"] = replace(
    FAMILIES["phi3"],
    kind="cl100k",
    template=PHI4,
    eos="<|im_end|>",
    end="<|im_end|>",
    bos="<|endoftext|>",
    plain=(),
    special=("<|endoftext|>",),
    rstrip=("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
)

_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_THREE_DIGITS = PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
BYTE_LEVEL = {
    "bytes": None,
    "qwen": PRETOKENIZE_REGEX,
    "qwen35": QWEN35_REGEX,
    "llama3": _THREE_DIGITS,
    "cl100k": _THREE_DIGITS,
    "o200k": _CASED % ("*", "+") + _SHORT + _CASED % ("+", "*") + _SHORT + r"\p{N}{1,3}|" + _PATHS,
    "tekken": _CASED % ("*", "+") + "|" + _CASED % ("+", "*") + r"|\p{N}|" + _PATHS,
}
"""What byte-level tokenizers split text by, by kind; None: as GPT-2. The other kinds are as of SentencePiece:
`-complete` with a merge for every two tokens that are one together, as converted ones have; legacy: as Llama 2's."""

MOE_FAMILIES = [name for name, facts in FAMILIES.items() if EXPERTS.items() <= facts.config.items()]


def save(family: str, folder: Path, seed: int = 0, kind: str | None = None, text: str | None = None, **changes) -> Path:
    """Writes model and tokenizer in the format of transformers; returns the folder. `kind`: of another tokenizer than
    the family's; `text`: to train a larger one on; `changes`: of the config."""
    facts = _facts(family)
    tokenizer = save_tokenizer(family, folder, kind, text)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    if facts.prefix == "Gemma4Text":
        sizes["vocab_size_per_layer_input"] = len(tokenizer)
    config = getattr(transformers, facts.prefix + "Config")(
        **sizes
        | {
            "initializer_range": 0.2,
            "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.convert_tokens_to_ids(facts.end),
        }
        | facts.config
        | changes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, facts.prefix.removesuffix("Text") + "ForCausalLM")(config)
    model.save_pretrained(folder)
    return Path(folder)


def _facts(family: str) -> Family:
    return (FAMILIES | OTHERS)[family]


def save_tokenizer(
    family: str, folder: Path, kind: str | None = None, text: str | None = None
) -> PreTrainedTokenizerFast:
    """Writes the tokenizer alone."""
    facts = _facts(family)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(family, kind, text),
        bos_token=facts.bos,
        eos_token=facts.eos,
        pad_token=facts.pad,
        unk_token="<unk>" if "<unk>" in facts.special else None,
        chat_template=facts.template,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _tokenizer(family: str, kind: str | None, text: str | None) -> Tokenizer:
    facts = _facts(family)
    kind = kind or facts.kind
    tokenizer = Tokenizer.from_str(_trained(kind, text))
    special = dict.fromkeys((*facts.special, *(t for t in facts.rstrip if t not in facts.plain)))
    for add, tokens in ((tokenizer.add_special_tokens, special), (tokenizer.add_tokens, facts.plain)):
        add([AddedToken(t, special=tokens is special, normalized=False, rstrip=t in facts.rstrip) for t in tokens])
    if facts.adds_bos:
        bos = processors.TemplateProcessing(
            single=f"{facts.bos} $A",
            pair=f"{facts.bos} $A $B",
            special_tokens=[(facts.bos, tokenizer.token_to_id(facts.bos))],
        )
        trim = [processors.ByteLevel(trim_offsets=True)] if kind in BYTE_LEVEL else []
        tokenizer.post_processor = processors.Sequence([*trim, bos])
    return tokenizer


@lru_cache
def _trained(kind: str, own: str | None) -> str:
    """A tokenizer without special tokens, as JSON, trained on `own` text or on what comes with Python."""
    byte_level = kind in BYTE_LEVEL
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _splitter(kind) if byte_level else pre_tokenizers.Metaspace(prepend_scheme="never")
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    text = own or "".join(pydoc_data.topics.topics.values())[:200_000]
    pieces = [text[i : i + 1000] for i in range(0, len(text), 1000)]
    tokenizer.train_from_iterator(
        pieces, trainers.BpeTrainer(vocab_size=2000 if own else 480, initial_alphabet=alphabet)
    )
    if byte_level:
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.normalizer = normalizers.NFC() if kind.startswith("qwen") else None
        tokenizer.model.ignore_merges = kind in ("llama3", "tekken")
        return tokenizer.to_str()
    return _sentencepiece(kind, json.loads(tokenizer.to_str())["model"]).to_str()


def _splitter(kind: str) -> pre_tokenizers.PreTokenizer:
    if BYTE_LEVEL[kind] is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(BYTE_LEVEL[kind]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _sentencepiece(kind: str, trained: dict) -> Tokenizer:
    """As transformers builds Llama's and Gemma's: what is not in the vocabulary falls back to bytes."""
    named = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"] if kind.startswith("gemma") else ["<unk>", "<s>", "</s>"]
    tokens = [*named, *(f"<0x{byte:02X}>" for byte in range(256)), *trained["vocab"]]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(merge) for merge in trained["merges"]]
    if kind.endswith("-complete"):
        merges = _every_merge(vocab, merges)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind.startswith("gemma"):
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    elif kind == "legacy-complete":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _every_merge(vocab: dict[str, int], merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A merge for every two tokens that together are one, in the order in which the trained ones make these."""
    made = dict.fromkeys(left + right for left, right in merges)
    return [
        (token[:at], token[at:])
        for token in made
        for at in range(1, len(token))
        if token[:at] in vocab and token[at:] in vocab
    ]
