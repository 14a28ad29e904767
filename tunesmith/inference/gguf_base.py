"""A GGUF file as the base of training: unpacked once into an ordinary model folder, and compared with llama.cpp.

Transformers unpacks the weights. It leaves much of a file's header unread, so the config is corrected here from the
header, and nothing is kept unless llama.cpp, on the same file, has the same tokens and the same logits.

T tokens of the text that both are given, V tokens to choose from.
"""

import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.data.files import content_hash
from tunesmith.data.read import POINTER
from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import Ending, UserError, first_line, report_full_disk
from tunesmith.files import cache_folder, follow_umask, read_json, replaced, write_json
from tunesmith.inference import llama_cpp
from tunesmith.inference.gguf_splits import SPLITS, splitter
from tunesmith.model.load import quieten, resolve
from tunesmith.recipe import Model

RECORD = "gguf.json"
SAFETENSORS = "train on the safetensors that it was made from"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
QUANTISED_DTYPE = "bfloat16"

# The known keys of a header, by architecture: each of these is carried over, by Transformers or by `_correct`.
_KEYS = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *(f"attention.{key}" for key in ("head_count", "head_count_kv", "key_length", "value_length")),
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
    *("rope.freq_base", "rope.dimension_count", "rope.scaling.finetuned"),
    *(f"rope.scaling.{key}" for key in ("type", "factor", "original_context_length", "attn_factor")),
}
_GEMMA = {
    *("attn_logit_softcapping", "final_logit_softcapping", "rope.freq_base_swa"),
    *("attention.sliding_window", "attention.sliding_window_pattern"),
}
ARCHITECTURES: dict[str, set[str]] = {
    "llama": set(),
    "qwen2": set(),
    "qwen3": set(),
    "qwen3moe": {"expert_count", "expert_used_count", "expert_feed_forward_length"},
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "phi3": {"attention.sliding_window"},
    "starcoder2": set(),
    "nemotron": set(),
    "lfm2": {"shortconv.l_cache"},
    "qwen35": {
        *("full_attention_interval", "rope.dimension_sections", "attention.recurrent_layers"),
        *(f"ssm.{key}" for key in ("conv_kernel", "state_size", "group_count", "time_step_rank", "inner_size")),
    },
}
READ_WHOLE = ("lfm2", "qwen35")  # architectures whose config Transformers makes of the header without a gap
LARGEST_GEMMAS = {"gemma2": 46, "gemma3": 62}  # layers of the ones that scale attention by the width of the model

ROPE_FREQUENCIES = "rope_freqs.weight"
LLAMA3_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.2; the rest of llama3 scaling is the same in both
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

PROOF_TOKENS = 256
MOST_KL = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Nats that the unpacked model may be from llama.cpp, by the precision it is kept in. llama.cpp rounds activations."""
PROBES = (
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, and they'll pay 3.14 or 1,000,000!\n",
    "  two  three   four\n\n\tdef f(x):\r\n    return {'a': [x**2, -1]}  # why?\n\n\n",
    "größe naïve façade smørrebrød, привет мир. 你好，世界。こんにちは！ 한국어 🙂👍🏽 €½\n",
    "camelCaseText snake_case https://example.com/a?b=c&d=%20 <b>bold</b> ``` -- ... \"quoted\" ''\n",
)
CHAT = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]


def base_folder(model: Model) -> Path:
    """The base model's folder; a GGUF file is unpacked into the cache first. Raises UserError."""
    file = Path(model.path).expanduser()
    return unpacked(file) if file.suffix == ".gguf" and file.is_file() else resolve(model)


def unpacking_note(base: Path) -> str | None:
    """Returns a note for the user about a base that was unpacked from a GGUF; None for any other base."""
    record = read_json(base / RECORD)
    if not record:
        return None
    quantised = record["kind"] not in DTYPES
    rounded = "; its weights had been rounded before, and training starts from the rounded ones" if quantised else ""
    return f"the base is a GGUF in {record['kind']}{rounded}. It was unpacked to {record['dtype']} in {base}"


def unpacked(file: Path) -> Path:
    """The folder into which a GGUF is unpacked, once for each content. Raises UserError, leaving nothing behind."""
    _check_magic(file)
    folder = cache_folder() / "gguf" / content_hash(file)[:16] / file.stem
    if folder.is_dir():
        return folder
    header = Header(file)
    with replaced(folder) as draft:
        draft.mkdir(parents=True)
        with report_full_disk(draft, "free some space, or name another disk in TUNESMITH_CACHE"):
            _unpack(header, draft)
    return folder


