"""Packing is only used where it is shown to keep documents apart; elsewhere rows are padded, and that is said."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM, FalconConfig, FalconForCausalLM, MambaConfig, MambaForCausalLM

from tests import tiny
from tunesmith import train
from tunesmith.model.load import load
from tunesmith.recipe import Model
from tunesmith.training.attention import NAME, documents, keeps_apart

OTHERS = {
    "bloom": (BloomForCausalLM, BloomConfig(vocab_size=800, hidden_size=32, n_layer=2, n_head=4)),
    "falcon": (FalconForCausalLM, FalconConfig(vocab_size=800, hidden_size=32, num_hidden_layers=2,
                                               num_attention_heads=4)),
    "mamba": (MambaForCausalLM, MambaConfig(vocab_size=800, hidden_size=32, num_hidden_layers=2, state_size=4)),
}


@pytest.fixture
def other(tmp_path):
    """Gives the folder of a model that no packing suits."""
    def save(name: str):
        folder = tmp_path / name
        tiny.save_tokenizer("qwen2", folder)
        kind, config = OTHERS[name]
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
        model.save_pretrained(folder)
        return folder
    return save


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_families_keep_documents_apart(family, name):
    model = load(Model(path="m"), family(name), torch.float32, NAME if name != "gpt_oss" else "eager", 0)
    assert keeps_apart(model) == (name != "gpt_oss")  # whose code builds masks without positions


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_padded_and_learn_the_same(recipe, other, name):
    folder = str(other(name))
    runs = [train(recipe(name=f"{packing}", model={"path": folder}, adapter={"kind": "full"},
                         data={"packing": packing}, train={"max_steps": 3})) for packing in (True, False)]
    first, second = ([e["loss"] for e in run.events("step")] for run in runs)
    assert first == second
    warnings = [[e["message"] for e in run.events("warning")] for run in runs]
    assert len(warnings[0]) == 1 and "padded" in warnings[0][0] and warnings[1] == []


def test_a_base_with_a_temperature_but_no_sampling_can_be_saved(recipe, family, tmp_path):
    folder = tmp_path / "loose"
    shutil.copytree(family("llama3"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9}))
    run = train(recipe(model={"path": str(folder)}, train={"max_steps": 1}))
    saved = json.loads((run.result / "generation_config.json").read_text())
    assert saved["temperature"] == 0.6 and saved["do_sample"] and saved["eos_token_id"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card")
@pytest.mark.parametrize("window", [None, 5])
def test_attention_on_a_card_is_that_of_each_document(window):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 24, 64, device="cuda", requires_grad=True) for heads in (4, 2, 2))
    ends = torch.tensor([0, 9, 10, 24], device="cuda", dtype=torch.int32)
    module = SimpleNamespace(num_key_value_groups=2)
    results = []
    for fast in (True, False):  # flash in bfloat16, the loop over documents in float32
        with torch.autocast("cuda", torch.bfloat16, enabled=fast):
            out, _ = documents(module, query, key, value, None, scaling=0.1, sliding_window=window,
                               cu_seq_lens_q=ends, max_length_q=14)
        results.append((out.float(), *torch.autograd.grad(out.float().square().sum(), (query, key, value))))
    for found, expected in zip(*results):
        assert torch.allclose(found, expected, atol=2e-2 * expected.abs().max().item())
