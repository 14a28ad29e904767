"""The engine's answers are those of transformers' generate on each prompt alone, in every family, whoever else asks."""

import random
from dataclasses import replace

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests import tiny
from tests.serving import Collector
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.inference import scheduler
from tunesmith.inference.interface import Refused, Request, Sampling
from tunesmith.inference.sampling import Sampler
from tunesmith.inference.scheduler import BatchingEngine
from tunesmith.inference.text_stream import Writer
from tunesmith.serve.open_models import open_models

NEW = 12


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Of lengths to both sides of the small models' windows of 16."""
    draw = random.Random(seed)
    return [[draw.randrange(20, 400) for _ in range(draw.randrange(1, 60))] for _ in range(count)]


def alone(model, served, ids: list[int], new: int = NEW, **more) -> str:
    """The text of transformers' own greedy answer. What tokens are as text is tested in test_decoding.py."""
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=sorted(served.stop_ids),
        pad_token_id=0,
        **more,
    )
    writer = Writer(served.tokenizer)
    return "".join(map(writer.push, out[0, len(ids) :].tolist())) + writer.finish()


def answers(engine, requests: list[Request]) -> list[Collector]:
    return [c.wait() for c in [Collector(engine, request) for request in requests]]


@pytest.fixture
def small_engine(family):
    """Makes engines that are closed in the end."""
    made = []

    def build(name: str, **options) -> BatchingEngine:
        made.append(BatchingEngine(open_models([family(name)]), **options))
        return made[-1]

    yield build
    for engine in made:
        engine.close()


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_answers_of_every_family_are_those_of_generate(family, small_engine, name, monkeypatch):
    monkeypatch.setattr(scheduler, "CHUNK", 40)  # prompts are computed in several steps
    engine = small_engine(name)
    model = AutoModelForCausalLM.from_pretrained(family(name), attn_implementation="eager").eval()
    given = prompts(6)
    found = answers(engine, [Request(name, ids, NEW) for ids in given])
    assert [c.text for c in found] == [alone(model, engine.models[name], ids) for ids in given]
    assert engine.metrics()["kv_bytes"] == 0


def test_each_request_gets_its_own_adapter(engine, runs):
    served = list(engine.models.values())
    assert [s.name for s in served] == ["first", "small", "second.v2", "mistral"]
    assert len({id(s.weights) for s in served}) == 2
    given = prompts(4, seed=1)
    wanted = [(name, ids) for ids in given for name in ("first", "small", "second.v2")]
    found = [c.text for c in answers(engine, [Request(name, ids, NEW) for name, ids in wanted])]
    models = {run.name: AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval() for run in runs}
    models["small"] = AutoModelForCausalLM.from_pretrained(runs[0].parent.parent / "small").eval()
    assert found == [alone(models[name], engine.models[name], ids) for name, ids in wanted]
    assert len(set(found[:3])) == 3


@pytest.mark.parametrize(
    ("adapter", "tokens"),
    [
        ({"kind": "full"}, ()),
        ({"kind": "full"}, ("<a>",)),
        ({"dora": True, "rank": 2}, ("<a>", "<b>")),
        ({"rslora": True, "modules_to_save": ["lm_head"]}, ()),
    ],
    ids=["full", "full-new", "dora-new", "saved"],
)
def test_every_kind_of_result_beside_its_base(recipe, family, adapter, tokens):
    runs = [
        train(recipe(name=name, adapter=adapter, tokens=tokens, train={"max_steps": 3, "learning_rate": rate}))
        for name, rate in (("one", 1e-2), ("two", 3e-2))
    ]
    engine = BatchingEngine(open_models([run.folder for run in runs]))
    try:
        assert {name: s.kind for name, s in engine.models.items()} == {"one": "tuned", "base": "base", "two": "tuned"}
        given = prompts(3, seed=4)
        wanted = [(name, ids) for ids in given for name in engine.models]
        found = [c.text for c in answers(engine, [Request(name, ids, NEW) for name, ids in wanted])]
        opener = AutoModelForCausalLM if adapter.get("kind") == "full" else AutoPeftModelForCausalLM
        models = {run.name: opener.from_pretrained(run.result).eval() for run in runs}
        models["base"] = AutoModelForCausalLM.from_pretrained(family("llama3")).eval()
        assert found == [alone(models[name], engine.models[name], ids) for name, ids in wanted]
    finally:
        engine.close()


