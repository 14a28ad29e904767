"""vLLM as the engine: with a small program in its place, and in slow tests with vLLM itself where it is installed."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx
import jsonschema
import pytest
from openai import APIStatusError, OpenAI

from tests import tiny
from tests.conftest import slow_but
from tests.inference.standin_vllm import DIES, FAILS, GOES_ON, received
from tests.inference.test_scheduler import prompts
from tests.serving import Collector, two_runs
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.export.export import export
from tunesmith.export.parity.subject import Transformers
from tunesmith.inference import grammar as constrain
from tunesmith.inference import vllm_process
from tunesmith.inference.interface import Refused, Request, Sampling
from tunesmith.inference.scheduler import BatchingEngine
from tunesmith.inference.text_stream import Writer
from tunesmith.machine import Gpu
from tunesmith.run import Run
from tunesmith.serve import open_vllm as opening
from tunesmith.serve.open_models import open_models
from tunesmith.serve.open_vllm import open_vllm

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
PYTHON = sys.executable
LONG = 8000


@pytest.fixture
def opened():
    """Opens engines that are closed in the end."""
    made = []

    def open_(*paths, batch: int = 8, queue: int = 8, say=lambda line: None):
        made.append(open_vllm(paths, None, batch, queue, say))
        return made[-1]

    yield open_
    for engine in made:
        engine.close()


def ask(engine, ids=(50, 51, 52), new: int = 6, seed: int | None = None, model: str = "first", **more) -> Collector:
    return Collector(engine, Request(model, list(ids), new, Sampling(seed=seed), **more))


def until(condition) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def members(leader: int) -> list[int]:
    """The processes of a group that have not ended."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, group, state in rows if int(group) == leader and state[0] != "Z"]


def refuses(engine, model: str = "first") -> bool:
    """Whether a request is refused because vLLM has ended."""
    try:
        ask(engine, model=model)
    except Refused as refused:
        return "vLLM has ended" in refused.message
    return False


def leader_of(engine) -> int:
    return int(re.search(r"\((\d+)\)", engine.description[0])[1])


def test_answers_are_made_of_the_ids_that_come_back(standin_vllm, opened, runs):
    engine = opened(*runs)
    decode = engine.models["first"].tokenizer.decode
    assert list(engine.models) == ["first", "second.v2", "base"]
    answer = ask(engine).wait()
    assert (answer.text, answer.last.finish) == (decode([50, 51, 52, 50, 51, 52]), "length")
    assert (answer.last.generated, answer.last.cached) == (6, 7)
    end = min(engine.models["first"].stop_ids)
    answer = ask(engine, (50, 51, end), logprobs=1, stream=False).wait()
    assert (answer.text, answer.last.finish, answer.last.generated) == (decode([50, 51]), "stop", 3)
    assert [(t.text, t.logprob, t.top) for t in answer.last.tokens] == [
        (decode([i]), -2.0, [(decode([i + 1]), -1.0)]) for i in (50, 51)
    ]
    answer = ask(engine, (50, 51, 52, 53), stop=(decode([52]),)).wait()
    assert (answer.text, answer.last.finish, answer.last.stop_text) == (decode([50, 51]), "stop", decode([52]))
    failed = ask(engine, seed=FAILS).wait().last
    assert (failed.finish, failed.error) == ("error", "no memory is left")
    assert ask(engine, new=2000).wait().last.error.startswith("max_tokens cannot be greater")
    metrics = engine.metrics()
    assert (metrics["finished_length"], metrics["finished_stop"], metrics["finished_error"]) == (1, 2, 2)
    assert (metrics["running"], metrics["waiting"], metrics["cached_tokens"]) == (0, 0, 14)


def test_a_prompt_is_scored(standin_vllm, opened, runs):
    engine = opened(*runs)
    decode = engine.models["first"].tokenizer.decode
    first, *told = engine.score("first", [50, 60, 70], 2).result(60)
    assert (first.text, first.logprob, first.top) == (decode([50]), None, [])
    assert [(t.text, t.logprob, t.top) for t in told] == [
        (decode([i]), -2.0, [(decode([i + 1]), -1.0), (decode([i + 2]), -1.25)]) for i in (60, 70)
    ]
    path, body = received(standin_vllm)[0]
    assert path == "/v1/completions" and body["model"] == "first" and body["temperature"] == 0.0
    assert (body["prompt"], body["prompt_logprobs"], body["max_tokens"]) == ([50, 60, 70], 2, 1)
    with pytest.raises(Refused, match="^vLLM has broken off: RuntimeError: the GPU is gone$") as refused:
        engine.score("first", [DIES, 60], 1).result(60)
    assert (refused.value.status, refused.value.code) == (502, "engine_failed")
    until(lambda: refuses(engine))
    with pytest.raises(Refused, match="^vLLM has ended: RuntimeError: the GPU is gone$"):
        engine.score("first", [50, 60], 1)


