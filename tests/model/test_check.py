"""A base that is incomplete, or not a causal language model, is refused before data is read."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.conftest import sums, write_rows
from tunesmith import Recipe, train
from tunesmith.errors import UserError
from tunesmith.model import load
from tunesmith.model.check import check_base
from tunesmith.planner.suggest import recipe_text
from tunesmith.recipe import Adapter, Model


@pytest.fixture
def copy(family, tmp_path):
    """Gives a copy of a family's model whose weights or config were changed."""

    def make(name: str, change=None, **config):
        folder = shutil.copytree(family(name), tmp_path / f"{name}-changed")
        if change:
            file = folder / "model.safetensors"
            tensors = load_file(file)
            change(tensors)
            save_file(tensors, file, {"format": "pt"})
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | config))
        return folder

    return make


def refused(folder, tmp_path, match: str):
    """By train, before data is read, and by init, which writes no recipe; nothing is left behind."""
    data = write_rows(tmp_path / "rows.jsonl", sums(8))
    values = {
        "model": {"path": str(folder)},
        "data": {"train": str(tmp_path / "no such rows.jsonl")},
        "output": str(tmp_path / "runs"),
        "name": "run",
    }
    with pytest.raises(UserError, match=match) as first:
        train(Recipe.build(values))
    with pytest.raises(UserError, match=match):
        recipe_text(str(folder), str(data), {}, tmp_path / "recipe.yaml")
    assert "\n" not in str(first.value) and not (tmp_path / "runs" / "run").exists()


def without(*names: str):
    return lambda tensors: [tensors.pop(name) for name in names]


def added(name: str):
    return lambda tensors: tensors.update({name: torch.zeros(3, 64)})


def one_expert_less(tensors: dict) -> None:
    tensors.pop("model.layers.1.mlp.experts.3.up_proj.weight")


@pytest.mark.parametrize(
    ("name", "change", "config", "match"),
    [
        ("llama3", without("lm_head.weight"), {}, "missing: lm_head.weight"),
        ("gemma3", without("model.norm.weight"), {}, "missing: model.norm.weight"),
        ("olmo2", None, {"num_hidden_layers": 3}, "missing: model.layers.2.*and 8 more"),
        ("llama3", added("score.weight"), {}, "not part of it: score.weight"),
        ("qwen3", added("visual.patch_embed.weight"), {}, "not part of it: visual.patch_embed.weight"),
        (
            "phi3",
            None,
            {"intermediate_size": 96},
            r"of another shape: model.layers.0.mlp.down_proj.weight \(64, 64\) for \(64, 96\)",
        ),
        ("qwen3_moe", one_expert_less, {}, "weights of Qwen3MoeForCausalLM: parts of those that it stacks"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_missing_leftover_and_misshaped_tensors_are_named(copy, tmp_path, name, change, config, match):
    refused(copy(name, change, **config), tmp_path, match)


@pytest.mark.parametrize("name", [*tiny.FAMILIES])
def test_a_whole_base_passes_tied_or_not(family, name):
    assert load.load(Model(path=str(family(name))), family(name), torch.float32, None, 0)


def test_masks_that_older_models_saved_are_ignored(copy):
    def mask(tensors):
        tensors["model.layers.0.self_attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        tensors["model.layers.0.self_attn.masked_bias"] = torch.tensor(-1e9)

    folder = copy("llama3", mask)
    check_base(Model(path=str(folder)), Adapter(), folder, load.config_of(folder))
    assert load.load(Model(path=str(folder)), folder, torch.float32, None, 0)


def test_every_opener_of_a_damaged_folder_refuses_it(copy):
    folder = copy("llama3", without("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match="missing: model.layers.1.mlp.up_proj.weight"):
        load.load(Model(path=str(folder)), folder, torch.float32, None, 0)


def test_models_for_other_tasks_are_refused(family, tmp_path):
    sizes = {
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    for kind, config in (
        ("Qwen2ForSequenceClassification", transformers.Qwen2Config(**sizes)),
        ("RobertaForMaskedLM", transformers.RobertaConfig(**sizes)),
        (
            "T5ForConditionalGeneration",
            transformers.T5Config(vocab_size=600, d_model=32, d_ff=32, num_layers=1, num_heads=2),
        ),
    ):
        folder = shutil.copytree(family("qwen2"), tmp_path / kind)
        (folder / "model.safetensors").unlink()
        getattr(transformers, kind)(config).save_pretrained(folder)
        refused(folder, tmp_path, f"is a {kind}, not a causal language model|no language model for model_type t5")


def test_an_encoder_that_claims_to_be_a_language_model_is_refused(recipe, family, tmp_path):
    """Its tokens see later ones, so it would learn to copy the answer."""
    folder = shutil.copytree(family("qwen2"), tmp_path / "encoder")
    (folder / "model.safetensors").unlink()
    config = transformers.BertConfig(
        vocab_size=600,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    transformers.BertLMHeadModel(config).save_pretrained(folder)
    with pytest.raises(UserError, match="its tokens see later ones"):
        train(recipe(model={"path": str(folder)}))


@pytest.mark.parametrize("method", ["gptq", "awq", "hqq", "compressed-tensors", "fp8"])
def test_bases_quantised_for_inference_are_refused(copy, tmp_path, method):
    refused(
        copy("qwen2", quantization_config={"quant_method": method, "bits": 4}),
        tmp_path,
        f"quantised for inference .{method}.*full precision",
    )


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_git_lfs_pointers_are_named(copy, tmp_path, file):
    folder = copy("qwen2")
    (folder / file).write_text(POINTER)
    refused(folder, tmp_path, f"{file} is a git-lfs pointer.*git lfs pull")


def test_damaged_files_are_named(copy, tmp_path):
    folder = copy("llama3")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content, match in (
        (whole[:-10], "is cut off: it has .* should have"),
        (whole + b"more", "is damaged"),
        (whole[:100], "is damaged"),
        (b"", "is damaged"),
        (b"<html>not found</html>", "is damaged"),
    ):
        file.write_bytes(content)
        refused(folder, tmp_path, f"model.safetensors {match}.*download it again")
    file.write_bytes(whole)


def test_a_missing_shard_is_named(copy, tmp_path):
    folder = copy("llama3")
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*"))[1].unlink()
    refused(folder, tmp_path, "model.safetensors.index.json names model-00002-of-.*missing")


def test_a_folder_without_a_model_is_refused_with_a_way_out(copy, tmp_path):
    folder = copy("llama3")
    (folder / "model.safetensors").unlink()
    for name, match in (("model-q4.gguf", "name that file to train from it"), ("pytorch_model.bin", "never unpickles")):
        (folder / name).write_bytes(b"\0" * 2000)
        refused(folder, tmp_path, f"{name}.*{match}")
        if name.endswith("gguf"):
            refused(folder / name, tmp_path, "is not a GGUF file")
        (folder / name).unlink()
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    refused(folder, tmp_path, "an adapter of org/base")
