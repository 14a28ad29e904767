"""Models with layers that keep states are served, and answer as with transformers' generate."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.inference.test_generate import alone as ids_alone
from tests.inference.test_generate import ids_of
from tests.inference.test_scheduler import NEW, alone, answers, prompts
from tunesmith.errors import UserError
from tunesmith.inference.generate import generate
from tunesmith.inference.interface import Request
from tunesmith.inference.scheduler import BatchingEngine
from tunesmith.inference.transformers_model import TorchWeights, borrowed
from tunesmith.serve.open_models import open_models

LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
HYBRIDS = {
    "qwen3_5": ("Qwen3_5Text", {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, **LINEAR}),
    "granite_4": (
        "GraniteMoeHybrid",
        {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64, "num_local_experts": 0, **MAMBA},
    ),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    "falcon_h1": ("FalconH1", {**MAMBA, "mamba_d_ssm": 128}),
}


@pytest.fixture(scope="module")
def hybrids(tmp_path_factory):
    """Gives the folder of a small model."""
    made = {}

    def folder(name: str):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("hybrids") / name
            prefix, more = HYBRIDS[name]
            tokenizer = tiny.save_tokenizer("qwen3", made[name])
            config = getattr(transformers, f"{prefix}Config")(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                initializer_range=0.2,
                bos_token_id=None,
                pad_token_id=tokenizer.pad_token_id,
                tie_word_embeddings=True,
                eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
                **more,
            )
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(made[name])
        return made[name]

    return folder


@pytest.mark.parametrize("name", HYBRIDS)
def test_answers_are_those_of_generate(hybrids, name):
    engine = BatchingEngine(open_models([hybrids(name)]))
    try:
        assert "one sequence at a time" in engine.description[0]
        model = AutoModelForCausalLM.from_pretrained(hybrids(name)).eval()
        given = prompts(4)
        for _ in range(2):  # the second time nothing of the first may be seen
            found = answers(engine, [Request(name, ids, NEW) for ids in given])
            assert [c.text for c in found] == [alone(model, engine.models[name], ids) for ids in given]
        assert {c.last.cached for c in found} == {0} and engine.metrics()["kv_bytes"] == 0
        told = engine.score(name, given[1], 1).result(60)
        with torch.no_grad():
            logprobs = model(torch.tensor([given[1]])).logits[0].log_softmax(-1)
        assert [t.logprob for t in told[1:]] == pytest.approx(
            [float(logprobs[at, token]) for at, token in enumerate(given[1][1:])], abs=1e-4
        )
        assert len(engine.embed(name, [given[0]]).result(60)[0]) == 64
    finally:
        engine.close()


def test_without_room_a_sequence_is_computed_anew(hybrids):
    engine = BatchingEngine(open_models([hybrids("qwen3_5")]))
    try:
        given = prompts(4, seed=3)
        expected = [c.text for c in answers(engine, [Request("qwen3_5", ids, 60) for ids in given])]
        (pool,) = engine.pools.values()
        pool.limit_bytes = 80_000
        assert [c.text for c in answers(engine, [Request("qwen3_5", ids, 60) for ids in given])] == expected
        assert engine.metrics()["preempted"] > 0
    finally:
        engine.close()


def test_a_model_that_its_cache_changes_is_refused(hybrids, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(hybrids("lfm2"))
    forward = model.forward

    def wrong(input_ids, **more):
        out = forward(input_ids, **more)
        return out if input_ids.shape[1] > 1 else type(out)(**{**out, "logits": -out.logits})

    monkeypatch.setattr(model, "forward", wrong)
    weights = TorchWeights(model.eval())
    with pytest.raises(UserError, match="lfm2: cannot answer here: a prompt computed token by token differs"):
        weights.reserve(10**8, 512, 4, 64)


@pytest.mark.parametrize("name", HYBRIDS)
def test_sequences_with_states_are_padded_and_answer_as_with_generate(hybrids, name):
    given = prompts(7)
    model = AutoModelForCausalLM.from_pretrained(hybrids(name)).eval()
    stops = frozenset({ids_alone(model, given[0], frozenset({10**6}))[4]})
    expected = [[ids_alone(model, ids, stops)] * 2 for ids in given]
    passes = []
    with borrowed(model) as weights:
        assert not weights.divides
        model.register_forward_hook(lambda *_: passes.append(1))
        found = generate(weights, given, max_new_tokens=NEW, stop_ids=stops, per_prompt=2, together=6)
    assert ids_of(found) == expected
    assert len(passes) <= 3 * NEW  # seven prompts, three at a time with two answers each


def test_a_model_whose_cache_is_wrong_is_computed_whole_for_each_token(hybrids, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(hybrids("lfm2")).eval()
    given = prompts(3)
    expected = [[ids_alone(model, ids, frozenset())] for ids in given]
    forward = model.forward

    def wrong(input_ids, **more):
        out = forward(input_ids, **more)
        return out if input_ids.shape[1] > 1 else type(out)(**{**out, "logits": -out.logits})

    monkeypatch.setattr(model, "forward", wrong)
    with borrowed(model) as weights:
        assert ids_of(generate(weights, given, max_new_tokens=NEW, stop_ids=frozenset())) == expected
