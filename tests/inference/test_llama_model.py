"""GGUF files served: the answers are those of llama.cpp on each prompt alone, over the same APIs."""

import json
import random
from functools import partial

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from tests import tiny
from tests.export.test_gguf import MODELS, Weights, made
from tests.serving import Collector
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.export.export import export
from tunesmith.export.gguf.write import write_gguf
from tunesmith.export.parity.samples import CAPITALS, LEADING, TEXTS, written
from tunesmith.inference import scheduler
from tunesmith.inference.gguf_tokenizer import GgufTokenizer
from tunesmith.inference.grammar import from_schema
from tunesmith.inference.interface import Request
from tunesmith.inference.llama_cpp import Context, Model, Part
from tunesmith.inference.llama_model import SCORED, LlamaWeights
from tunesmith.inference.scheduler import BatchingEngine
from tunesmith.run import Run
from tunesmith.serve import open_models as serving
from tunesmith.serve.open_models import open_models

NEW = 12
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"enum": ["x", "yz"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def exported(runs):
    """The GGUF of a run's base, and the run's adapter as GGUF: their paths."""
    run = Run.open(runs[0])
    base = run.folder / "base-gguf" / "model.gguf"
    base.parent.mkdir()
    (model,) = open_models([run.base]).values()
    write_gguf(Weights(model.weights.inner), run.base, base, "f32", tuple(run.plan.stop_ids))
    export(run, "gguf-adapter", parity=False)
    return base, run.folder / "gguf-adapter" / "adapter.gguf"


@pytest.fixture(scope="module")
def gguf_engine(exported):
    """Keys and values in float32, as those of whom it is compared with: in float16 who else asks may decide a tie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "LlamaWeights", partial(LlamaWeights, exact=True))
        engine = BatchingEngine(open_models(exported), batch=16, queue=64)
        yield engine
        engine.close()


def alone(exported, adapter: bool, prompts: list[list[int]]) -> list[list[int]]:
    """Llama.cpp's greedy answers, by a plain loop."""
    model = Model(exported[0])
    context = Context(model, 512, exact=True)
    context.use(model.add_adapter(exported[1]) if adapter else None)
    answers = []
    for ids in prompts:
        context.forget(0)
        answer: list[int] = []
        while len(answer) < NEW and (not answer or answer[-1] not in model.stop_ids):
            new, at = (answer[-1:], len(ids) + len(answer) - 1) if answer else (ids, 0)
            answer.append(int(context.logits([Part(0, at, new, [len(new) - 1])])[0].argmax()))
        answers.append([token for token in answer if token not in model.stop_ids])
    context.close()
    model.close()
    return answers


def test_answers_are_those_of_each_alone_with_and_without_the_adapter(exported, gguf_engine, monkeypatch):
    monkeypatch.setattr(scheduler, "CHUNK", 40)  # prompts are computed in several steps
    names = list(gguf_engine.models)
    assert names == ["first-gguf-adapter", "first-base-gguf"]
    assert gguf_engine.models[names[0]].base == names[1]
    draw = random.Random(0)
    prompts = [[draw.randrange(20, 400) for _ in range(draw.randrange(1, 60))] for _ in range(8)]
    found = [Collector(gguf_engine, Request(name, ids, NEW)) for ids in prompts for name in names]
    texts = [c.wait().text for c in found]
    decode = gguf_engine.models[names[0]].tokenizer.decode
    tuned, base = (alone(exported, adapter, prompts) for adapter in (True, False))
    expected = [decode(ids, skip_special_tokens=True).rstrip("\ufffd") for pair in zip(tuned, base) for ids in pair]
    assert texts == expected and tuned != base
    assert gguf_engine.metrics()["kv_bytes"] == 0


def test_a_prefix_seen_before_changes_nothing(gguf_engine):
    ids = [30 + i % 90 for i in range(80)]
    first = Collector(gguf_engine, Request("first-base-gguf", ids, NEW)).wait()
    again, longer = (Collector(gguf_engine, Request("first-base-gguf", more, NEW)) for more in (ids, [*ids, 30, 31]))
    assert (first.last.cached, again.wait().last.cached, longer.wait().last.cached) == (0, 79, 80)
    assert again.text == first.text
    (pool,) = gguf_engine.pools.values()
    pool.prefixes.shrink(0)
    assert Collector(gguf_engine, Request("first-base-gguf", [*ids, 30, 31], NEW)).wait().text == longer.text


def test_many_requests_leave_no_sequence_behind(gguf_engine):
    (pool,) = gguf_engine.pools.values()
    weights = gguf_engine.models["first-base-gguf"].weights
    pool.prefixes.shrink(0)
    free = len(weights._free)
    found = [Collector(gguf_engine, Request("first-base-gguf", [20 + n % 300] * (1 + n % 40), 3)) for n in range(60)]
    assert all(c.wait().last.finish in ("stop", "length") for c in found)
    pool.prefixes.shrink(0)
    assert len(weights._free) == free


def test_embeddings_and_schemas(gguf_engine, served, runs):
    client = OpenAI(base_url=f"{served(gguf_engine)}/v1", api_key="none", max_retries=0)
    vector = client.embeddings.create(model="first-base-gguf", input="The sum of two").data[0].embedding
    torch_engine = BatchingEngine(open_models([runs[0]]))
    try:
        ids = torch_engine.models["base"].tokenizer.encode("The sum of two")[0]
        expected = torch_engine.embed("base", [ids]).result()[0]
        names = {"first-base-gguf": "base", "first-gguf-adapter": "first"}
        for name, other in names.items():  # a prompt is scored over more tokens than are computed at once
            scores = [
                [token.logprob for token in engine.score(model, ids * 40, 1).result()[1:]]
                for engine, model in ((gguf_engine, name), (torch_engine, other))
            ]
            assert len(scores[0]) > SCORED and scores[0] == pytest.approx(scores[1], abs=2e-3)
    finally:
        torch_engine.close()
    assert vector == pytest.approx(expected, abs=1e-3)
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    for model in gguf_engine.models:
        done = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Say it."}],
            response_format=form,
            max_tokens=200,
            temperature=1,
            seed=3,
        )
        answer = json.loads(done.choices[0].message.content)
        assert set(answer) == {"a", "b"} and answer["b"] in ("x", "yz") and done.choices[0].finish_reason == "stop"