def test_what_vllm_is_told(standin_vllm, opened, runs):
    said = []
    engine = opened(*runs, batch=5, say=said.append)
    served = engine.models["base"]
    sampling = Sampling(0.7, 5, 0.8, 0.1, 1.2, 0.3, 0.4, {9: 2.5}, 11)
    Collector(
        engine,
        Request(
            "base", [60, 61], 2, sampling, constraint=constrain.from_schema(served.tokenizer, served.stop_ids, SCHEMA)
        ),
    ).wait()
    path, body = received(standin_vllm)[0]
    assert path == "/v1/completions" and body["stream"] and body["stream_options"] == {"include_usage": True}
    assert body["return_token_ids"] and body["return_tokens_as_token_ids"] and body["ignore_eos"]
    assert body["logprobs"] is None
    assert body["model"] == "base" and body["prompt"] == [60, 61] and body["max_tokens"] == 2
    assert {
        name: body[name]
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "logit_bias",
            "seed",
        )
    } == {
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.8,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.4,
        "logit_bias": {"9": 2.5},
        "seed": 11,
    }
    assert set(body["stop_token_ids"]) == served.stop_ids | {served.tokenizer.eos_id}
    assert json.loads(body["structured_outputs"]["grammar"].removeprefix("start: %json ")).items() >= SCHEMA.items()
    arguments = json.loads((standin_vllm / "arguments").read_text())
    assert arguments[:2] == ["serve", str(Run(runs[0]).base.resolve())]
    for name, value in (
        ("--dtype", "float32"),
        ("--max-lora-rank", "8"),
        ("--max-loras", "2"),
        ("--max-num-seqs", "5"),
        ("--max-model-len", "512"),
        ("--served-model-name", "base"),
        ("--host", "127.0.0.1"),
    ):
        assert arguments[arguments.index(name) + 1] == value
    at = arguments.index("--lora-modules")
    assert [json.loads(module) for module in arguments[at + 1 : at + 3]] == [
        {"name": run.name, "path": str(run / "adapter")} for run in runs
    ]


def test_one_who_leaves_stops_its_computing_and_the_queue_has_an_end(standin_vllm, opened, runs):
    engine = opened(*runs, batch=1, queue=1)
    asked = [ask(engine, new=900, seed=GOES_ON), ask(engine, new=900, seed=GOES_ON)]
    assert (engine.metrics()["running"], engine.metrics()["waiting"]) == (1, 1)
    with pytest.raises(Refused, match="2 requests are here already") as refused:
        ask(engine)
    assert refused.value.status == 429
    until(lambda: all(one.text for one in asked))
    for one in asked:
        one.ticket.cancel()
    assert {one.wait().last.finish for one in asked} == {"cancelled"}
    until((standin_vllm / "left").exists)
    left = ask(engine, new=900, seed=GOES_ON)
    leader = leader_of(engine)
    assert len(members(leader)) == 3  # with what guards them
    engine.close()
    assert left.wait().last.finish == "cancelled"
    until(lambda: not members(leader))
    with pytest.raises(Refused, match="stopping"):
        ask(engine)


def test_when_vllm_dies_all_hear_of_it(standin_vllm, opened, runs, served):
    engine = opened(*runs)
    waiting = ask(engine, new=900, seed=GOES_ON)
    dying = ask(engine, seed=DIES)
    assert {one.wait().last.finish for one in (waiting, dying)} == {"error"}
    until(lambda: not members(leader_of(engine)))
    until(lambda: refuses(engine))
    client = OpenAI(base_url=f"{served(engine)}/v1", api_key="none", max_retries=0)
    with pytest.raises(APIStatusError, match="vLLM has ended: RuntimeError: the GPU is gone") as error:
        client.completions.create(model="first", prompt="Hello")
    assert error.value.status_code == 503 and "Retry-After" not in error.value.response.headers
    with pytest.raises(APIStatusError, match="no embeddings") as error:
        client.embeddings.create(model="first", input="Hello")
    assert error.value.status_code == 400


