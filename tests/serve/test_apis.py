"""The APIs, used through the official clients of OpenAI and Anthropic."""

import json
import math

import anthropic
import httpx
import jsonschema
import openai as sdk
import pytest
from anthropic import Anthropic

from tests.serving import KEY
from tunesmith.errors import UserError
from tunesmith.serve.binding import check_callers, own_names

ASK = [{"role": "user", "content": "What is 1 plus 2?"}]
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["colour", "count"],
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
}
TOOLS = [{"type": "function", "function": {"name": "paint", "parameters": SCHEMA}}, {"type": "web_search"}]
CLAUDE_TOOLS = [{"name": "paint", "input_schema": SCHEMA}, {"type": "web_search_20250305", "name": "web_search"}]


@pytest.fixture(scope="module")
def claude(address):
    return Anthropic(base_url=address, api_key="none", max_retries=0)


def test_models(openai, address):
    assert [m.id for m in openai.models.list()] == ["first", "small", "second.v2", "mistral"]
    assert openai.models.retrieve("second.v2").tunesmith == {
        "kind": "tuned",
        "base": "small",
        "context": 512,
        "tools": True,
        "reasoning": True,
        "images": False,
    }
    assert openai.models.retrieve("mistral").tunesmith["reasoning"] is False
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert "tunesmith_running " in httpx.get(f"{address}/metrics").text


def test_chat_whole_and_streamed_are_the_same(openai):
    options = dict(model="first", messages=ASK, max_tokens=12)
    whole = openai.chat.completions.create(**options)
    chunks = list(openai.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices == []
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_roles_parts_and_unknown_fields(openai):
    plain = [{"role": "system", "content": "Be kind."}, *ASK]
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "What is 1 "}, {"type": "text", "text": "plus 2?"}]},
    ]
    first, second = (
        openai.chat.completions.create(model="first", messages=m, max_completion_tokens=8, extra_body={"mood": "sunny"})
        for m in (plain, parts)
    )
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage.prompt_tokens == second.usage.prompt_tokens


def test_n_seed_and_logprobs(openai):
    options = dict(
        model="first", messages=ASK, max_tokens=10, temperature=1.5, seed=3, n=3, logprobs=True, top_logprobs=4
    )
    first, again = (openai.chat.completions.create(**options) for _ in range(2))
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in again.choices] and len(set(texts)) > 1
    for choice in first.choices:
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 4 and sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.0001
            assert token.logprob <= token.top_logprobs[0].logprob + 1e-6
    streamed = [""] * 3
    for chunk in openai.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_completions(openai):
    options = dict(model="small", prompt=["The sum of", "One plus"], max_tokens=9, echo=True)
    whole = openai.completions.create(**options)
    assert [c.text[:8] for c in whole.choices] == ["The sum ", "One plus"]
    streamed = ["", ""]
    for chunk in openai.completions.create(**options, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [c.text for c in whole.choices]
    told = openai.completions.create(model="small", prompt="The sum of", max_tokens=5, logprobs=2).choices[0]
    assert len(told.logprobs.tokens) == 5 and all(len(t) == 2 for t in told.logprobs.top_logprobs)
    text = whole.choices[0].text.removeprefix("The sum of")
    stop = text[3:5]
    cut = openai.completions.create(model="small", prompt="The sum of", max_tokens=9, stop=stop).choices[0]
    assert (cut.text, cut.finish_reason) == (text[: text.find(stop)], "stop")


def test_embeddings(openai):
    both = openai.embeddings.create(model="small", input=["a cat", "two dogs sat"]).data
    alone = openai.embeddings.create(model="small", input="two dogs sat", encoding_format="float").data[0].embedding
    assert both[1].embedding == pytest.approx(alone, abs=1e-5) and math.hypot(*alone) == pytest.approx(1)


def test_answers_keep_to_a_schema(openai):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "paint", "schema": SCHEMA}}
    for seed in range(3):
        said = openai.chat.completions.create(
            model="first", messages=ASK, response_format=form, temperature=2, seed=seed, max_tokens=200
        ).choices[0]
        assert said.finish_reason == "stop"
        jsonschema.validate(json.loads(said.message.content), SCHEMA)
    answer = openai.responses.create(
        model="mistral",
        input="Paint.",
        text={"format": {"type": "json_schema", "name": "paint", "schema": SCHEMA}},
        max_output_tokens=200,
    )
    jsonschema.validate(json.loads(answer.output_text), SCHEMA)


