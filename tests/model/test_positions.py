"""Rows longer than a model's positions: too long if the model fails on them, else a warning."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    BloomConfig,
    CodeGenConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    MptConfig,
    OPTConfig,
    XGLMConfig,
)

from tests import tiny
from tests.conftest import write_rows
from tunesmith.errors import UserError
from tunesmith.evaluate.generate import answers
from tunesmith.finetune import job
from tunesmith.model.positions import limit, limit_of, trained_positions
from tunesmith.run import Run

POSITIONS, VOCABULARY = 48, 600
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TABLES = {
    "gpt2": GPT2Config(**SIZES),
    "opt": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32),
    "gpt_neo": GPTNeoConfig(**SIZES, attention_types=[[["global"], 2]]),
    "biogpt": BioGptConfig(**SIZES),
    "gptj": GPTJConfig(**SIZES, rotary_dim=4),
    "codegen": CodeGenConfig(**SIZES, rotary_dim=4),
}
WITHOUT = {
    "llama": LlamaConfig(**SIZES, intermediate_size=64),
    "bloom": BloomConfig(**SIZES),
    "xglm": XGLMConfig(
        **{k: v for k, v in SIZES.items() if k != "hidden_size"},
        d_model=32,
        ffn_dim=64,
        num_layers=2,
        attention_heads=4,
    ),
}


@pytest.mark.parametrize("name", [*TABLES, *WITHOUT])
def test_the_limit_is_where_the_model_fails(name):
    config = (TABLES | WITHOUT)[name]
    model = AutoModelForCausalLM.from_config(config).eval()
    longest = limit_of(config)
    assert longest == limit(model) == (POSITIONS if name in TABLES else None)
    with torch.inference_mode():
        model(torch.ones(1, longest or POSITIONS, dtype=torch.long))
        if longest:
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.ones(1, longest + 1, dtype=torch.long))
        else:
            model(torch.ones(1, 2 * POSITIONS, dtype=torch.long))


def saved(config, folder):
    """A model folder with a tokenizer and a template."""
    tokenizer = tiny.save_tokenizer("llama3", folder)
    config.update(
        {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.convert_tokens_to_ids("<|end_of_text|>"),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def counting(tmp_path):
    """Returns rows of about 25 tokens, and much longer ones."""
    return str(
        write_rows(
            tmp_path / "counting.jsonl",
            [
                {"question": f"{i}?", "answer": " ".join(map(str, range(i, i + (3 if i % 2 else 60))))}
                for i in range(40)
            ],
        )
    )


def of(recipe, model: str, rows: str, **data):
    return recipe(
        model={"path": model},
        data={"train": rows, "eval_share": 0.2, "sequence_length": 256} | data,
        adapter={"targets": "all-linear"},
        train={"max_steps": 2, "batch": 4},
        evaluate={"samples": 2, "max_new_tokens": 40},
    )


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_rows_beyond_a_table_of_positions_are_too_long(recipe, tmp_path, counting, name):
    model = saved(type(TABLES[name]).from_dict(TABLES[name].to_dict()), tmp_path / name)
    run = job.train(of(recipe, model, counting))
    assert run.plan.sequence_length == POSITIONS and run.plan.ledger["dropped"] == {"too_long": 20}
    [warning] = [e["message"] for e in run.events("warning") if "positions" in e["message"]]
    assert warning.startswith(f"data.sequence_length: 256, but the model has only {POSITIONS} positions")
    assert json.loads(run.eval_file.read_text())["samples"]  # whose answers end where the positions do


def test_truncated_rows_are_answered_up_to_the_last_position(recipe, tmp_path, counting):
    model = saved(GPT2Config(**SIZES), tmp_path / "gpt2")
    run = job.train(of(recipe, model, counting, too_long="truncate"))
    assert run.plan.ledger["shortened"] == {"too_long": 20} and run.result.exists()


def test_answers_have_the_room_that_positions_leave():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TABLES["gpt2"]).eval()
    prompts = [[5] * length for length in (10, POSITIONS - 3, POSITIONS, 12)]
    found = [answer.ids for answer in answers(model, prompts, 20, [VOCABULARY - 1])]
    assert [len(answer) for answer in found] == [20, 3, 0, 20]
    assert found[0] == answers(model, prompts[:1], 20, [VOCABULARY - 1])[0].ids


def test_rotary_positions_continue_with_a_warning(recipe, tmp_path, family, counting):
    tiny.save("llama3", tmp_path / "short", max_position_embeddings=POSITIONS)
    run = job.train(of(recipe, str(tmp_path / "short"), counting))
    assert run.plan.sequence_length == 256 and not run.plan.ledger["dropped"]
    [warning] = [e["message"] for e in run.events("warning") if "positions" in e["message"]]
    assert f"was trained with {POSITIONS} positions" in warning


def test_a_model_that_fails_beyond_what_it_says_is_refused_before_training(recipe, tmp_path, counting):
    """MPT adds a bias of length max_seq_len, its own name for the setting."""
    config = MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=POSITIONS, vocab_size=VOCABULARY)
    assert trained_positions(config) is None
    asked = of(recipe, saved(config, tmp_path / "mpt"), counting)
    with pytest.raises(UserError, match=r"data.sequence_length: the model cannot take the \d+ tokens of .*counting"):
        job.train(asked)
    assert not Run(asked.output / "run").exists


def test_unusual_values(recipe, tmp_path):
    with pytest.raises(UserError, match="adapter.rank: 65 is above the width of the model's layers, 64"):
        job.train(recipe(adapter={"rank": 65}))
    assert not (tmp_path / "runs/run").exists()
    run = job.train(recipe(train={"max_steps": 1, "learning_rate": 0.5}, data={"sequence_length": 5_000}))
    rate, length = [event["message"] for event in run.events("warning")]
    assert rate.startswith("train.learning_rate: 0.5 is 2,500 times the usual 0.0002")
    assert length == "data.sequence_length: 5,000 is beyond the model's 512 positions, though no row is"


def test_steps_that_the_epochs_do_not_reach(recipe):
    run = job.train(recipe(train={"max_steps": 50, "epochs": 0.25}))
    [warning] = run.events("warning")
    assert warning["message"].startswith("train.max_steps: 50 will not be reached, as train.epochs: 0.25 ends after 3")