@pytest.mark.parametrize("number", slow_but([signal.SIGINT], [signal.SIGINT, signal.SIGKILL]))
def test_nothing_stays_behind(standin_vllm, runs, number):
    command = [PYTHON, "-m", "tunesmith", "serve", "--engine", "vllm", str(runs[0]), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = ""
    while "serving http" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    assert "engine  vLLM 0.32.0 in a process of its own" in said and "model   base: base, context 512" in said
    leader = int((standin_vllm / "pid").read_text())
    assert len(members(leader)) == 3
    process.send_signal(number)
    assert process.wait(60) == (0 if number == signal.SIGINT else -number)
    until(lambda: not members(leader))


def test_what_it_will_not_do_is_said(standin_vllm, runs, mistral, family, recipe, tmp_path, monkeypatch):
    def refuses(message, *paths):
        with pytest.raises(UserError, match=message):
            open_vllm(paths, None, 8, 8, print)

    refuses("one base model in one precision.*mistral in float32, small in float32", *runs, mistral)
    refuses("GGUF files", runs[0], "some.gguf")
    refuses("the same name", runs[0], runs[0])
    made = train(recipe(name="more", tokens=("<a>",), train={"max_steps": 1}, adapter={"dora": True}))
    refuses("an adapter with DoRA and new tokens; run `tunesmith export .*more --to merged`", made.folder)
    monkeypatch.setattr(opening, "precision_of", lambda folder: "not-a-dtype")
    refuses("did not start: ValueError: no such dtype", mistral)
    until(lambda: not members(int((standin_vllm / "pid").read_text())))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    refuses("uv tool install vllm", runs[0])


def test_full_fine_tunes_and_folders(recipe, family):
    run = train(recipe(name="full", train={"max_steps": 1}, adapter={"kind": "full"}))
    served, arguments = opening.described([run.folder], None)
    assert [(s.name, s.kind, s.weights) for s in served.values()] == [("full", "tuned", None)]
    assert arguments[0] == str(run.result) and "--enable-lora" not in arguments
    served, arguments = opening.described([family("llama3")], 100)
    assert [(s.name, s.kind, s.context) for s in served.values()] == [("llama3", "base", 100)]
    own = open_models([family("llama3")])["llama3"]
    assert (own.stop_ids, own.defaults) == (served["llama3"].stop_ids, served["llama3"].defaults)


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory):
    """With heads as large as vLLM needs on a CPU, and a context in which an answer takes long."""
    return two_runs(tmp_path_factory.mktemp("long"), head_dim=32, max_position_embeddings=LONG + 200)