@pytest.mark.parametrize("model", ["first", "mistral"])
def test_required_tool_calls_keep_to_the_schema(openai, claude, model):
    """The answers of a model with random weights may differ between requests, as two tokens may be equally
    likely but for rounding; that the APIs agree is tested with a model that always says the same."""
    pytest.importorskip("llguidance")
    options = dict(
        model=model, messages=ASK, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=300
    )
    choice = openai.chat.completions.create(**options).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    deltas = [c.choices[0] for c in openai.chat.completions.create(**options, stream=True)]
    streamed = "".join(p.function.arguments or "" for d in deltas for p in d.delta.tool_calls or [])
    assert deltas[-1].finish_reason == "tool_calls"
    flat = [{"type": "function", "name": "paint", "parameters": SCHEMA}, {"type": "web_search"}]
    (item,) = openai.responses.create(
        model=model, input=ASK, tools=flat, tool_choice="required", parallel_tool_calls=False
    ).output
    (block,) = claude.messages.create(
        model=model,
        max_tokens=300,
        messages=ASK,
        tool_choice={"type": "tool", "name": "paint", "disable_parallel_tool_use": True},
        tools=CLAUDE_TOOLS,
    ).content
    for name, arguments in (
        (call.function.name, call.function.arguments),
        ("paint", streamed),
        (item.name, item.arguments),
        (block.name, json.dumps(block.input)),
    ):
        assert name == "paint"
        jsonschema.validate(json.loads(arguments), SCHEMA)