class Header:
    """A file's metadata and the shapes and types of its tensors. Raises UserError where it is no base of training."""

    def __init__(self, file: Path):
        self.file = file
        gguf = llama_cpp.gguf_package()
        try:
            reader = gguf.GGUFReader(file)
        except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError, MemoryError, struct.error):
            raise UserError(f"model.path: {file} is damaged or cut off; download it again") from None
        texts = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")
        self.metadata = {key: field.contents() for key, field in reader.fields.items() if key not in texts}
        self.architecture: str = self.metadata.get("general.architecture", "")
        self.values = {
            key.removeprefix(f"{self.architecture}."): value
            for key, value in self.metadata.items()
            if key.startswith(f"{self.architecture}.")
        }
        self._check()
        self.counts = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
        self.rope_frequencies = next(
            (np.array(tensor.data) for tensor in reader.tensors if tensor.name == ROPE_FREQUENCIES), None
        )
        types = Counter(tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1)
        plain = len(set(types) - {"F32"}) <= 1 and set(types) <= {*DTYPES}
        self.dtype = DTYPES[max(types, key="F32".__ne__)] if plain else QUANTISED_DTYPE
        self.kind = _kind(gguf, self.metadata.get("general.file_type"), types)

    def _check(self) -> None:
        file, name = self.file, self.architecture
        if self.metadata.get("split.count", 0) > 1:
            raise UserError(
                f"model.path: {file} is part {self.metadata.get('split.no', 0) + 1} of {self.metadata['split.count']}; "
                "join the parts with llama-gguf-split --merge"
            )
        if name == "clip" or self.metadata.get("general.type") == "mmproj":
            raise UserError(f"model.path: {file} holds what sees images (mmproj), not the model; name the model's file")
        if self.metadata.get("general.type") == "adapter":
            raise UserError(f"model.path: {file} is an adapter, not a model; {SAFETENSORS}")
        if name not in ARCHITECTURES:
            raise UserError(
                f"model.path: {file}: architecture {name or 'unknown'} cannot be unpacked; {SAFETENSORS}. "
                f"These can: {', '.join(ARCHITECTURES)}"
            )
        if unread := sorted(self.values.keys() - _KEYS - ARCHITECTURES[name]):
            raise UserError(
                f"model.path: {file}: its header has {name}.{unread[0]}, which cannot be carried over to Transformers; "
                f"{SAFETENSORS}"
            )


def _check_magic(file: Path) -> None:
    with file.open("rb") as opened:
        start = opened.read(len(POINTER))
    if start.startswith(POINTER):
        raise UserError(f"model.path: {file} is a git-lfs pointer, not the file itself; run `git lfs pull`")
    if not start.startswith(b"GGUF"):
        raise UserError(f"model.path: {file} is not a GGUF file, whatever its name says; download it again")


def _kind(gguf, file_type: int | None, types: Counter) -> str:
    """The name that users know a quantisation by, such as Q4_K_M."""
    try:
        name = gguf.LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except ValueError:
        name = ""
    return name if name and name != "GUESSED" else max(types, key=lambda kind: types[kind])


def _unpack(header: Header, draft: Path) -> None:
    import torch
    import transformers

    quieten()
    place: dict[str, Any] = {"gguf_file": header.file.name, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(header.file.parent, **place)
        _correct(config, header)
        tokenizer = transformers.AutoTokenizer.from_pretrained(header.file.parent, **place)
        _quieten_loader()
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            header.file.parent,
            config=config,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=getattr(torch, header.dtype),
            attn_implementation="eager",  # the one that all families have whole
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **place,
        )
    except Exception as error:  # its readers raise whatever a header makes them stumble over
        if isinstance(error, Ending):
            raise
        raise UserError(
            f"model.path: {header.file}: transformers cannot unpack this model: {first_line(error)}; {SAFETENSORS}"
        ) from None
    model, info = loaded
    _check_all_there(header, model, info)
    _settle_tokenizer(tokenizer, header)
    tokenizer.save_pretrained(draft)
    _prove(header, model.eval(), draft)
    vars(model.config).pop("quantization_config", None)
    model.config.name_or_path = ""
    model.hf_quantizer = None
    model.save_pretrained(draft)
    for weights in draft.glob("*.safetensors"):
        follow_umask(weights)
    write_json(
        draft / "generation_config.json",
        {"eos_token_id": _ends(header, draft)}
        | {
            f"{name}_token_id": header.metadata[f"tokenizer.ggml.{key}_token_id"]
            for name, key in (("bos", "bos"), ("pad", "padding"))
            if f"tokenizer.ggml.{key}_token_id" in header.metadata
        },
    )
    write_json(
        draft / RECORD,
        {
            "file": header.file.name,
            "sha256": content_hash(header.file),
            "architecture": header.architecture,
            "kind": header.kind,
            "dtype": header.dtype,
        },
    )


