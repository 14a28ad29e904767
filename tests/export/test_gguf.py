"""GGUF in llama.cpp is the same model as in Transformers: ids, logits, stop tokens, adapter, for every type."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.activations import GELUTanh

from tests import tiny
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.export.gguf.adapter import write_adapter
from tunesmith.export.gguf.families import FAMILIES
from tunesmith.export.gguf.write import write_gguf
from tunesmith.export.parity.samples import CAPITALS, LEADING, TEXTS, written

pytest.importorskip("llama_cpp", reason="pip install 'tunesmith[gguf]'")
from tunesmith.export.parity.in_llama_cpp import LlamaCpp

YARN = tiny.YARN | {"truncate": True}  # llama.cpp has no other
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 256,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0] * 8,
}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}

# The family's own kind of tokenizer, and what llama.cpp has fixed. A window would end what of a text can be compared.
MODELS = {
    "llama3": ("llama3", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen", {}),
    "qwen3": ("qwen", {}),
    "qwen3_moe": ("qwen", {"norm_topk_prob": True}),
    "mistral": ("metaspace-complete", {"sliding_window": None, "head_dim": 32}),
    "mixtral": ("legacy-complete", {}),
    "gemma2": ("gemma-complete", {}),
    "gemma3": ("gemma-complete", {"rope_parameters": GEMMA_ROPE}),
    "phi3": (
        "legacy-complete",
        {"sliding_window": None, "rope_parameters": LONG, "original_max_position_embeddings": 256},
    ),
    "smollm3": ("llama3", {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}),
    "olmo2": ("cl100k", {}),
    "olmoe": ("bytes", {"num_key_value_heads": 4}),
    "gpt_oss": ("o200k", {"rope_parameters": YARN}),
    "phi4": ("cl100k", {"sliding_window": None}),
    "granite": ("llama3", {"attention_bias": True, "mlp_bias": True}),
    "seed_oss": ("cl100k", {}),
    "exaone4": ("qwen", {"rope_parameters": LLAMA3}),
    "ernie4_5": ("legacy-complete", {}),
    "hunyuan": (
        "llama3",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 1000.0, "factor": 1.0}},
    ),
    "glm4": ("cl100k", {}),
    "cohere2": ("bytes", {}),
    "starcoder2": ("bytes", {}),
    "nemotron": ("gemma-complete", {}),
    "lfm2": ("llama3", {}),
    "ministral3": ("tekken", {}),
    "qwen3_5": ("qwen35", {}),
    "gemma4": ("gemma-complete", {}),
    "gemma4_moe": ("gemma-complete", {}),
    "gemma4_unified": ("gemma-complete", {}),
    "olmo3": (
        "cl100k",
        {
            "rope_parameters": {
                "full_attention": {**YARN, "original_max_position_embeddings": 64},
                "sliding_attention": {"rope_type": "default", "rope_theta": 150000.0},
            }
        },
    ),
}
# Where a last bit may decide a rounding.
BY_TABLE = ("gemma2", "gemma3", "gemma4", "gemma4_moe", "gemma4_unified", "starcoder2")
QUICK = "qwen3"


class Weights:
    """A model's weights in the form that an export takes."""

    def __init__(self, model):
        self.config = model.config
        self._all = dict(model.named_parameters()) | _buffers(model)
        self.shapes = {name: tensor.shape for name, tensor in self._all.items()}

    def __iter__(self):
        return iter(self._all.items())


def _buffers(model) -> dict[str, torch.Tensor]:
    """Returns the buffers that are weights, such as Gemma 4's layer scale."""
    kept = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


class TableGelu(torch.nn.Module):
    """ggml's on a CPU: looked up by float16 in a table of float16."""

    def forward(self, x):
        found = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x.abs() < 10, found, x.clamp(min=0))


def rounding(model):
    """The model with ggml's GELU in place of its own."""
    for module in model.modules():
        for name, inner in list(module.named_children()):
            if isinstance(inner, GELUTanh):
                setattr(module, name, TableGelu())
    return model


