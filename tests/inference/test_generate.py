"""Answers of the synchronous generator: those of transformers' generate when greedy, and draws that depend on nothing
but their numbers."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.export.test_gguf import Weights
from tests.inference.test_scheduler import prompts
from tunesmith.export.gguf.write import write_gguf
from tunesmith.inference import generate as module
from tunesmith.inference.generate import draw, generate, grouped
from tunesmith.inference.llama_model import LlamaWeights
from tunesmith.inference.transformers_model import TorchWeights, borrowed
from tunesmith.training.batch import collate
from tunesmith.training.loss import find_head, token_losses

NEW = 12


@pytest.fixture(scope="module")
def opened(family):
    """Gives the weights of a family's small model, in float32."""
    return cache(lambda name: TorchWeights(AutoModelForCausalLM.from_pretrained(family(name)).eval()))


def alone(model, ids: list[int], stops: frozenset[int], new: int = NEW) -> list[int]:
    """Transformers' own greedy answer, with the stop token."""
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=new,
        eos_token_id=sorted(stops),
        pad_token_id=0,
    )
    return out[0, len(ids) :].tolist()


def ids_of(answers) -> list[list[list[int]]]:
    return [[answer.ids for answer in one] for one in answers]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_greedy_answers_of_every_family_are_those_of_generate(family, opened, name, monkeypatch):
    monkeypatch.setattr(module, "PREFILL_TOKENS", 40)  # prompts are computed in several passes
    given = prompts(7)
    model = AutoModelForCausalLM.from_pretrained(family(name), attn_implementation="eager").eval()
    free = [alone(model, ids, frozenset({10**6})) for ids in given]
    stops = frozenset({free[0][5], free[3][2]})  # some answers end early, and others start in their place
    expected = [alone(model, ids, stops) for ids in given]
    answers = generate(opened(name), given, max_new_tokens=NEW, stop_ids=stops, together=3)
    assert ids_of(answers) == [[ids] for ids in expected]
    assert [one[0].ended for one in answers] == [ids[-1] in stops for ids in expected]
    assert all(answer.text_ids == answer.ids[: len(answer.ids) - answer.ended] for (answer,) in answers)


@pytest.mark.parametrize("name", ["llama3", "gemma2", "qwen3_moe"])
@settings(max_examples=8)
@given(st.data())
def test_an_answer_does_not_depend_on_what_is_computed_beside_it(opened, name, data):
    """Neither on the order of prompts, nor on how many are computed together or how long they are."""
    weights, given = opened(name), prompts(5, seed=2)
    options = dict(per_prompt=3, temperature=1.0, seed=(7, 1), max_new_tokens=6, stop_ids=frozenset(range(100)))
    expected = ids_of(generate(weights, given, **options))
    order = data.draw(st.permutations(range(5)))[: data.draw(st.integers(1, 5))]
    answers = generate(
        weights,
        [given[place] for place in order],
        numbers=order,
        together=data.draw(st.integers(1, 9)),
        max_tokens=data.draw(st.sampled_from([1, 70, 200, 10**6])),
        **options,
    )
    assert ids_of(answers) == [expected[place] for place in order]


def test_each_seed_prompt_and_answer_has_its_own_draws(opened):
    weights, (ids,) = opened("llama3"), prompts(1)
    options = dict(per_prompt=3, temperature=2.0, max_new_tokens=8, stop_ids=frozenset())
    texts = [
        tuple(answer.ids)
        for seed in ((1,), (2,), (1, 1))
        for one in generate(weights, [ids, ids], seed=seed, **options)
        for answer in one
    ]
    assert len(set(texts)) == len(texts) == 18


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_probabilities_are_those_of_training(family, opened, temperature):
    given = prompts(4, seed=5)
    weights = opened("qwen3")
    answers = generate(
        weights, given, max_new_tokens=NEW, stop_ids=frozenset(range(60)), per_prompt=2, temperature=temperature
    )
    model = AutoModelForCausalLM.from_pretrained(family("qwen3")).eval()
    head = find_head(model, False)
    for ids, one in zip(given, answers):
        for answer in one:
            row = np.array(ids + answer.ids), np.array([False] * len(ids) + [True] * len(answer.ids))
            with torch.no_grad():
                losses = token_losses(model, collate([row], np.array([0]), packed=False), head)
            assert answer.logprobs == pytest.approx(-losses.numpy(), abs=1e-5)


