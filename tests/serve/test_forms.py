"""Structured outputs in every spelling, single tool calls, and answers that the client begins."""

import json
import re

import httpx
import openai as sdk
import pytest
from anthropic import Anthropic
from pydantic import BaseModel

ASK = [{"role": "user", "content": "What is 1 plus 2?"}]
SCHEMA = {"type": "object", "required": ["sure"], "additionalProperties": False, "properties": {"sure": {"const": "z"}}}
LIKE_SCHEMA = r'\{\s*"sure"\s*:\s*"z"\s*\}'
GBNF = 'root ::= ("yes" | "no") "!"'
CHAT = [
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, LIKE_SCHEMA),
    ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, LIKE_SCHEMA),
    ({"response_format": {"type": "json_object", "value": SCHEMA}}, LIKE_SCHEMA),
    ({"response_format": {"type": "regex", "pattern": "[a-c]{2}/"}}, "[a-c]{2}/"),
    ({"response_format": {"type": "grammar", "grammar": GBNF}}, "(yes|no)!"),
    ({"json_schema": SCHEMA}, LIKE_SCHEMA),
    ({"guided_json": SCHEMA}, LIKE_SCHEMA),
    ({"guided_json": json.dumps(SCHEMA)}, LIKE_SCHEMA),
    ({"guided_choice": ["yes", "no way"]}, "yes|no way"),
    ({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"),
    ({"guided_grammar": GBNF}, "(yes|no)!"),
    ({"grammar": GBNF}, "(yes|no)!"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ({"structured_outputs": {"json": SCHEMA}}, LIKE_SCHEMA),
    ({"structured_outputs": {"regex": "[0-9]{2}"}}, "[0-9]{2}"),
    ({"ebnf": GBNF}, "(yes|no)!"),
    ({"regex": r"a\/b|[/]c"}, "a/b|/c"),
]
REFUSED = [
    ({"structural_tag": {"begin": "<a>"}}, "structural_tag"),
    ({"structured_outputs": {"structural_tag": "x"}}, "give one of"),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "give one of"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_json": SCHEMA, "regex": "a"}, "one form"),
    ({"grammar": "root ::= ("}, "grammar"),
    ({"guided_regex": "("}, "regex"),
    ({"guided_json": "{"}, "not valid JSON"),
    ({"response_format": {"type": "xml"}}, "xml"),
    ({"response_format": SCHEMA}, "'object'"),
    ({"guided_choice": [1]}, "guided_choice"),
]
READ = [
    {
        "type": "function",
        "function": {"name": "read", "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}},
    }
]
TWO_CALLS = {
    "qwen3": "".join(
        f'<tool_call>\n{{"name": "read", "arguments": {{"path": "{path}"}}}}\n</tool_call>\n' for path in "ab"
    ),
    "mistral": '[TOOL_CALLS] [{"name": "read", "arguments": {"path": "a"}}, '
    '{"name": "read", "arguments": {"path": "b"}}]',
    "glm": "".join(
        f"<tool_call>read\n<arg_key>path</arg_key>\n<arg_value>{path}</arg_value>\n</tool_call>" for path in "ab"
    ),
}


def said_to(address: str, path: str, body: dict) -> httpx.Response:
    return httpx.post(f"{address}/v1/{path}", json={"model": "first", "max_tokens": 100, **body}, timeout=60)


@pytest.mark.parametrize(("form", "pattern"), CHAT)
def test_an_answer_has_its_form_in_every_spelling(address, form, pattern):
    pytest.importorskip("llguidance")
    for path, prompt in (("chat/completions", {"messages": ASK}), ("completions", {"prompt": "One"})):
        answer = said_to(address, path, prompt | form)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        text = choice["text"] if path == "completions" else choice["message"]["content"]
        assert re.fullmatch(pattern, text) and choice["finish_reason"] == "stop"


@pytest.mark.parametrize(("form", "message"), REFUSED)
def test_an_unsupported_form_is_refused(address, form, message):
    pytest.importorskip("llguidance")
    for path, prompt in (("chat/completions", {"messages": ASK}), ("completions", {"prompt": "One"})):
        answer = said_to(address, path, prompt | form)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_forms_of_the_other_apis(address):
    pytest.importorskip("llguidance")

    class Order(BaseModel):
        sure: bool

    claude = Anthropic(base_url=address, api_key="none", max_retries=0)
    parsed = claude.messages.parse(model="first", max_tokens=100, messages=ASK, output_format=Order).parsed_output
    assert isinstance(parsed, Order)
    form = {"type": "json_schema", "schema": SCHEMA}
    for body in ({"output_config": {"format": form}}, {"output_format": form}, {"guided_json": SCHEMA}):
        answer = said_to(address, "messages", {"messages": ASK, **body}).json()
        assert re.fullmatch(LIKE_SCHEMA, answer["content"][0]["text"])
    answer = httpx.post(
        f"{address}/v1/responses",
        json={
            "model": "first",
            "input": "One",
            "max_output_tokens": 100,
            "text": {"format": {"type": "json_object", "schema": SCHEMA}},
        },
    ).json()
    assert re.fullmatch(LIKE_SCHEMA, answer["output"][0]["content"][0]["text"])
    wrong = {"messages": ASK, "output_config": {"format": {"type": "xml"}}}
    assert said_to(address, "messages", wrong).status_code == 400


@pytest.mark.parametrize("model", list(TWO_CALLS))
def test_one_call_where_parallel_ones_are_unwanted(scripted, scripted_address, model):
    openai = sdk.OpenAI(base_url=f"{scripted_address}/v1", api_key="none", max_retries=0)
    claude = Anthropic(base_url=scripted_address, api_key="none", max_retries=0)
    scripted.says = "First. " + TWO_CALLS[model] + " Last."
    options = dict(model=model, messages=ASK, tools=READ)
    both = openai.chat.completions.create(**options).choices[0].message
    assert [json.loads(call.function.arguments)["path"] for call in both.tool_calls] == ["a", "b"]
    choice = openai.chat.completions.create(**options, parallel_tool_calls=False).choices[0]
    assert [json.loads(call.function.arguments)["path"] for call in choice.message.tool_calls] == ["a"]
    assert (choice.finish_reason, choice.message.content.strip()) == ("tool_calls", "First.")
    chunks = list(openai.chat.completions.create(**options, parallel_tool_calls=False, stream=True, n=2))
    told = [call for chunk in chunks for part in chunk.choices for call in part.delta.tool_calls or [] if call.id]
    assert len(told) == 2 and [c.choices[0].finish_reason for c in chunks].count("tool_calls") == 2
    flat = [{"type": "function", **READ[0]["function"]}]
    output = openai.responses.create(model=model, input=ASK, tools=flat, parallel_tool_calls=False).output
    assert [item.type for item in output] == ["message", "function_call"]
    blocks = claude.messages.create(
        model=model,
        max_tokens=300,
        messages=ASK,
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        tools=[{"name": "read", "input_schema": READ[0]["function"]["parameters"]}],
    ).content
    assert [block.type for block in blocks] == ["text", "tool_use"] and blocks[1].input == {"path": "a"}


@pytest.mark.parametrize("model", ["qwen3", "mistral", "thinker", "gpt_oss"])
def test_an_answer_that_the_client_begins_is_continued(scripted, scripted_address, tokenizers, model):
    scripted.says = " name."
    begun = [*ASK, {"role": "assistant", "content": "Return the"}]
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    prompts = []
    for body in ({"messages": begun, **flags}, {"messages": [*ASK, begun[-1] | {"prefix": True}]}):
        answer = said_to(scripted_address, "chat/completions", {"model": model, **body}).json()
        assert answer["choices"][0]["message"]["content"] == " name."
        prompts.append(scripted.prompt())
    assert prompts[0] == prompts[1] and prompts[0].endswith("Return the")
    start = tokenizers[model].render(ASK, add_generation_prompt=True)
    assert prompts[0].startswith(tokenizers[model].decode(tokenizers[model].encode(start)[0]))


@pytest.mark.parametrize(
    "body",
    [
        {"messages": ASK, "continue_final_message": True},
        {"messages": ASK, "add_generation_prompt": False},
        {
            "messages": [*ASK, {"role": "assistant", "content": "It"}],
            "continue_final_message": True,
            "add_generation_prompt": True,
        },
        {
            "messages": [*ASK, {"role": "assistant", "content": "It", "reasoning_content": "Hm."}],
            "continue_final_message": True,
        },
    ],
)
def test_an_answer_that_cannot_be_continued_is_refused(scripted_address, body):
    answer = said_to(scripted_address, "chat/completions", {"model": "qwen3", **body})
    assert answer.status_code == 400 and "continue_final_message" in answer.json()["error"]["message"]


@pytest.mark.parametrize("arguments", ['{"path": "a.t', "[1, 2]", '{"n": NaN}', {"path": "a.t"}, "", None])
@pytest.mark.parametrize("model", ["qwen3", "glm", "gpt_oss"])
def test_a_conversation_continues_after_a_broken_call(scripted, scripted_address, model, arguments):
    scripted.says = "Well."
    function = {"name": "read"} | ({} if arguments is None else {"arguments": arguments})
    messages = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call12345", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call12345", "content": "nothing was done"},
    ]
    answer = said_to(scripted_address, "chat/completions", {"model": model, "messages": messages, "tools": READ})
    assert answer.status_code == 200, answer.text
    shown = "a.t" if "a.t" in str(arguments) else "1, 2" if arguments == "[1, 2]" else "NaN" if arguments else ""
    assert shown in scripted.prompt().split("What is 1 plus 2?")[1]
