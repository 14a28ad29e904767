"""Scored prompts: the log probabilities equal those of Transformers' forward pass."""

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.inference.test_scheduler import prompts
from tests.serving import Collector
from tunesmith.inference.interface import Request
from tunesmith.inference.scheduler import BatchingEngine
from tunesmith.serve.open_models import open_models

FAMILIES = ("mistral", "gemma2", "llama3")
TEXT = "The capital of France is Paris"


def reference(folder, ids: list[int]) -> list[float]:
    """Returns the log probability of each id after the first, given the ids before it, by Transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logprobs[at, token]) for at, token in enumerate(ids[1:])]


@pytest.fixture(scope="module")
def engines(family):
    made = {name: BatchingEngine(open_models([family(name)])) for name in FAMILIES}
    yield made
    for engine in made.values():
        engine.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_are_those_of_transformers(family, engines, served, name):
    """Also with more tokens than one forward pass takes, while another answer is generated."""
    address, tokenizer = served(engines[name]), engines[name].models[name].tokenizer
    ids = [token for prompt in prompts(12, seed=7) for token in prompt][:300]
    running = Collector(engines[name], Request(name, ids[:20], 100))
    answer = httpx.post(
        f"{address}/v1/completions", json={"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 2}, timeout=60
    ).json()
    running.wait()
    (choice,) = answer["choices"]
    told = choice["logprobs"]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:] == pytest.approx(reference(family(name), ids), abs=1e-4)
    likeliest = [max(top.values()) for top in told["top_logprobs"][1:]]
    assert all(best >= own for best, own in zip(likeliest, told["token_logprobs"][1:]))
    assert told["tokens"] == [tokenizer.decode([i]) for i in ids] and choice["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 300, "completion_tokens": 0, "total_tokens": 300}


def test_an_answer_after_its_scored_prompt(engines, served):
    """Whole and streamed. The last entry is the answer's, even if its only token is the stop token."""
    address, model = served(engines["llama3"]), engines["llama3"].models["llama3"]
    options = {"prompt": [TEXT, "One"], "max_tokens": 1, "echo": True, "logprobs": 1, "n": 2}
    choices = httpx.post(f"{address}/v1/completions", json=options).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3] and choices[0]["text"].startswith(TEXT)
    ends = {"logit_bias": {str(min(model.stop_ids)): 100}}
    lengths = [len(model.tokenizer.encode(text)[0]) + 1 for text in (TEXT, TEXT, "One", "One")]
    for more in ({}, ends):
        found = httpx.post(f"{address}/v1/completions", json=options | more).json()["choices"]
        assert [len(choice["logprobs"]["tokens"]) - (model.tokenizer.adds_bos) for choice in found] == lengths
        assert {choice["finish_reason"] for choice in found} == ({"stop"} if more else {"length"})
    assert choices[0]["logprobs"]["text_offset"][-1] >= len(TEXT)
    with httpx.stream("POST", f"{address}/v1/completions", json=options | {"stream": True}) as lines:
        streamed = "".join(lines.iter_text())
    assert streamed.count('"token_logprobs": [null') == 4 and "[DONE]" in streamed


def test_no_tokens_without_a_prompt_to_score(engines, served):
    address = served(engines["llama3"])
    answer = httpx.post(f"{address}/v1/completions", json={"prompt": TEXT, "max_tokens": 0}).json()["choices"][0]
    assert (answer["text"], answer["logprobs"]) == ("", None)
    answer = httpx.post(f"{address}/v1/completions", json={"prompt": TEXT, "max_tokens": 0, "stream": True})
    assert answer.status_code == 400 and "max_tokens" in answer.json()["error"]["message"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "llama3"])
def test_lm_evaluation_harness(family, engines, served, name):
    """What it scores over HTTP is what it scores with the model loaded by transformers."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    folder = str(family(name))
    pairs = [("What is 1 plus 2?", " It is 3."), ("The sum of", " one and two"), ("A list\n- one", "\n- two\n- three")]
    asked = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    texts = [Instance("loglikelihood_rolling", {}, (f"{a}{b}",), n) for n, (a, b) in enumerate(pairs)]
    whole = [
        Instance("generate_until", {}, (a, {"until": ["\n\n"], "max_gen_toks": 8}), n) for n, (a, _) in enumerate(pairs)
    ]
    there = LocalCompletionsAPI(
        model=name,
        base_url=f"{served(engines[name])}/v1/completions",
        max_length=256,
        tokenizer_backend="huggingface",
        tokenizer=folder,
        add_bos_token=True,
    )
    here = HFLM(
        pretrained=folder,
        device="cpu",
        dtype="float32",
        max_length=256,
        add_bos_token=True,
        attn_implementation="eager",
    )
    for (score, greedy), (expected, expected_greedy) in zip(there.loglikelihood(asked), here.loglikelihood(asked)):
        assert score == pytest.approx(expected, abs=1e-3) and greedy == expected_greedy
    assert there.loglikelihood_rolling(texts) == pytest.approx(here.loglikelihood_rolling(texts), abs=1e-3)
    assert there.generate_until(whole) == here.generate_until(whole)
