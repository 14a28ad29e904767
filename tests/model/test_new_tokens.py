"""With an adapter, the rows of new tokens are learned in the embedding and in an output head of its own, and no more
than these rows is saved."""

import shutil

import pytest
import torch
import transformers
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from tests.conftest import write_rows
from tests.model.test_result import QUICK, logits, trained_logits
from tests.training.test_reference import losses
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.export.export import export

TAGS = [f"<tag{n}>" for n in range(3)]
LEARN = {"epochs": 40, "max_steps": 40, "batch": 6, "learning_rate": 2e-2}


@pytest.fixture
def tags(tmp_path):
    """Returns rows whose answers consist only of new tokens."""
    return str(
        write_rows(
            tmp_path / "tags.jsonl",
            [
                {"question": f"{verb} {place}", "answer": tag}
                for verb in ("Mark", "Label")
                for place, tag in zip(("Bonn", "Oslo", "Rome"), TAGS)
            ],
        )
    )


def saved(run) -> dict[str, list[int]]:
    with safe_open(run.result / "adapter_model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  no mapping


@pytest.mark.parametrize(
    ("base", "matrices", "dtype"), [("llama3", 2, "float32"), ("mistral", 2, "bfloat16"), ("qwen2", 1, "float32")]
)  # the last is tied
def test_new_tokens_are_learned(recipe, tags, base, matrices, dtype):
    run = train(recipe(base, model={"dtype": dtype}, data={"train": tags}, train=LEARN, tokens=TAGS))
    assert losses(run)[0] > 3 and losses(run)[-1] < 0.3
    rows = [shape for name, shape in saved(run).items() if "lora" not in name]
    assert rows == [[len(TAGS), 64]] * matrices


@pytest.mark.parametrize("base", ["mistral", "qwen3"])  # untied and tied
def test_the_result_opens_plainly_and_merges(recipe, tmp_path, tags, base):
    run = train(recipe(base, data={"train": tags}, train=QUICK, tokens=TAGS))
    ids = torch.tensor([[5, 6, *run_ids(run), 7]])
    expected = trained_logits(run, ids)
    assert torch.allclose(logits(AutoPeftModelForCausalLM.from_pretrained(run.result), ids), expected, atol=1e-5)
    export(run, "merged", tmp_path / "merged", parity=False)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged, ids), expected, atol=1e-4)
    assert merged.get_input_embeddings().num_embeddings == max(run_ids(run)) + 1


def run_ids(run) -> list[int]:
    return transformers.AutoTokenizer.from_pretrained(run.result).convert_tokens_to_ids(TAGS)


def test_a_head_with_a_bias_trains_whole(recipe, family, tmp_path, tags):
    """PEFT would drop its bias."""
    folder = shutil.copytree(family("llama3"), tmp_path / "phi")
    (folder / "model.safetensors").unlink()
    config = transformers.AutoConfig.from_pretrained(folder)
    phi = transformers.PhiForCausalLM(
        transformers.PhiConfig(
            vocab_size=config.vocab_size,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.2,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
        )
    )
    torch.nn.init.normal_(phi.lm_head.bias)
    phi.save_pretrained(folder)
    run = train(recipe(model={"path": str(folder)}, data={"train": tags}, train=LEARN, tokens=TAGS))
    assert losses(run)[-1] < 0.3
    assert [len(TAGS), 64] in saved(run).values() and any("lm_head.bias" in name for name in saved(run))
    assert export(run, "merged", tmp_path / "merged")["passed"]


@pytest.mark.parametrize(("base", "part"), [("llama3", "lm_head"), ("olmo2", "embed_tokens"), ("olmo2", "norm")])
def test_whole_modules_train_in_bfloat16(recipe, base, part):
    low, high = (
        train(recipe(base, dtype, model={"dtype": dtype}, adapter={"modules_to_save": [part]}, train={"max_steps": 3}))
        for dtype in ("bfloat16", "float32")
    )
    assert losses(low) == pytest.approx(losses(high), rel=0.02)
    opened = AutoPeftModelForCausalLM.from_pretrained(low.result)
    assert any(part in name and "modules_to_save" in name for name, _ in opened.named_parameters())


@pytest.mark.parametrize(
    ("adapter", "match"),
    [
        (
            {"targets": ["q_proj", "v_prj"]},
            "adapter.targets: this model has no module named v_prj; did you mean v_proj",
        ),
        ({"targets": ["q_proj", "attention.query"]}, "named attention.query; its linear modules: down_proj"),
        ({"modules_to_save": ["lm_haed"]}, "adapter.modules_to_save: .* named lm_haed; did you mean lm_head"),
    ],
)
@pytest.mark.parametrize("base", ["gemma2", "qwen3_moe"])
def test_names_that_match_nothing_are_refused_before_data_is_read(recipe, base, adapter, match):
    if base == "qwen3_moe":
        match = match.replace("down_proj", "k_proj")
    with pytest.raises(UserError, match=match):
        train(recipe(base, adapter=adapter, data={"train": "no such file.jsonl"}))


def test_tokens_without_an_embedding_must_be_named(recipe, family, tmp_path):
    folder = shutil.copytree(family("llama3"), tmp_path / "extended")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="model.new_tokens: the tokenizer has 2 further tokens"):
        train(recipe(model={"path": str(folder)}, tokens=["<three>"]))
