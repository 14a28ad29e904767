"""A GGUF as the base of training: the unpacked model is the one that the GGUF was made from, or it is refused."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import slow_but
from tests.export.test_gguf import BY_TABLE, MODELS, Weights, drift, made, rounding, torch_logits
from tests.export.test_gguf import LLAMA3 as SHORT_LLAMA3
from tunesmith import resume, train
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.export.gguf.write import write_gguf
from tunesmith.export.parity.samples import written
from tunesmith.inference import gguf_base
from tunesmith.inference.gguf_base import ARCHITECTURES, base_folder, unpacked, unpacking_note
from tunesmith.recipe import Model
from tunesmith.run import Run

LLAMA3 = SHORT_LLAMA3 | {"original_max_position_embeddings": 8192}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}

# What is changed of the models in MODELS; the base without changes where there is nothing here.
CARRIED = {
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama3-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama3-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3moe", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3", {}),
    "phi4": ("phi3", {}),
    "starcoder2": ("starcoder2", {}),
    "nemotron": ("nemotron", {}),
    "lfm2": ("lfm2", {}),
    "qwen3_5": ("qwen35", {}),
}
REFUSED = [name for name in MODELS if name not in CARRIED or name == "llama3"]
QUICK = ("llama3", "qwen3", "gemma3")


def written_gguf(name: str, folder, kind: str = "f32", **changes):
    model = made(name, folder / "made", **changes)
    file = folder / f"{name}-{kind}.gguf"
    write_gguf(Weights(model), folder / "made", file, kind)
    return model, file


def opened(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return rounding(model.eval())


@pytest.mark.parametrize("name", slow_but(QUICK, CARRIED))
def test_the_unpacked_model_is_the_one_that_was_exported(tmp_path, name):
    model, file = written_gguf(name.split("-")[0], tmp_path, **CARRIED[name][1])
    folder = unpacked(file)
    ids = torch.randint(5, 300, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    expected = torch_logits(model, ids)
    bound = 5e-3 if name in BY_TABLE else 1e-4
    assert np.abs(torch_logits(opened(folder), ids) - expected).max() < bound * expected.std()
    assert drift(opened(folder), file) < bound
    own, new = Tokenizer.load(tmp_path / "made"), Tokenizer.load(folder)
    assert new.chat_template == own.chat_template and new.adds_bos == own.adds_bos
    for text in written(own)[:4]:
        assert new.encode(text)[0] == AutoTokenizer.from_pretrained(tmp_path / "made").encode(
            text, add_special_tokens=False
        )
    eos = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert model.generation_config.eos_token_id in eos


@pytest.mark.parametrize("name", slow_but(["qwen3"], CARRIED))
def test_a_quantised_one_is_llama_cpps(tmp_path, name):
    """llama.cpp rounds activations to 8 bits as well, so the bound is that of two models in 8 bits."""
    model, file = written_gguf(name.split("-")[0], tmp_path, "q8_0", **CARRIED[name][1])
    folder = unpacked(file)
    ids = torch.randint(5, 300, (96,), generator=torch.Generator().manual_seed(0)).tolist()
    log = torch.from_numpy(torch_logits(model, ids)).log_softmax(-1)
    found = torch.from_numpy(torch_logits(opened(folder), ids)).log_softmax(-1)
    assert (log.exp() * (log - found)).sum(-1).mean() < 0.05
    assert "Q8_0" in unpacking_note(folder) and "bfloat16" in unpacking_note(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config


def test_every_architecture_has_a_model_here():
    assert {architecture for architecture, _ in CARRIED.values()} == {*ARCHITECTURES}


@pytest.mark.parametrize(
    "name", slow_but(["mixtral", "llama3"], [n for n in MODELS if n not in CARRIED or n == "llama3"])
)
def test_what_cannot_be_unpacked_is_refused(tmp_path, monkeypatch, name):
    """In one line, and without a file that a later run would find; llama3 here has a scaling of its own."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    _, file = written_gguf(name, tmp_path)
    with pytest.raises(UserError, match="model.path: .*train on the safetensors") as refused:
        unpacked(file)
    assert "\n" not in str(refused.value)
    assert not [path for path in (tmp_path / "cache" / "gguf").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda config: setattr(config, "rms_norm_eps", 1.0), "is not the one that llama.cpp runs"),
        (lambda config: setattr(config, "num_hidden_layers", 1), "transformers unpacks"),
        (lambda config: setattr(config, "intermediate_size", 32), "of another shape"),
    ],
)
def test_a_config_that_is_carried_over_wrongly_is_found(tmp_path, monkeypatch, break_it, match):
    _, file = written_gguf("qwen3", tmp_path)
    correct = gguf_base._correct
    monkeypatch.setattr(gguf_base, "_correct", lambda config, header: (correct(config, header), break_it(config)))
    monkeypatch.setattr(gguf_base, "cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(UserError, match=match):
        unpacked(file)


def header_alone(file, architecture: str, **values):
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in values.items():
        key = key.replace("__", ".")
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint16(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("architecture", "values", "match"),
    [
        ("clip", {}, "holds what sees images"),
        ("llama", {"general__type": "mmproj"}, "holds what sees images"),
        ("llama", {"general__type": "adapter"}, "is an adapter"),
        ("llama", {"split__no": 1, "split__count": 3}, "is part 2 of 3; join the parts"),
        ("bert", {}, "architecture bert cannot be unpacked"),
        ("qwen2", {"qwen2__pooling_type": 1}, "header has qwen2.pooling_type"),
    ],
)
def test_files_that_are_no_base(tmp_path, architecture, values, match):
    with pytest.raises(UserError, match=match):
        unpacked(header_alone(tmp_path / "x.gguf", architecture, **values))


@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off(tmp_path, share):
    _, file = written_gguf("qwen3", tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="is damaged or cut off"):
        unpacked(file)


def test_names_that_lie(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4 something else")
    with pytest.raises(UserError, match="is not a GGUF file"):
        base_folder(Model(path=str(tmp_path / "x.gguf")))
    (tmp_path / "x.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match="git-lfs pointer"):
        base_folder(Model(path=str(tmp_path / "x.gguf")))
    with pytest.raises(UserError, match="no file"):
        base_folder(Model(path=str(tmp_path / "nothing.gguf")))


def test_without_the_package(tmp_path, monkeypatch):
    _, file = written_gguf("qwen3", tmp_path, "f16")
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name=name)))
    with pytest.raises(UserError, match=r"needs the package gguf; pip install 'tunesmith\[gguf\]'"):
        unpacked(file)


