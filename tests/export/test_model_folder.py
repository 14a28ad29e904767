"""An exported model folder has the base's own files, with only the changes of training."""

import json
import os
import stat

import pytest
import tokenizers
from transformers import AutoConfig, AutoTokenizer

from tests import tiny
from tunesmith import train
from tunesmith.export.export import export

QUICK = {"max_steps": 2, "learning_rate": 1e-2}
OTHERS = {
    "preprocessor_config.json": '{"size": 28}',
    "processor_config.json": '{"image_seq_length": 4}',
    "LICENSE": "as you like",
    "USE_POLICY.md": "be kind",
}
NOT_COPIED = {
    "modeling_own.py": "print()",
    "pytorch_model.bin": "pickle",
    "consolidated.safetensors": "",
    "model.gguf": "",
    "params.json": "{}",
    "README.md": "the base's",
    ".gitattributes": "",
    "model.safetensors.index.json.bak.index.json": "{}",
}
CHANGED = {"architectures", "torch_dtype", "vocab_size"}


def as_published(base: str, folder, in_settings: bool = True, **changes):
    """A base with config and tokenizer settings in Transformers 4's form, code and what else lies in such folders."""
    tiny.save(base, folder, **changes)
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config.pop("layer_types", None)
    config |= {
        "rope_theta": 1e6,
        "torch_dtype": config.pop("dtype"),
        "transformers_version": "4.43.1",
        "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"},
    }
    assert rope["rope_type"] == "default"
    (folder / "config.json").write_text(json.dumps(config, indent=3))
    facts, added = tiny.FAMILIES[base], read(folder / "tokenizer.json")["added_tokens"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": facts.eos,
        "pad_token": facts.pad,
        "additional_special_tokens": list(facts.special),
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(token.pop("id")): token for token in added},
        "bos_token": facts.bos,
        "unk_token": None,
    }
    if in_settings:
        settings["chat_template"] = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=3))
    for name, text in (OTHERS | NOT_COPIED).items():
        (folder / name).write_text(text)
    (folder / "consolidated.safetensors").unlink()  # transformers would take it for the model's
    return folder


def read(file):
    return json.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("base", ["qwen2", "llama3"])
@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_unchanged_files_are_those_of_the_base(recipe, tmp_path, base, full):
    folder = as_published(base, tmp_path / "base")
    run = train(recipe(base, model={"path": str(folder)}, train=QUICK, adapter={"kind": "full" if full else "lora"}))
    found = export(run, "merged", tmp_path / "merged")
    assert found["passed"]
    for made in [tmp_path / "merged", *([run.result] if full else [])]:
        expected = read(folder / "config.json")
        del expected["auto_map"]  # its code does not come along
        config = read(made / "config.json")
        assert config == expected and list(config) == list(expected)
        for name in ("tokenizer.json", "tokenizer_config.json", *OTHERS):
            assert (made / name).read_bytes() == (folder / name).read_bytes(), name
        assert not {*NOT_COPIED} - {"README.md"} & {path.name for path in made.iterdir()}
    assert "the base's" not in (tmp_path / "merged/README.md").read_text()
    assert read(tmp_path / "merged/generation_config.json")["eos_token_id"] == run.plan.stop_ids


@pytest.mark.parametrize("base", ["qwen2", "smollm3"])
def test_new_tokens_and_another_template_are_in_every_file_that_lists_them(recipe, tmp_path, base):
    folder = as_published(base, tmp_path / "base")
    (folder / "added_tokens.json").write_text("{}")
    (folder / "chat_template.json").write_text('{"chat_template": "{{ 1 }}"}')
    run = train(recipe(base, model={"path": str(folder), "chat_template": "chatml"}, train=QUICK, tokens=["<call>"]))
    export(run, "merged", tmp_path / "merged")
    made, rows = tmp_path / "merged", read(folder / "config.json")["vocab_size"]
    was, now = read(folder / "tokenizer.json"), read(made / "tokenizer.json")
    token = now["added_tokens"].pop()
    assert token["content"] == "<call>" and token["id"] == rows and now == was
    assert read(made / "tokenizer_config.json")["added_tokens_decoder"][str(rows)]["content"] == "<call>"
    assert read(made / "added_tokens.json") == {"<call>": rows}
    assert read(made / "config.json")["vocab_size"] == rows + 1
    templates = [
        (made / "chat_template.jinja").read_text(),
        read(made / "tokenizer_config.json")["chat_template"],
        read(made / "chat_template.json")["chat_template"],
    ]
    assert len({*templates}) == 1 and "im_start" in templates[0]
    assert AutoTokenizer.from_pretrained(made).encode("a<call>", add_special_tokens=False)[-1] == rows