def _quieten_loader() -> None:
    """Transformers shows a bar of its own here, past all its settings."""
    from transformers import modeling_gguf_pytorch_utils as loader

    loader.tqdm = lambda tensors, **_: tensors


def _ends(header: Header, folder: Path) -> list[int]:
    """Tokens that end an answer: those that the header names, and of those that llama.cpp knows by their text the ones
    that the chat template writes."""
    named = [header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    own = Tokenizer.load(folder)
    there = llama_cpp.Model(header.file)
    try:
        known = there.stop_ids
    finally:
        there.close()
    written = [id for text in _conversation(own) for id in own.encode(text)[0] if id in known]
    return list(dict.fromkeys(id for id in (*named, *written) if id is not None))


def _conversation(own: Tokenizer) -> list[str]:
    """A short one as the chat template writes it; none where the template has demands of its own."""
    try:
        return [own.render(CHAT)]
    except RowProblem:
        return []


def _check_all_there(header: Header, model, info: dict) -> None:
    """Raises UserError unless every number of the file went into the model, and every weight came from the file."""
    lacking = sorted([*info["missing_keys"], *info["unexpected_keys"], *(name for name, *_ in info["mismatched_keys"])])
    if lacking:
        raise UserError(
            f"model.path: {header.file}: transformers cannot unpack this model: {lacking[0]} is missing or of another "
            f"shape; {SAFETENSORS}"
        )
    weights = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    stored = sum(count for name, count in header.counts.items() if name != ROPE_FREQUENCIES)
    if stored != sum(weights.values()):
        raise UserError(
            f"model.path: {header.file} holds {stored:,} weights, and transformers unpacks {sum(weights.values()):,}; "
            f"{SAFETENSORS}"
        )


def _correct(config, header: Header) -> None:
    """Sets what Transformers leaves at the defaults of the architecture, whatever the header says."""
    values, name = header.values, header.architecture
    if name in READ_WHOLE:
        return
    size = values.get("attention.key_length", config.hidden_size // config.num_attention_heads)
    if hasattr(config, "head_dim"):
        config.head_dim = size
    for key in ("rms_norm_eps", "norm_eps", "norm_epsilon"):
        if hasattr(config, key):
            kind = "layer_norm_rms_epsilon" if "attention.layer_norm_rms_epsilon" in values else "layer_norm_epsilon"
            setattr(config, key, values[f"attention.{kind}"])
    if name == "llama":
        config.attention_bias = "blk.0.attn_output.bias" in header.counts
        config.mlp_bias = "blk.0.ffn_up.bias" in header.counts
    if name == "qwen3moe":
        config.moe_intermediate_size = values["expert_feed_forward_length"]
    if name in ("gemma2", "gemma3"):
        largest = config.num_hidden_layers == LARGEST_GEMMAS[name]
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if largest else size
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            setattr(config, key, values.get(key, getattr(config, key)))
        if pattern := values.get("attention.sliding_window_pattern"):
            layers = range(config.num_hidden_layers)
            windows = pattern if isinstance(pattern, list) else [(n + 1) % pattern for n in layers]
            config.layer_types = ["sliding_attention" if windows[n] else "full_attention" for n in layers]
    if name == "phi3":
        config.sliding_window = values.get("attention.sliding_window")
    config.rope_parameters = _rope(header, size)


def _rope(header: Header, size: int) -> dict[str, Any]:
    values = header.values
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": values.get("rope.freq_base", 10000.0)}
    rotated = values.get("rope.dimension_count", size) / size
    if rotated != 1 or header.architecture == "phi3":  # whose code asks for it
        rope["partial_rotary_factor"] = rotated
    kind, factor = values.get("rope.scaling.type", "none"), values.get("rope.scaling.factor", 1.0)
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = values["rope.scaling.original_context_length"]
        if "rope.scaling.attn_factor" in values:
            rope["attention_factor"] = values["rope.scaling.attn_factor"] * (0.1 * math.log(factor) + 1)
    elif kind not in ("none", "linear"):
        raise UserError(f"model.path: {header.file}: its rope scaling is {kind}, not linear or yarn; {SAFETENSORS}")
    if header.rope_frequencies is not None:
        rope |= _llama3(header, rope["rope_theta"], size)
    if header.architecture != "gemma3":
        return rope
    local = {"rope_type": "default", "rope_theta": values.get("rope.freq_base_swa", 10000.0)}
    return {"full_attention": rope, "sliding_attention": local}


def _llama3(header: Header, theta: float, size: int) -> dict[str, Any]:
    """The scaling whose result the file carries as a factor for each frequency. Raises UserError for any other."""
    plain = theta ** -(np.arange(size // 2) / (size // 2))
    turns = LLAMA3["original_max_position_embeddings"] * plain / (2 * math.pi)
    kept = np.clip((turns - LLAMA3["low_freq_factor"]) / (LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"]), 0, 1)
    for factor in LLAMA3_FACTORS:
        expected = 1 / (kept + (1 - kept) / factor)
        if np.allclose(header.rope_frequencies, expected, rtol=1e-4):
            return {"rope_type": "llama3", "factor": factor} | LLAMA3
    raise UserError(f"model.path: {header.file}: its {ROPE_FREQUENCIES} are not those of Llama 3; {SAFETENSORS}")


def _settle_tokenizer(tokenizer, header: Header) -> None:
    """Splits text as the header says, also in ways that Transformers does not know, and adds bos where it says so."""
    import json

    import tokenizers

    backend = tokenizer.backend_tokenizer
    way = SPLITS.get(header.metadata.get("tokenizer.ggml.pre", ""))
    if header.metadata.get("tokenizer.ggml.model") == "gpt2" and way:
        patterns, whole = way
        file = json.loads(backend.to_str())
        file["model"]["ignore_merges"] = whole
        backend = tokenizers.Tokenizer.from_str(json.dumps(file))
        backend.pre_tokenizer = splitter(patterns)
        tokenizer._tokenizer = backend
    bos = tokenizer.bos_token
    if header.metadata.get("tokenizer.ggml.add_bos_token", header.metadata["tokenizer.ggml.model"] == "llama") and bos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.bos_token_id)]
        )


def _prove(header: Header, model, folder: Path) -> None:
    """Raises UserError unless the unpacked model is the one that llama.cpp runs, in its tokens and its logits."""
    own = Tokenizer.load(folder)
    there = llama_cpp.Model(header.file)
    try:
        texts = [own.anchor + text for text in PROBES] + _conversation(own)
        for text in texts:
            if own.encode(text)[0] != there.encode(text):
                raise UserError(
                    f"model.path: {header.file}: transformers unpacks a tokenizer with other ids than llama.cpp's, "
                    f"for {text.removeprefix(own.anchor)[:40]!r}; {SAFETENSORS}"
                )
        ids = [id for text in reversed(texts) for id in own.encode(text)[0]][:PROOF_TOKENS]
        kl = _divergence(model, there, ids)
    finally:
        there.close()
    if not kl < MOST_KL[header.dtype]:
        raise UserError(
            f"model.path: {header.file}: the model that transformers unpacks is not the one that llama.cpp runs: they "
            f"are {kl:.2g} nats apart, where at most {MOST_KL[header.dtype]:g} is rounding; {SAFETENSORS}"
        )


def _divergence(model, there: llama_cpp.Model, ids: list[int]) -> float:
    """Mean KL divergence in nats of what each of the tokens is followed by."""
    import torch

    context = llama_cpp.Context(there, len(ids), exact=True)
    try:
        expected_TV = context.logits([llama_cpp.Part(0, 0, ids, range(len(ids)))])
    finally:
        context.close()
    with torch.inference_mode():
        found_TV = model(torch.tensor([ids])).logits[0]
        total = 0.0
        for expected_V, found_V in zip(expected_TV, found_TV, strict=True):
            expected, found = torch.from_numpy(expected_V).log_softmax(-1), found_V.float().log_softmax(-1)
            total += float((expected.exp() * (expected - found)).sum(dtype=torch.float64))
    return total / len(ids)
