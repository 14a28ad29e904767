"""vLLM as a parity engine: with a small program in its place, and in slow tests compared with Transformers, only where
vLLM is installed."""

import json
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.inference.standin_vllm import EOS, received
from tests.inference.test_vllm_engine import members, until
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.export.export import export
from tunesmith.export.parity import in_vllm
from tunesmith.export.parity.in_vllm import Vllm
from tunesmith.export.parity.samples import TEXTS, conversations
from tunesmith.export.parity.subject import Transformers

SHAPE = {"head_dim": 32, "hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.05}  # as vLLM takes them
THOROUGH = {"epochs": 20, "max_steps": 100, "learning_rate": 1e-3}


@pytest.fixture
def folder(family, tmp_path):
    """A model folder with two end tokens, of which the stand-in knows one."""
    copy = shutil.copytree(family("llama3"), tmp_path / "model")
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [EOS, EOS + 1]}))
    return copy


@pytest.fixture
def engine(standin_vllm, folder):
    engine = Vllm(folder, 256)
    yield engine
    engine.close()


def test_requests_and_answers(engine, folder, standin_vllm):
    assert (engine.name, engine.stop_ids) == ("vLLM 0.32.0", {EOS})
    forced = received(standin_vllm)
    assert [(path, body["prompt"], body["logit_bias"], body["max_tokens"]) for path, body in forced] == [
        ("/v1/completions", [token], {str(token): 100.0}, 2) for token in (EOS, EOS + 1)
    ]
    arguments = json.loads((standin_vllm / "arguments").read_text())
    assert arguments[:2] == ["serve", str(folder)] and "--enforce-eager" in arguments
    for name, value in (
        ("--served-model-name", "exported"),
        ("--dtype", "float32"),
        ("--max-model-len", "256"),
        ("--max-logprobs", "256"),
    ):
        assert arguments[arguments.index(name) + 1] == value

    def sent(call):
        before = len(received(standin_vllm))
        result = call()
        (request,) = received(standin_vllm)[before:]
        return result, request

    greedy = {"model": "exported", "temperature": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
    assert sent(lambda: engine.generate([[50, 51]], 5)) == (
        [([50, 51, 50, 51, 50], False)],
        ("/v1/completions", greedy | {"prompt": [50, 51], "max_tokens": 5}),
    )
    assert engine.generate([[50, EOS]], 5) == [([50], True)]
    _, (_, body) = sent(lambda: engine.generate([list(range(50, 250))], 100))
    assert body["max_tokens"] == 56  # up to the end of the context

    rows, request = sent(lambda: engine.log_probs([50, 60, 70]))
    assert request == (
        "/v1/completions",
        greedy | {"prompt": [50, 60, 70], "max_tokens": 1, "prompt_logprobs": 256},
    )
    assert rows.dtype == np.float32 and rows[0, [60, 61, 62]].tolist() == [-2.0, -1.0, -1.25]
    assert np.isfinite(rows).sum(1).tolist() == [257, 257] and np.isneginf(rows[0, 50])

    tokenized = {"model": "exported", "add_special_tokens": False}
    assert sent(lambda: engine.encode("Hé")) == (list("Hé".encode()), ("/tokenize", tokenized | {"prompt": "Hé"}))


def test_a_conversation_is_sent_as_clients_send_it(engine, standin_vllm):
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
    messages = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "rain"}]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert engine.conversation(messages, tools) == list(b"rain")
    path, body = received(standin_vllm)[-1]
    assert path == "/tokenize" and body["add_generation_prompt"] and body["tools"] == tools
    assert body["messages"][0]["tool_calls"][0]["function"]["arguments"] == '{"city": "Köln"}'
    assert body["messages"][1] == messages[1]
    assert call["function"]["arguments"] == {"city": "Köln"}
    assert engine.conversation([{"role": "user", "content": "refused"}], None) is None


def test_errors_name_the_reason_and_the_log(engine):
    with pytest.raises(UserError, match="^vLLM refuses the request: the template raised$"):
        engine.encode("refused")
    with pytest.raises(
        UserError, match=r"^vLLM answers with status 500: no memory is left \(its log is .*parity.log\)$"
    ):
        engine.encode("fails")
    with pytest.raises(UserError, match="^vLLM answers with status 404: ValueError: it has no message .*parity.log"):
        engine.conversation([{"role": "user", "content": "fails without a message"}], None)
    with pytest.raises(UserError, match="^vLLM has broken off: RuntimeError: the GPU is gone .*parity.log"):
        engine.encode("dies")


def test_a_failed_start_leaves_nothing_behind(standin_vllm, folder, monkeypatch):
    monkeypatch.setattr(in_vllm, "precision_of", lambda folder: "not-a-dtype")
    with pytest.raises(UserError, match="^vLLM did not start: ValueError: no such dtype .*parity.log"):
        Vllm(folder, 256)
    until(lambda: not members(int((standin_vllm / "pid").read_text())))


@pytest.mark.slow
@pytest.mark.parametrize("base", ["llama3", "gemma3"])
def test_it_answers_as_transformers(real_vllm, tmp_path, base):
    folder = tiny.save(base, tmp_path / "model", **SHAPE)
    own, engine = Transformers.load(folder), Vllm(folder, 256)
    try:
        assert engine.name.startswith("vLLM ") and engine.stop_ids == own.stop_ids
        assert list(map(engine.encode, TEXTS)) == list(map(own.encode, TEXTS))
        for _, messages, tools in conversations(["<|eot_id|>"]):
            assert engine.conversation(messages, tools) == own.conversation(messages, tools)
        ids = list(range(40, 100))
        found, expected = engine.log_probs(ids), own.log_probs(ids)
        assert found.shape == expected.shape and (np.isfinite(found).sum(1) >= 256).all()
        told = np.isfinite(found)
        assert np.abs(found - expected)[told].max() < 1e-4
        assert (found.argmax(1) == expected.argmax(1)).all() and told[np.arange(len(ids) - 1), ids[1:]].all()
        assert engine.generate([ids], 12) == own.generate([ids], 12)
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("to", ["merged", "fp8", "int4"])
def test_exports_are_compared_in_vllm(real_vllm, recipe, tmp_path, to):
    path = tiny.save("qwen3", tmp_path / "model", **SHAPE)
    run = train(recipe("qwen3", model={"path": str(path)}, train=THOROUGH))
    found = export(run, to, tmp_path / "out")
    there = found["elsewhere"]["vLLM"]
    assert there["passed"] and there["engine"].startswith("vLLM ")
    assert there["tokens"]["conversations"] == found["tokens"]["conversations"] == 9