@pytest.mark.parametrize("allowed", ["paint", "wash"])
def test_only_allowed_tools_are_called(openai, allowed):
    pytest.importorskip("llguidance")
    flat = [{"type": "function", "name": name, "parameters": SCHEMA} for name in ("paint", "wash")]
    nested = [{"type": "function", "function": {"name": t["name"], "parameters": SCHEMA}} for t in flat]
    only = {"mode": "required", "tools": [{"type": "function", "function": {"name": allowed}}]}
    said = (
        openai.chat.completions.create(
            model="first",
            messages=ASK,
            tools=nested,
            max_tokens=300,
            parallel_tool_calls=False,
            tool_choice={"type": "allowed_tools", "allowed_tools": only},
        )
        .choices[0]
        .message
    )
    (item,) = openai.responses.create(
        model="first",
        input=ASK,
        tools=flat,
        parallel_tool_calls=False,
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": allowed}]},
    ).output
    assert said.tool_calls[0].function.name == item.name == allowed


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("qwen3", '<tool_call>\n{"name": "paint", "arguments": {"colour": "red", "count": 3}}\n</tool_call>'),
        (
            "coder",
            (
                "<tool_call>\n<function=paint>\n<parameter=colour>\nred\n</parameter>\n"
                "<parameter=count>\n3\n</parameter>\n</function>\n</tool_call>"
            ),
        ),
        ("mistral", '[TOOL_CALLS] [{"name": "paint", "arguments": {"colour": "red", "count": 3}}]'),
        (
            "gpt_oss",
            '<|channel|>commentary to=functions.paint <|constrain|>json<|message|>{"colour": "red", "count": 3}',
        ),
    ],
)
def test_tool_calls_in_every_api(scripted, scripted_address, model, says):
    openai = sdk.OpenAI(base_url=f"{scripted_address}/v1", api_key="none", max_retries=0)
    claude = Anthropic(base_url=scripted_address, api_key="none", max_retries=0)
    scripted.says = says
    options = dict(model=model, messages=ASK, tools=TOOLS)
    choice = openai.chat.completions.create(**options).choices[0]
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, call.function.name, choice.message.content) == ("tool_calls", "paint", None)
    assert json.loads(call.function.arguments) == {"colour": "red", "count": 3}

    deltas = [c.choices[0] for c in openai.chat.completions.create(**options, stream=True)]
    pieces = [d.delta.tool_calls[0] for d in deltas if d.delta.tool_calls]
    assert pieces[0].id and pieces[0].index == 0 and pieces[0].function.name == "paint"
    assert "".join(p.function.arguments or "" for p in pieces) == call.function.arguments
    assert deltas[-1].finish_reason == "tool_calls" and not any(d.delta.content for d in deltas)

    flat = [{"type": "function", "name": "paint", "parameters": SCHEMA}, {"type": "web_search"}]
    (item,) = openai.responses.create(model=model, input=ASK, tools=flat).output
    assert (item.type, item.name, item.arguments) == ("function_call", "paint", call.function.arguments)

    said = claude.messages.create(model=model, max_tokens=300, messages=ASK, tools=CLAUDE_TOOLS)
    (block,) = said.content
    assert (said.stop_reason, block.type, block.input) == ("tool_use", "tool_use", json.loads(call.function.arguments))
    with claude.messages.stream(model=model, max_tokens=300, messages=ASK, tools=CLAUDE_TOOLS) as stream:
        assert stream.get_final_message().content[0].input == block.input

    scripted.says = "Done."
    talk = [
        *ASK,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    assert openai.chat.completions.create(model=model, messages=talk, tools=TOOLS).usage.prompt_tokens
    asked = scripted.prompt()
    results = [
        *ASK,
        {"role": "assistant", "content": said.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": block.id, "content": "done"}]},
    ]
    assert claude.messages.create(
        model=model, max_tokens=4, messages=results, tools=CLAUDE_TOOLS, thinking={"type": "adaptive"}
    ).usage.output_tokens
    assert scripted.prompt() == asked and "red" in asked


def test_responses_and_their_events(openai):
    options = dict(model="first", input=[*ASK], instructions="Be kind.", max_output_tokens=9)
    whole = openai.responses.create(**options)
    events = list(openai.responses.create(**options, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type.removeprefix("response.") for e in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        whole.status,
    ]
    assert "".join(e.delta for e in events if e.type.endswith("delta")) == whole.output_text
    assert events[-1].response.output_text == whole.output_text and whole.usage.output_tokens <= 9
    with pytest.raises(sdk.BadRequestError, match="keeps no state"):
        openai.responses.create(model="first", input="And?", previous_response_id=whole.id)


def test_messages_and_their_events(claude, openai):
    options = dict(model="first", max_tokens=9, system="Be kind.", messages=ASK)
    whole = claude.messages.create(**options)
    with claude.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text and final.stop_reason == whole.stop_reason
    chat = openai.chat.completions.create(
        model="first", max_tokens=9, messages=[{"role": "system", "content": "Be kind."}, *ASK]
    )
    assert text == chat.choices[0].message.content
    counted = claude.messages.count_tokens(model="first", system="Be kind.", messages=ASK)
    assert counted.input_tokens == chat.usage.prompt_tokens
    stop = text[2:4]
    cut = claude.messages.create(**options, stop_sequences=[stop])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    begin = {"role": "assistant", "content": text[:4].rstrip()}
    begun = claude.messages.create(**{**options, "messages": [*ASK, begin]})
    assert begun.usage.output_tokens


def test_render_shows_a_prompt(address, engine):
    said = httpx.post(f"{address}/render", json={"model": "first", "messages": ASK}).json()
    tokenizer = engine.models["first"].tokenizer
    assert said["text"] == tokenizer.render(ASK, add_generation_prompt=True)
    assert said["ids"] == tokenizer.encode(said["text"])[0] and "".join(said["tokens"]) == said["text"]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("chat/completions", {"model": "gpt-9"}, 404, "has no model 'gpt-9'"),
        ("chat/completions", {"messages": []}, 400, "messages"),
        ("chat/completions", {"messages": "hello"}, 400, "messages"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "reads text only",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": "plus " * 900}]}, 400, "takes 512"),
        ("chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, 400, "surrogate"),
        ("chat/completions", {"temperature": 3}, 400, "temperature"),
        ("chat/completions", {"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ("chat/completions", {"response_format": {"type": "xml"}}, 400, "response_format"),
        ("chat/completions", {"tool_choice": {"type": "function", "name": 5}}, 400, "tool_choice"),
        ("chat/completions", {"tool_choice": {"type": "allowed_tools", "tools": [None]}}, 400, "allowed_tools"),
        (
            "chat/completions",
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "x"}]}},
            400,
            "none of the allowed",
        ),
        ("completions", {"prompt": []}, 400, "prompt"),
        ("completions", {"prompt": [99999]}, 400, "token ids"),
        ("responses", {"input": "x", "background": True}, 400, "background"),
        ("embeddings", {"input": ""}, 400, "empty"),
        ("messages", {"messages": ASK}, 400, "max_tokens"),
        ("messages", {"messages": ASK, "max_tokens": 5, "model": "gpt-9"}, 404, "no model"),
    ],
)
def test_errors_have_the_shape_of_the_api(address, path, body, status, said):
    needed = {"model": "first", **({"messages": ASK} if path.startswith("chat") else {})}
    response = httpx.post(
        f"{address}/v1/{path}", content=json.dumps({**needed, **body}), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == status
    error = response.json()
    assert said in error["error"]["message"] and error["error"]["type"].endswith("_error")
    assert (error.get("type") == "error") == (path == "messages")


@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings", "responses", "messages"])
@pytest.mark.parametrize(
    ("content", "kind", "status", "said"),
    [
        (b'{"model": "first"}', None, 415, "the Content-Type is none; send JSON with the header 'Content-Type: "),
        (b'{"model": "first"}', "application/x-www-form-urlencoded", 415, "send JSON with the header"),  # curl -d
        (b'{"model": "first"}', "text/plain", 415, "the Content-Type is text/plain"),
        (
            b'{"model": "first" "n": 1}',
            "application/json",
            400,
            "not valid JSON: Expecting ',' delimiter at character 18",
        ),
        (b'{"model": "\xff"}', "application/json", 400, "parsing the body"),
        (b"[" * 100_000, "application/json", 400, ""),
        (b"", "application/json", 400, "no body"),
        (b"", None, 400, "no body"),
        (b"[]", "application/json", 400, "dictionary"),
    ],
)
def test_a_body_that_is_no_json_gets_the_api_s_shape(address, path, content, kind, status, said):
    response = httpx.post(f"{address}/v1/{path}", content=content, headers={"Content-Type": kind} if kind else {})
    error = response.json()
    assert response.status_code == status and said in error["error"]["message"]
    assert (error.get("type") == "error") == (path == "messages")


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("POST", "/chat/completions", "this server has no POST /chat/completions; the APIs are below /v1"),
        ("GET", "/v1/nothing", "this server has no GET /v1/nothing"),
        ("DELETE", "/v1/models", "this server has no DELETE /v1/models"),
    ],
)
def test_an_unknown_path(address, method, path, said):
    response = httpx.request(method, address + path)
    assert response.status_code in (404, 405) and response.json()["error"]["message"] == said