def test_variables_of_training_are_in_a_template_wherever_it_is(recipe, tmp_path):
    run = train(recipe("qwen3", model={"path": str(as_published("qwen3", tmp_path / "base"))}, train=QUICK))
    export(run, "merged", tmp_path / "merged", parity=False)
    assert not (tmp_path / "merged/chat_template.jinja").exists()
    assert read(tmp_path / "merged/tokenizer_config.json")["chat_template"].startswith(
        "{%- if enable_thinking is not defined -%}"
    )


@pytest.mark.parametrize(
    ("base", "old"),
    [
        ("llama3", {"rope_theta": 10000.0, "rope_scaling": None}),
        ("qwen2", {"rope_theta": 10000.0}),
        ("gemma3", {"rope_theta": 1e6, "rope_local_base_freq": 10000.0}),
        (
            "gpt_oss",
            {"rope_theta": 150000.0, "rope_scaling": {k: v for k, v in tiny.YARN.items() if k != "rope_theta"}},
        ),
    ],
)
def test_a_base_of_transformers_5_is_written_in_both_spellings(recipe, tmp_path, family, base, old):
    export(train(recipe(base, train=QUICK)), "merged", tmp_path / "merged")
    config = read(tmp_path / "merged/config.json")
    assert config | old == config and config["torch_dtype"] == "float32"
    settings = read(tmp_path / "merged/tokenizer_config.json")
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not isinstance(settings.get("extra_special_tokens"), list)
    was, now = (AutoConfig.from_pretrained(folder) for folder in (family(base), tmp_path / "merged"))
    assert now.rope_parameters == was.rope_parameters


def test_a_tokenizer_that_transformers_rebuilds_is_written_as_it_was_trained(recipe, tmp_path):
    """Transformers rebuilds Llama's tokenizer from its vocabulary, and ignores the file's pre-tokenizer."""
    folder = tiny.save("llama3", tmp_path / "base", kind="legacy-complete")
    settings = read(folder / "tokenizer_config.json") | {"tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    run = train(recipe("llama3", model={"path": str(folder)}, train=QUICK))
    assert export(run, "merged", tmp_path / "merged")["passed"]
    opened = AutoTokenizer.from_pretrained(tmp_path / "merged")
    written = tokenizers.Tokenizer.from_file(str(tmp_path / "merged/tokenizer.json"))
    text = "  Two  spaces, and 12."
    ids = written.encode(text, add_special_tokens=False).ids
    assert opened(text, add_special_tokens=False).input_ids == ids
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert own.encode(text, add_special_tokens=False).ids != ids


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_every_file_follows_the_umask(recipe, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        run = train(recipe("llama3", train=QUICK))
        full = train(recipe("llama3", "full", train=QUICK, adapter={"kind": "full"}))
        for to in ("merged", "adapter", "fp8"):
            export(run, to, tmp_path / to, parity=False)
        export(run, "gguf", tmp_path / "gguf", {"precision": "q6_k", "importance": True}, parity=False)
    finally:
        os.umask(before)
    written = [
        *run.result.iterdir(),
        *full.result.iterdir(),
        *run.checkpoints.rglob("*.safetensors"),
        *(path for to in ("merged", "adapter", "fp8", "gguf") for path in (tmp_path / to).iterdir()),
    ]
    assert {path.suffix for path in written} >= {".safetensors", ".json", ".gguf"}
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in written if path.is_file()} == {
        path.name: oct(mode) for path in written if path.is_file()
    }