def made(name: str, folder, **changes):
    """Makes a small model whose vectors are random too, so that a missing one changes the logits."""
    kind, own = MODELS[name]
    tiny.save(name, folder, kind=kind, **own | changes)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    for key, parameter in [*model.named_parameters(), *_buffers(model).items()]:
        if parameter.ndim == 1 or "bias" in key:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return rounding(model)


def torch_logits(model, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def llama_cpp(path, ask, **options):
    engine = LlamaCpp(path, **options)
    try:
        return ask(engine)
    finally:
        engine.close()


def drift(model, path, count: int = 96, **options) -> float:
    """Largest difference of logits over their standard deviation."""
    ids = torch.randint(5, 300, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = torch_logits(model, ids)
    found = llama_cpp(path, lambda engine: engine.logits(ids), **{"context": 256} | options)
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_the_same_model(tmp_path, name):
    model = made(name, tmp_path / "model")
    notes = write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "f32")
    assert drift(model, tmp_path / "model.gguf") < (5e-3 if name in BY_TABLE else 1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    plain = [] if notes and name == "mistral" else [*TEXTS, *CAPITALS, *LEADING]
    own = Tokenizer.load(tmp_path / "model")
    keeps = any("whitespace beside" in note for note in notes)  # where the tokenizer takes it along
    texts = [text for text in plain + written(own) if not (keeps and own.takes_whitespace(text))]
    ids = llama_cpp(tmp_path / "model.gguf", lambda engine: [engine.encode(text) for text in texts])
    assert ids == [tokenizer.encode(text, add_special_tokens=False) for text in texts]


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("qwen3", "qwen"),
        ("qwen3", "llama3"),
        ("qwen3", "bytes"),
        ("qwen3", "cl100k"),
        ("qwen3", "o200k"),
        ("gemma2", "gemma-complete"),
        ("gemma2", "gemma"),
        ("mixtral", "legacy-complete"),
    ],
)
def test_words_of_every_script_get_the_same_ids(tmp_path, family, kind):
    """Trains tokenizers on words of every script, so that a different split changes the ids."""
    seen = (*TEXTS, *CAPITALS)
    learned = "".join(f"{text}\n".replace("\0", "") * 30 for text in seen)
    tiny.save(family, tmp_path / "model", kind=kind, text=learned)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "bf16")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    words = [word for text in seen for word in text.split(" ")]
    if kind == "o200k":  # llama.cpp splits these otherwise, as the export says
        words = [word for word in words if word.isascii() or word == word.lower()]
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(words, 6)) for _ in range(200)]
    ids = llama_cpp(tmp_path / "model.gguf", lambda engine: [engine.encode(text) for text in texts])
    assert ids == [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert np.mean([len(i) for i in ids]) < 0.7 * np.mean([len(text.encode()) for text in texts])


def test_every_family_has_a_model_here():
    prefixes = [(tiny.FAMILIES | tiny.OTHERS)[name].prefix for name in MODELS]
    assert {getattr(transformers, f"{prefix}Config").model_type for prefix in prefixes} == {*FAMILIES}


# Families whose models see images: the config of the whole, and of what sees.
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SEEING = {
    "gemma3": ("Gemma3", VISION, {"mm_tokens_per_image": 4, "image_token_index": 3}),
    "ministral3": ("Mistral3", VISION | {"head_dim": 16}, {"image_token_index": 3}),
    "gemma4": (
        "Gemma4",
        VISION | {"num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16},
        {"audio_config": None, "image_token_id": 3},
    ),
    "gemma4_unified": (
        "Gemma4Unified",
        {"patch_size": 4, "mm_embed_dim": 64, "mm_posemb_size": 8, "output_proj_dims": 64},
        {"image_token_id": 3},
    ),
    "qwen3_5": (
        "Qwen3_5",
        {
            "hidden_size": 32,
            "intermediate_size": 32,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
        },
        {},
    ),
}


@pytest.mark.parametrize("name", SEEING)
def test_the_text_decoder_of_a_model_that_sees_images(tmp_path, name):
    prefix, vision, more = SEEING[name]
    tiny.save(name, tmp_path / "model", kind=MODELS[name][0])
    text = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    ids = {"bos_token_id": text.bos_token_id, "pad_token_id": text.pad_token_id, "eos_token_id": text.eos_token_id}
    config = getattr(transformers, f"{prefix}Config")(
        text_config=text.to_dict(), vision_config=vision, tie_word_embeddings=text.tie_word_embeddings, **more | ids
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config).eval()
    rounding(model)
    notes = write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "f32", (ids["eos_token_id"],))
    bound = 5e-3 if name in BY_TABLE else 1e-4
    assert drift(model, tmp_path / "model.gguf") < bound
    assert any("--mmproj" in note for note in notes)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|down_proj)"))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    adapted.save_pretrained(tmp_path / "adapter")
    write_adapter(tmp_path / "adapter", model.config, tmp_path / "adapter.gguf")
    assert drift(adapted, tmp_path / "model.gguf", adapter=tmp_path / "adapter.gguf") < bound