def test_log_probabilities_at_a_temperature_are_those_that_tokens_were_drawn_by(family, opened):
    (ids,) = prompts(1)
    ((answer,),) = generate(opened("llama3"), [ids], max_new_tokens=5, stop_ids=frozenset(), temperature=0.7, seed=(3,))
    model = AutoModelForCausalLM.from_pretrained(family("llama3")).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids + answer.ids])).logits[0, len(ids) - 1 : -1]
    expected = (logits / 0.7).log_softmax(-1)[range(5), answer.ids]
    assert answer.logprobs == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature):
    draws, words = 100_000, 50
    logits = torch.randn(words, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = np.random.Generator(np.random.Philox(key=[1, 2])).random(draws)
    ids, logprobs = draw(logits.expand(draws, words), temperature, uniforms)
    shares = (logits.double() / temperature).softmax(-1).numpy()
    often = shares * draws > 5  # of the others the test says nothing
    counts = np.bincount(ids, minlength=words)
    seen = np.append(counts[often], counts[~often].sum() + 1e-9)
    expected = np.append(shares[often], shares[~often].sum() + 1e-9) * draws
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert (
        torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2.0), torch.tensor(statistic / 2)) > 1e-3
    )  # chi-squared
    assert logprobs[:50] == pytest.approx(np.log(shares)[ids[:50]], abs=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(uniform):
    logits = torch.full((1, 200_000), -float("inf"))
    logits[0, 7], logits[0, 100_000] = 1.0, 0.0
    (token,), (logprob,) = draw(logits, 1.0, np.array([uniform]))
    assert token == (7 if uniform < 0.5 else 100_000) and logprob > -2


def test_each_prompt_is_computed_once(opened, monkeypatch):
    weights, given = opened("llama3"), prompts(5)
    computed, logits = [], weights.logits
    monkeypatch.setattr(weights, "logits", lambda adapter, parts: computed.extend(parts) or logits(adapter, parts))
    generate(weights, given, max_new_tokens=4, stop_ids=frozenset(), per_prompt=6, temperature=1.0, together=4)
    assert sum(len(part.ids) for part in computed if part.at < 60 and len(part.ids) > 1) <= sum(map(len, given))
    assert sum(len(part.ids) for part in computed) == sum(map(len, given)) + 5 * 6 * 3


@given(st.dictionaries(st.integers(0, 99), st.integers(1, 40_000)), st.integers(1, 64))
def test_groups_of_similar_length_where_memory_is_the_limit(lengths, together):
    groups = grouped(lengths, together, 16384)
    assert sorted(place for group in groups for place in group) == sorted(lengths)
    for group in groups:
        longest = lengths[group[0]]
        assert all(lengths[place] <= longest for place in group)
        assert together * longest <= 16384 or all(2 * lengths[place] > longest for place in group)
    assert grouped(lengths, together, 10**9) == ([sorted(lengths, key=lambda p: -lengths[p])] if lengths else [])


def test_a_borrowed_model_is_given_back_as_it_was(family):
    model = AutoModelForCausalLM.from_pretrained(family("gemma2"), attn_implementation="eager").train()
    model.lm_head.eval()
    modes = {name: part.training for name, part in model.named_modules()}

    def fail():
        with borrowed(model) as weights:
            generate(weights, prompts(2), max_new_tokens=3, stop_ids=frozenset())
            assert not any(part.training for part in model.modules())
            generate(weights, [[10**6]], max_new_tokens=3, stop_ids=frozenset())

    with pytest.raises(IndexError):  # there is no such token
        fail()
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert model.config._attn_implementation == "eager"


def test_answers_of_llama_cpp_together_are_those_of_each_alone(family, tmp_path):
    folder, file = family("llama3"), tmp_path / "model.gguf"
    write_gguf(Weights(AutoModelForCausalLM.from_pretrained(folder)), folder, file, "f32", (5,))
    weights = LlamaWeights(file)
    try:
        weights.reserve(10**9, 128, sequences=5, step=512)
        given = prompts(5)
        options = dict(max_new_tokens=NEW, stop_ids=frozenset(weights.model.stop_ids))
        together = generate(weights, given, together=4, **options)
        assert ids_of(together) == [ids_of(generate(weights, [ids], **options))[0] for ids in given]
    finally:
        weights.close()