def test_a_prefix_seen_before_changes_nothing(small_engine):
    engine = small_engine("llama3")
    (ids,) = prompts(1, seed=2)
    ids = (ids * 9)[:80]
    (first,) = answers(engine, [Request("llama3", ids, NEW)])
    again, longer = answers(engine, [Request("llama3", ids, NEW), Request("llama3", [*ids, 30, 31], NEW)])
    assert (first.last.cached, again.last.cached, longer.last.cached) == (0, 79, 80)
    assert again.text == first.text
    (pool,) = engine.pools.values()
    pool.prefixes.shrink(0)
    assert answers(engine, [Request("llama3", [*ids, 30, 31], NEW)])[0].text == longer.text


def test_without_room_the_youngest_waits_and_is_computed_anew(small_engine):
    engine = small_engine("llama3")
    given = prompts(8, seed=3)
    expected = [c.text for c in answers(engine, [Request("llama3", ids, 80) for ids in given])]
    (pool,) = engine.pools.values()
    pool.prefixes.shrink(0)
    pool.prefixes.limit_bytes = 0
    pool.limit_bytes, pool.limit_tokens = 200_000, 400
    found = [c.text for c in answers(engine, [Request("llama3", ids, 80) for ids in given])]
    assert found == expected and engine.metrics()["preempted"] > 0


def test_a_cancelled_request_stops_and_frees_its_memory(small_engine):
    engine = small_engine("llama3", batch=1, queue=1)
    running = Collector(engine, Request("llama3", [50, 51], 400))
    while not engine.metrics()["running"]:
        pass
    waiting = Collector(engine, Request("llama3", [50, 52], 400))
    with pytest.raises(Refused, match="2 requests are here already") as refused:
        Collector(engine, Request("llama3", [50, 53], 400))
    assert refused.value.status == 429
    waiting.ticket.cancel()
    running.ticket.cancel()
    assert {c.wait().last.finish for c in (running, waiting)} == {"cancelled"}
    assert running.last.generated < 400 and engine.metrics()["kv_bytes"] == 0


def test_closing_ends_what_runs(family):
    engine = BatchingEngine(open_models([family("llama3")]))
    running = Collector(engine, Request("llama3", [50, 51], 400))
    engine.close()
    assert running.wait().last.finish == "cancelled"
    with pytest.raises(Refused, match="stopping"):
        Collector(engine, Request("llama3", [50], 1))


def test_a_failing_request_fails_alone(small_engine):
    class Broken:
        def allowed(self):
            raise ValueError("out of grammar")

    engine = small_engine("llama3")
    bad, good = answers(engine, [Request("llama3", [50, 51], 9, constraint=Broken), Request("llama3", [50, 51], 9)])
    assert (bad.last.finish, bad.last.error) == ("error", "out of grammar") and good.last.finish in ("length", "stop")


def test_the_same_seed_draws_the_same(small_engine):
    engine = small_engine("llama3")
    sampling = Sampling(temperature=1.0, seed=5)
    texts = [
        c.text
        for c in answers(engine, [Request("llama3", [60, 61], 20, replace(sampling, seed=seed)) for seed in (5, 5, 6)])
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_k=7),
        Sampling(temperature=1.0, top_p=0.6),
        Sampling(temperature=0.9, top_k=30, top_p=0.8, min_p=0.05),
        Sampling(temperature=1.0, min_p=0.3),
    ],
)
def test_what_may_be_drawn_is_what_transformers_would(sampling):
    logits = torch.randn(300, generator=torch.Generator().manual_seed(1)) * 3
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    warpers += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    expected = warpers(None, logits[None].clone())[0].softmax(-1)
    order, shares = Sampler(sampling, []).shares(logits)
    found = torch.zeros(300).scatter(0, order, shares / shares.sum())
    assert torch.allclose(found, expected, atol=1e-6)


def test_penalties():
    logits, seen = torch.randn(50, generator=torch.Generator().manual_seed(1)), [3, 3, 7]
    sampler = Sampler(Sampling(repetition_penalty=1.4), seen)
    found = logits.clone()
    sampler(found)
    assert torch.allclose(found, RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([seen]), logits[None])[0])
    sampler = Sampler(Sampling(frequency_penalty=0.5, presence_penalty=0.25, logit_bias={9: 100.0}), seen)
    assert [sampler(logits.clone()) for _ in range(2)] == [9, 9]
    found = logits.clone()
    sampler(found)
    assert float(found[9]) == pytest.approx(float(logits[9]) + 100 - 2 * 0.5 - 0.25)


def test_what_cannot_be_served_is_said(family, tmp_path, runs):
    with pytest.raises(UserError, match="config.json"):
        open_models([tmp_path])
    with pytest.raises(UserError, match="the same name"):
        open_models([runs[0], runs[0]])
