"""vLLM as a parity engine, compared with Transformers. Slow, and only if vLLM is installed."""

import numpy as np
import pytest

from tests import tiny
from tunesmith import train
from tunesmith.export.export import export
from tunesmith.export.parity.in_vllm import Vllm
from tunesmith.export.parity.samples import TEXTS, conversations
from tunesmith.export.parity.subject import Transformers

pytestmark = pytest.mark.slow
SHAPE = {"head_dim": 32, "hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.05}  # as vLLM takes them
THOROUGH = {"epochs": 20, "max_steps": 100, "learning_rate": 1e-3}


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
        assert engine.generate(ids, 12) == own.generate(ids, 12)
    finally:
        engine.close()


@pytest.mark.parametrize("to", ["merged", "fp8", "int4"])
def test_exports_are_compared_in_vllm(real_vllm, recipe, tmp_path, to):
    path = tiny.save("qwen3", tmp_path / "model", **SHAPE)
    run = train(recipe("qwen3", model={"path": str(path)}, train=THOROUGH))
    found = export(run, to, tmp_path / "out")
    there = found["elsewhere"]["vLLM"]
    assert there["passed"] and there["engine"].startswith("vLLM ")
    assert there["tokens"]["conversations"] == found["tokens"]["conversations"] == 9