def test_a_gguf_beside_a_run(exported, runs, served):
    engine = BatchingEngine(open_models([runs[1], exported[0]]))
    assert [line.split(", ")[0] for line in engine.description] == [
        "transformers in this process",
        "llama.cpp in this process",
    ]
    address = served(engine)
    listed = httpx.get(f"{address}/v1/models").json()["data"]
    assert [m["id"] for m in listed] == ["second.v2", "small", "first-base-gguf"]
    texts = [
        httpx.post(
            f"{address}/v1/completions",
            timeout=60,
            json={"model": name, "prompt": "What is 2 plus 3?", "max_tokens": NEW},
        ).json()["choices"][0]["text"]
        for name in ("small", "first-base-gguf")
    ]
    assert texts[0] == texts[1]  # the same base, in the two engines


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A family's tokenizer as a folder has it and as its GGUF has it."""
    found = {}

    def of(name: str):
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            model = made(name, folder / "model")
            write_gguf(Weights(model), folder / "model", folder / "model.gguf", "f32")
            found[name] = (Tokenizer.load(folder / "model"), GgufTokenizer(Model(folder / "model.gguf")))
        return found[name]

    return of


@pytest.mark.parametrize("name", [name for name in MODELS if name in tiny.FAMILIES])
def test_the_tokenizer_of_the_file_is_the_folders(pair, name):
    folder, file = pair(name)
    plain = [] if name == "mistral" else [*TEXTS, *CAPITALS, *LEADING]
    for text in plain + written(folder):
        ids = folder.encode(text)[0]
        assert file.encode(text)[0] == ids
        for skip in (False, True):
            texts = [t.decode(ids, skip_special_tokens=skip) for t in (file, folder)]
            if name == "mistral":  # nothing in the file says that the space before the first word is no text
                texts = [text.removeprefix(" ") for text in texts]
            assert texts[0] == texts[1]
    talk = [
        {"role": "user", "content": " What? "},
        {"role": "assistant", "content": "That."},
        {"role": "user", "content": "Again."},
    ]
    assert file.render(talk, add_generation_prompt=True) == folder.render(talk, add_generation_prompt=True)
    assert (file.vocab_size, file.bos_id, file.adds_bos) == (folder.vocab_size, folder.bos_id, folder.adds_bos)
    ends = {folder.added_ids["</s>"]} if name == "phi3" else set()  # to llama.cpp an end by its text, so special
    assert file.special_ids == folder.special_ids | ends and file.added_ids == folder.added_ids


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_grammar_allows_the_same_tokens_in_both(pair, data):
    folder, file = pair("qwen3")
    stops = frozenset({folder.eos_id})
    first, second = (from_schema(tokenizer, stops, SCHEMA)() for tokenizer in (folder, file))
    for _ in range(12):
        allowed = first.allowed()
        assert (allowed == second.allowed()).all()
        token = data.draw(st.sampled_from(allowed.nonzero().flatten().tolist()))
        if token in stops:
            break
        first.accept(token)
        second.accept(token)


def test_what_cannot_be_served_is_said(exported, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing more")
    for paths, said in (
        ([exported[1]], "name the GGUF of its base before it"),
        ([tmp_path / "no.gguf"], "no such file"),
        ([tmp_path / "broken.gguf"], "not a GGUF file"),
        ([exported[0], exported[0]], "the same name"),
    ):
        with pytest.raises(UserError, match=said):
            open_models(paths)
    with pytest.raises(UserError, match="--batch: llama.cpp keeps 256"):
        BatchingEngine(open_models([exported[0]]), batch=200)