@pytest.mark.parametrize("path", ["/", "/icon.svg", "/v1/models", "/v1/models/first", "/health", "/metrics"])
def test_head_is_get_without_a_body(address, path):
    got, head = httpx.get(address + path), httpx.head(address + path)
    assert head.status_code == got.status_code == 200 and head.content == b""
    assert head.headers["Content-Type"] == got.headers["Content-Type"]


def test_more_answers_than_the_server_ever_accepts_are_refused_for_good(openai, engine):
    at_once = engine.capacity
    with pytest.raises(sdk.BadRequestError, match=f"{at_once + 1} answers in one request.*takes {at_once} at once"):
        openai.completions.create(model="first", prompt=["Hello"] * (at_once + 1), max_tokens=1)
    whole = openai.completions.create(model="first", prompt=["Hello"] * at_once, max_tokens=1)
    assert len(whole.choices) == at_once


@pytest.mark.parametrize(
    ("host", "allowed", "answered"),
    [
        ("127.0.0.1", (), {"127.0.0.1:80", "localhost:8383", "LOCALHOST", "[::1]:8383"}),
        ("127.0.0.1", ("box.lan",), {"127.0.0.1", "localhost", "box.lan:8383", "[::1]"}),
        ("0.0.0.0", ("box.lan",), {"127.0.0.1", "localhost", "box.lan", "[::1]"}),
    ],
)
def test_only_allowed_host_names_are_answered(scripted, served, host, allowed, answered):
    address = served(scripted, hosts=own_names(host, allowed))
    foreign = {
        "evil.example",
        "evil.example:8383",
        "box.lan.evil.example",
        "127.0.0.1.evil.example",
        "[::1",
        "",
        "localhost@evil.example",
    } | ({"box.lan"} - set(allowed))
    for name in answered | foreign:
        for path in ("/v1/models", "/v1/messages", "/"):
            response = httpx.get(address + path, headers={"Host": name})
            assert (response.status_code == 403) == (name in foreign), (name, path)
            if name in foreign:
                error = response.json()
                message = error["error"]["message"]
                assert f"host {name!r}" in message and "--allow-host" in message
                assert (error.get("type") == "error") == (path == "/v1/messages")