def test_a_run_from_a_gguf(tmp_path, recipe):
    """Unpacked once; said once; the adapter names a base that PEFT opens."""
    _, file = written_gguf("qwen3", tmp_path, "q8_0")
    run = train(recipe(model={"path": str(file)}, train={"max_steps": 2}))
    assert [e["message"] for e in run.events("warning") if "GGUF in Q8_0" in e["message"]] == [unpacking_note(run.base)]
    before = (run.base / "model.safetensors").stat().st_mtime_ns
    assert unpacked(file) == run.base and (run.base / "model.safetensors").stat().st_mtime_ns == before
    assert json.loads((run.result / "adapter_config.json").read_text())["base_model_name_or_path"] == str(run.base)
    record = json.loads(Run(run.folder).provenance_file.read_text())["base_model"]["gguf"]
    assert record["file"] == file.name and record["kind"] == "Q8_0"


def test_a_run_whose_base_was_cleared_from_the_cache_resumes(tmp_path, recipe):
    _, file = written_gguf("qwen3", tmp_path)
    run = train(recipe(model={"path": str(file)}, train={"max_steps": 3, "save_every": 1}))
    weights = (run.result / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run.result)
    shutil.rmtree(run.base.parent)
    assert (resume(run.folder).result / "adapter_model.safetensors").read_bytes() == weights