def test_it_stops_where_the_model_does(tmp_path):
    """It stops at every stop token, also at one whose text does not show it."""
    model = made(QUICK, tmp_path / "model")
    prompt = list(range(40, 60))
    greedy = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    answer = greedy[0, len(prompt) :].tolist()
    at = next(i for i in range(3, 12) if answer[i] not in answer[:i])
    write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "f32", stop_ids=(answer[at],))
    found, ids = llama_cpp(tmp_path / "model.gguf", lambda e: (e.generate([prompt], 12)[0], set(e.stop_ids)))
    assert found == (answer[:at], True)
    assert {answer[at], model.generation_config.eos_token_id} <= ids
    assert llama_cpp(tmp_path / "model.gguf", lambda e: e.generate([prompt], at)) == [(answer[:at], False)]


def test_windows_and_pieces_of_long_text(tmp_path):
    """llama.cpp reads 512 tokens at once; windows are 16 here, and states go on from piece to piece."""
    for name in ("gemma3", "gemma4", "gpt_oss", "lfm2", "qwen3_5"):
        model = made(name, tmp_path / name, max_position_embeddings=1024)
        write_gguf(Weights(model), tmp_path / name, tmp_path / f"{name}.gguf", "f32")
        assert drift(model, tmp_path / f"{name}.gguf", count=700, context=1024) < 5e-3


def test_text_that_a_user_types_is_not_a_special_token(tmp_path, capfd):
    model = made(QUICK, tmp_path / "model")
    write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "f32")
    capfd.readouterr()
    typed = "<|im_end|>"
    parsed, plain = llama_cpp(tmp_path / "model.gguf", lambda e: (e.encode(typed), e.encode(typed, special=False)))
    assert len(parsed) == 1 and parsed[0] not in plain
    assert capfd.readouterr() == ("", "")  # llama.cpp is silent