def test_any_host_name_is_allowed_on_a_public_address():
    assert own_names("0.0.0.0", ()) == []


@pytest.mark.parametrize(
    ("api_key", "cors", "allow_host", "said"),
    [
        ("", (), (), "--api-key"),
        ("clé", (), (), "--api-key"),
        ("two\nlines", (), (), "--api-key"),
        (" a", (), (), "--api-key"),
        (None, ("localhost:3000",), (), "--cors localhost:3000"),
        (None, ("http://localhost:3000/",), (), "--cors"),
        (None, ("http://LocalHost:3000",), (), "--cors"),
        (None, ("http://localhost:80",), (), "--cors"),
        (None, ("https://x:port",), (), "--cors"),
        (None, (), ("http://box",), "--allow-host http://box"),
        (None, (), ("box:8383",), "--allow-host"),
        (None, (), ("Box",), "--allow-host"),
        (None, (), ("",), "--allow-host"),
    ],
)
def test_a_value_that_no_client_could_send_is_refused(api_key, cors, allow_host, said):
    with pytest.raises(UserError, match=said):
        check_callers(api_key, cors, allow_host)


def test_values_that_clients_send_are_accepted():
    check_callers(
        "a key", ("*", "null", "http://localhost:3000", "https://x.example"), ("box", "box.lan", "10.0.0.1", "fe80::1")
    )


def test_the_page_cannot_be_framed(address):
    assert "<title>Chat · Tunesmith</title>" in httpx.get(address).text
    for path in ("/", "/icon.svg"):
        answer = httpx.get(address + path)
        assert answer.status_code == 200 and "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        again = httpx.get(address + path, headers={"If-None-Match": answer.headers["ETag"]})
        assert again.status_code == 304 and "Content-Security-Policy" in again.headers


def test_a_key_is_required(engine, served):
    address = served(engine, api_key=KEY, hosts=["127.0.0.1"])
    with pytest.raises(sdk.AuthenticationError):
        sdk.OpenAI(base_url=f"{address}/v1", api_key="another", max_retries=0).models.list()
    with pytest.raises(anthropic.AuthenticationError):
        Anthropic(base_url=address, api_key="another", max_retries=0).messages.create(
            model="first", max_tokens=1, messages=ASK
        )
    assert len(sdk.OpenAI(base_url=f"{address}/v1", api_key=KEY).models.list().data) == 4
    assert Anthropic(base_url=address, api_key=KEY).messages.create(model="first", max_tokens=1, messages=ASK).content
    assert httpx.get(f"{address}/health").status_code == 200
    assert httpx.get(f"{address}/health", headers={"Host": "evil.example"}).status_code == 403