@pytest.mark.slow
def test_vllm_answers_as_the_engine_in_this_process(real_vllm, opened, long_runs):
    engine, own = opened(*long_runs), BatchingEngine(open_models(long_runs))
    try:
        served = engine.models["base"]

        def both(request: Request) -> tuple[Collector, Collector]:
            return tuple(one.wait() for one in (Collector(engine, request), Collector(own, request)))

        def told(one: Collector) -> tuple:
            return one.text, one.last.finish, one.last.generated, one.last.stop_text

        for ids in prompts(6, seed=1):
            for name in ("first", "second.v2", "base"):
                for found, expected in (both(Request(name, ids, 12)), both(Request(name, ids, 12, stop=(" the", "t")))):
                    assert told(found) == told(expected)
        likely = Request("first", [50, 51, 52], 5, logprobs=3, stream=False)
        found, expected = (one.last.tokens for one in both(likely))
        assert [t.text for t in found] == [t.text for t in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [text for text, _ in one.top] == [text for text, _ in other.top]
        penalties = Sampling(repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.3, logit_bias={9: 2.0})
        found, expected = both(Request("base", [50, 51], 20, penalties))
        assert told(found) == told(expected)
        drawn = Request("base", [50, 51], 20, Sampling(temperature=1.0, top_k=50, top_p=0.9, min_p=0.01, seed=5))
        assert Collector(engine, drawn).wait().text == Collector(engine, drawn).wait().text

        # Where the grammar leaves no room for spaces, greedy answers are the same too.
        lark = 'start: "{" ("yes" | "no") "}"'
        grammar = constrain.from_lark(served.tokenizer, served.stop_ids, lark)
        found, expected = both(Request("base", [50, 51], 50, constraint=grammar))
        assert told(found) == told(expected) and found.last.finish == "stop"
        schema = constrain.from_schema(served.tokenizer, served.stop_ids, SCHEMA)
        bias = {served.tokenizer.encode(space)[0][0]: -100.0 for space in ("\n", "\t", " ")}
        answer = Collector(
            engine, Request("base", [50, 51], 400, Sampling(1.0, seed=1, logit_bias=bias), constraint=schema)
        ).wait()
        assert answer.last.finish == "stop"
        jsonschema.validate(json.loads(answer.text), SCHEMA)

        def computed() -> float:
            said = httpx.get(f"http://127.0.0.1:{engine.child.port}/metrics").text
            return float(re.search(r"^vllm:generation_tokens_total.* (\S+)$", said, re.M)[1])

        never = Sampling(1.0, seed=1, logit_bias=dict.fromkeys(served.stop_ids, -100.0))
        running = Collector(engine, Request("base", [50, 51], LONG, never))
        until(lambda: running.text)
        running.ticket.cancel()
        assert running.wait().last.finish == "cancelled"

        def alone() -> bool:
            """Whether nothing is computed beside an answer."""
            before = computed()
            assert Collector(engine, Request("base", [50, 52], 400, never)).wait().last.generated == 400
            return computed() == before + 400

        assert any(alone() for _ in range(3))  # vLLM may take a moment to see that the other has gone
        left = Collector(engine, Request("base", [50, 51], LONG, never))
        leader = leader_of(engine)
        assert len(members(leader)) > 2
    finally:
        own.close()
        engine.close()
    assert left.wait().last.finish == "cancelled"
    until(lambda: not members(leader))


@pytest.mark.slow
def test_vllm_opens_the_int4_form(real_vllm, opened, long_runs, tmp_path):
    export(Run(long_runs[0]), "int4", tmp_path / "int4")
    engine = opened(tmp_path / "int4")
    own = Transformers.load(tmp_path / "int4")
    for ids in ([50, 51, 52], list(range(60, 100))):
        ((expected, _),) = own.generate([ids], 4)
        writer = Writer(engine.models["int4"].tokenizer)
        text = "".join(map(writer.push, expected)) + writer.finish()
        assert ask(engine, ids, 4, model="int4").wait().text == text


@pytest.mark.slow
def test_vllm_opens_the_fp8_form(real_vllm, opened, long_runs, tmp_path):
    export(Run(long_runs[0]), "fp8", tmp_path / "fp8")
    engine = opened(tmp_path / "fp8")
    answer = ask(engine, model="fp8").wait()
    assert answer.last.finish in ("length", "stop") and answer.last.generated
    # And when the process that computes ends, all hear of it.
    leader = leader_of(engine)
    never = Sampling(1.0, seed=1, logit_bias=dict.fromkeys(engine.models["fp8"].stop_ids, -100.0))
    running = Collector(engine, Request("fp8", [50, 51], LONG, never))
    for pid in set(members(leader)) - {leader}:
        os.kill(pid, signal.SIGKILL)
    assert running.wait().last.finish == "error"
    until(lambda: not members(leader))
    until(lambda: refuses(engine, "fp8"))


@pytest.mark.slow
def test_what_vllm_dies_of_at_the_start_is_said(real_vllm, tmp_path):
    folder = tiny.save("llama3", tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="did not start: .*(S|s)afetensor"):
        open_vllm([folder], None, 8, 8, print)


@pytest.mark.parametrize(
    ("capabilities", "precision"), [([], "bfloat16"), ([(8, 6)], "bfloat16"), ([(8, 6), (7, 5)], "float16")]
)
def test_a_gpu_without_bfloat16_gets_float16(monkeypatch, tmp_path, capabilities, precision):
    gpus = [Gpu(index, "", 1, 1, capability) for index, capability in enumerate(capabilities)]
    monkeypatch.setattr(vllm_process, "find_gpus", lambda: (None, gpus))
    asked = [vllm_process.serve_arguments(tmp_path, "m", dtype, 8) for dtype in ("bfloat16", "float32")]
    assert [words[words.index("--dtype") + 1] for words in asked] == [precision, "float32"]