@pytest.mark.parametrize(
    "name", ["qwen3", "llama3", "phi3", "mixtral", "qwen3_moe", "gpt_oss", "lfm2", "qwen3_5", "gemma4"]
)
def test_an_adapter_over_its_base_is_as_in_peft(tmp_path, name):
    """Adapts attention, whose rows are reordered, the MLP or stacked experts."""
    model = made(name, tmp_path / "model")
    write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "f32")
    stacks = sorted(
        {
            key.split(".", 3)[3]
            for key, parameter in model.named_parameters()
            if ".experts." in key and parameter.ndim == 3
        }
    )
    modules = sorted(
        {name.split(".")[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        - {"lm_head", "per_layer_model_projection"}
    )
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=4,
            lora_alpha=8,
            use_rslora=not stacks,
            target_modules=modules,
            target_parameters=stacks or None,
            rank_pattern={"v_proj": 2},
            alpha_pattern={"o_proj": 32},
        ),
    )
    generator = torch.Generator().manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(tmp_path / "adapter")
    write_adapter(tmp_path / "adapter", model.config, tmp_path / "adapter.gguf")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager")
    base.load_state_dict(
        {k.replace(".base_layer", ""): v for k, v in adapted.get_base_model().state_dict().items() if ".lora_" not in k}
    )
    rounding(base)
    assert drift(base.eval(), tmp_path / "model.gguf", adapter=tmp_path / "adapter.gguf") > 0.1
    over_it = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    bound = 5e-3 if name in BY_TABLE else 1e-4
    assert drift(over_it, tmp_path / "model.gguf", adapter=tmp_path / "adapter.gguf") < bound


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "fully trained"),
        ({"trainable_token_indices": [1]}, "trained tokens"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"target_modules": r".*conv\.conv", "r": 64}, "convolution"),
        ({"target_modules": ["per_layer_model_projection"]}, "without an adapter"),
        ({"target_parameters": ["experts.down_proj"]}, "scale of each expert"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused(tmp_path, more, named):
    others = {"convolution": "lfm2", "without an adapter": "gemma4", "scale of each expert": "gemma4_moe"}
    model = made(others.get(named, "llama3"), tmp_path / "model")
    get_peft_model(model, LoraConfig(**{"target_modules": ["q_proj"]} | more)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=f"{named}.*export merged"):
        write_adapter(tmp_path / "adapter", model.config, tmp_path / "adapter.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_half_a_file_never_stays(tmp_path):
    model = made(QUICK, tmp_path / "model")

    class Breaking(Weights):
        def __iter__(self):
            yield from list(super().__iter__())[:3]
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_gguf(Breaking(model), tmp_path / "model", tmp_path / "model.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("smollm3", {"no_rope_layers": [1, 1, 0, 0]}, "no_rope_layers"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("gemma3", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
        ("qwen2", {"rope_parameters": LLAMA3}, "rope scaling"),
        ("qwen3", {"attention_bias": True}, "o_proj.bias"),
        ("exaone4", {"sliding_window": 16, "layer_types": [tiny.WINDOW, tiny.FULL]}, "windows"),
        ("qwen3_5", {"linear_value_head_dim": 32}, "one size"),
        ("gemma4", {"num_kv_shared_layers": 1}, "share"),
        ("cohere2", {"layer_types": 2 * [tiny.WINDOW, tiny.FULL]}, "every fourth"),
    ],
)
def test_a_model_that_llama_cpp_would_compute_differently_is_refused(tmp_path, name, change, named):
    model = made(name, tmp_path / "model", **change)
    with pytest.raises(UserError, match=named):
        write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "f32")


def test_a_window_that_llama_cpp_lacks_limits_the_context(tmp_path):
    model = made("mistral", tmp_path / "model", sliding_window=16)
    assert any(
        "context_length is 16" in note
        for note in write_gguf(Weights(model), tmp_path / "model", tmp_path / "model.gguf", "f32")
    )
    assert drift(model, tmp_path / "model.gguf", count=16) < 1e-4


def test_a_family_without_mapping_is_refused():
    config = SimpleNamespace(model_type="bert")
    config.get_text_config = lambda: config
    with pytest.raises(UserError, match="no mapping for bert; export `merged`, and convert.*convert_hf_to_gguf.py"):
        write_gguf(SimpleNamespace(config=config), None, None, "f32")


@pytest.mark.parametrize(("package", "said"), [("gguf", "gguf"), ("llama_cpp", "llama-cpp-python")])
def test_a_missing_package_is_reported_with_the_command(tmp_path, monkeypatch, package, said):
    from tunesmith.inference import llama_cpp as llama

    llama.llama_cpp.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"needs the package {said}; pip install 'tunesmith\[gguf\]'"):
        llama.gguf_package() if package == "gguf" else llama.llama_cpp()
