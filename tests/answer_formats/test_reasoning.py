"""Reasoning is served apart from the answer, in whatever pieces it comes, in every API."""

import json
from itertools import pairwise

import pytest
from anthropic import Anthropic
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from tunesmith.answer_formats.format import Call, Thought, find
from tunesmith.answer_formats.formats.harmony import Harmony
from tunesmith.answer_formats.reasoning import Reasoning

ASK = [{"role": "user", "content": "What is 1 plus 2?"}]
PIECE = st.text("ab <think/>|\n{", max_size=30)
TOOL = {
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}
TOOLS = [{"type": "function", "function": TOOL}]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
HARMONY = ("<|channel|>analysis<|message|>One and two.\n<|end|><|start|>assistant<|channel|>", "final<|message|>Three.")
SAYS = {
    "qwen3": "<think>\nOne and two.\n</think>\n\nThree.",
    "thinker": "One and two.\n</think>\n\nThree.",
    "distilled": "One and two.\n</think>\n\nThree.",
    "gpt_oss": "".join(HARMONY),
}
SAYS_CALL = {
    "qwen3": f"<think>\nOne and two.\n</think>\n\n{CALL}",
    "thinker": f"One and two.\n</think>\n\n{CALL}",
    "gpt_oss": HARMONY[0] + 'commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>',
}


@pytest.fixture(scope="module")
def openai(scripted_address):
    return OpenAI(base_url=f"{scripted_address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(scripted_address):
    return Anthropic(base_url=scripted_address, api_key="none", max_retries=0)


def read(reader, pieces) -> tuple[str, str]:
    """(reasoning, text)."""
    said = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    return (
        "".join(part.text for part in said if isinstance(part, Thought)),
        "".join(part for part in said if isinstance(part, str)),
    )


def split(text: str, cuts: list[int]) -> list[str]:
    at = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(at)]


def test_how_templates_write_it(tokenizers):
    found = {name: find(tok) for name, tok in tokenizers.items()}
    tags = Reasoning("<think>", "\n</think>\n\n", "reasoning_content")
    assert found["qwen3"].reasoning == found["thinker"].reasoning == tags
    assert found["distilled"].reasoning == found["smollm3"].reasoning == Reasoning("<think>", "\n</think>\n\n", None)
    assert isinstance(found["gpt_oss"], Harmony)
    for name in ("qwen2", "mistral", "llama3", "gemma3", "llama", "coder", "headed"):
        assert found[name].reasoning is None


@given(
    name=st.sampled_from(["qwen3", "thinker", "gpt_oss"]),
    thought=PIECE,
    text=PIECE,
    cuts=st.lists(st.integers(0, 120), max_size=30),
)
def test_it_comes_back_as_the_template_wrote_it(tokenizers, name, thought, text, cuts):
    tok = tokenizers[name]
    if "<think>" in thought + text or "</think>" in thought + text:  # the template itself would read these
        return
    key = "thinking" if name == "gpt_oss" else "reasoning_content"
    turn = tok.render([*ASK, {"role": "assistant", "content": text, key: thought}])
    prompt = tok.render(ASK, add_generation_prompt=True)
    end = "<|return|>" if name == "gpt_oss" else "<|im_end|>"
    answer = turn.removeprefix(prompt).rstrip("\n").removesuffix(end)
    reasoning, said = read(find(tok).reader(prompt, False, []), split(answer, cuts))
    assert (reasoning.strip(), said.strip()) == (thought.strip(), text.strip())
    if name != "gpt_oss":
        assert reasoning == thought.strip() and said == text.lstrip()


@given(text=PIECE, cuts=st.lists(st.integers(0, 30), max_size=20), begun=st.booleans())
def test_text_without_it_is_kept(tokenizers, text, cuts, begun):
    if text.lstrip().startswith("<think>"):
        return
    assert read(find(tokenizers["qwen3"]).reader("", begun, []), split(text, cuts)) == ("", text)


@pytest.mark.parametrize("name", list(SAYS))
def test_every_cut_gives_the_same(tokenizers, name):
    tok, text = tokenizers[name], SAYS[name]
    prompt = tok.render(ASK, add_generation_prompt=True)
    for pieces in ([text], list(text), *([text[:at], text[at:]] for at in range(len(text)))):
        reasoning, said = read(find(tok).reader(prompt, False, []), pieces)
        assert (reasoning.strip(), said) == ("One and two.", "Three.")


def test_reasoning_cut_short_is_reasoning(tokenizers):
    for name, text in (
        ("qwen3", "<think>\nOne and"),
        ("thinker", "One and"),
        ("gpt_oss", "<|channel|>analysis<|message|>One and"),
    ):
        prompt = tokenizers[name].render(ASK, add_generation_prompt=True)
        assert read(find(tokenizers[name]).reader(prompt, False, []), list(text)) == ("One and", "")


@pytest.mark.parametrize("model", list(SAYS))
def test_chat_completions(openai, scripted, model):
    scripted.says = SAYS[model]
    options = dict(model=model, messages=ASK)
    whole = openai.chat.completions.create(**options)
    message = whole.choices[0].message
    assert (message.reasoning_content.strip(), message.content) == ("One and two.", "Three.")
    assert 0 < whole.usage.completion_tokens_details.reasoning_tokens < whole.usage.completion_tokens
    deltas = [c.choices[0].delta for c in openai.chat.completions.create(**options, stream=True)]
    kinds = [
        "reasoning" if getattr(d, "reasoning_content", None) else "content"
        for d in deltas
        if d.content or getattr(d, "reasoning_content", None)
    ]
    assert kinds == sorted(kinds, reverse=True) and kinds.count("reasoning") > 2
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == message.reasoning_content
    assert "".join(d.content or "" for d in deltas) == "Three."


@pytest.mark.parametrize("model", list(SAYS))
def test_responses(openai, scripted, model):
    scripted.says = SAYS[model]
    whole = openai.responses.create(model=model, input=ASK, reasoning={"effort": "low"})
    reasoning, message = whole.output
    assert reasoning.content[0].text.strip() == "One and two." and message.content[0].text == "Three."
    assert (reasoning.type, reasoning.summary, reasoning.content[0].type) == ("reasoning", [], "reasoning_text")
    assert whole.reasoning.effort == "low" and whole.usage.output_tokens_details.reasoning_tokens > 0
    with openai.responses.stream(model=model, input=ASK) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type.removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_text.delta",
        "output_text.done",
        "completed",
    ]
    deltas = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert deltas == final.output[0].content[0].text == reasoning.content[0].text
    assert final.output_text == "Three."


@pytest.mark.parametrize("model", list(SAYS))
def test_messages(claude, scripted, model):
    scripted.says = SAYS[model]
    options = dict(model=model, messages=ASK, max_tokens=2000)
    thinking, text = claude.messages.create(**options, thinking={"type": "enabled", "budget_tokens": 1024}).content
    assert (thinking.type, thinking.thinking.strip(), text.text) == ("thinking", "One and two.", "Three.")
    with claude.messages.stream(**options, thinking={"type": "adaptive"}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0] == thinking and final.content[1].text == "Three."
    assert kinds.index("thinking") < kinds.index("signature") < kinds.index("text")
    for more in ({}, {"thinking": {"type": "disabled"}}, {"thinking": {"type": "adaptive", "display": "omitted"}}):
        assert [block.type for block in claude.messages.create(**options, **more).content] == ["text"]
        with claude.messages.stream(**options, **more) as stream:
            assert [block.type for block in stream.get_final_message().content] == ["text"]


@pytest.mark.parametrize("model", list(SAYS_CALL))
def test_reasoning_before_a_call_goes_there_and_back(openai, claude, scripted, model):
    """In every API: whole and streamed, and then as part of the conversation, which is the same prompt for all."""
    scripted.says = SAYS_CALL[model]
    choice = openai.chat.completions.create(model=model, messages=ASK, tools=TOOLS).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and json.loads(call.function.arguments) == {"a": 1}
    assert choice.message.reasoning_content.strip() == "One and two." and not choice.message.content
    flat = [{"type": "function", **TOOL}]
    response = openai.responses.create(model=model, input=ASK, tools=flat)
    with openai.responses.stream(model=model, input=ASK, tools=flat) as stream:
        streamed = stream.get_final_response()
    for answer in (response, streamed):
        assert [(item.type, getattr(item, "arguments", None)) for item in answer.output] == [
            ("reasoning", None),
            ("function_call", '{"a": 1}'),
        ]
    tools = [{"name": "add", "description": "Adds.", "input_schema": TOOL["parameters"]}]
    options = dict(model=model, messages=ASK, max_tokens=2000, tools=tools, thinking={"type": "adaptive"})
    message = claude.messages.create(**options)
    with claude.messages.stream(**options) as stream:
        assert [block.type for block in stream.get_final_message().content] == ["thinking", "tool_use"]
    assert [block.type for block in message.content] == ["thinking", "tool_use"]

    scripted.says, prompts = SAYS[model], []
    openai.chat.completions.create(
        model=model,
        tools=TOOLS,
        messages=[
            *ASK,
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "3"},
        ],
    )
    prompts.append(scripted.prompt())
    output = {"type": "function_call_output", "call_id": response.output[1].call_id, "output": "3"}
    openai.responses.create(
        model=model, tools=flat, input=[*ASK, *(item.model_dump(exclude_none=True) for item in response.output), output]
    )
    prompts.append(scripted.prompt())
    result = {"type": "tool_result", "tool_use_id": message.content[1].id, "content": "3"}
    claude.messages.create(
        **{
            **options,
            "messages": [
                *ASK,
                {"role": "assistant", "content": message.content},
                {"role": "user", "content": [result]},
            ],
        }
    )
    prompts.append(scripted.prompt())
    assert len(set(prompts)) == 1 and "One and two." in prompts[0] and "3" in prompts[0]


@pytest.mark.parametrize(
    ("model", "unwanted"), [("qwen3", "<think>\n\n</think>\n\n"), ("thinker", "<think>\n\n</think>\n\n")]
)
def test_who_wants_none_says_so_in_the_prompt(openai, claude, scripted, model, unwanted):
    scripted.says = "Three."
    openai.chat.completions.create(model=model, messages=ASK, reasoning_effort="none")
    assert scripted.prompt().endswith(unwanted)
    openai.responses.create(model=model, input=ASK, reasoning={"effort": "none"})
    assert scripted.prompt().endswith(unwanted)
    claude.messages.create(model=model, messages=ASK, max_tokens=9)
    assert scripted.prompt().endswith(unwanted)
    counted = claude.messages.count_tokens(model=model, messages=ASK).input_tokens
    assert counted == len(scripted.asked[-1].ids)
    openai.chat.completions.create(model=model, messages=ASK)
    assert not scripted.prompt().endswith(unwanted)


def test_text_before_a_call_in_channels_takes_the_place_of_reasoning(tokenizers):
    """As gpt-oss' own template refuses both."""
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {}}}
    message = {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call]}
    harmony = find(tokenizers["gpt_oss"])
    assert "Hm." in tokenizers["gpt_oss"].render([*ASK, harmony.message(message)])
    assert "Hm." not in harmony.message(message | {"content": "I add."}).values()


def test_effort_reaches_the_template(openai, scripted):
    scripted.says = SAYS["gpt_oss"]
    openai.chat.completions.create(model="gpt_oss", messages=ASK, reasoning_effort="high")
    assert "Reasoning: high" in scripted.prompt()


def test_an_answer_that_is_begun_or_held_to_a_form_does_not_reason(openai, claude, scripted):
    pytest.importorskip("llguidance")
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    begins = {"thinker": "</think>\n\n", "gpt_oss": "<|channel|>final<|message|>"}
    for model, begin in begins.items():
        scripted.says = '{"a": 1}'
        said = openai.chat.completions.create(model=model, messages=ASK, response_format=schema).choices[0].message
        assert said.content == '{"a": 1}' and scripted.prompt().endswith(begin)
        scripted.says = "ee."
        begun = [*ASK, {"role": "assistant", "content": "Thr"}]
        said = claude.messages.create(model=model, messages=begun, max_tokens=9, thinking={"type": "adaptive"})
        assert [block.text for block in said.content] == ["ee."] and scripted.prompt().endswith(begin + "Thr")
    scripted.says = CALL
    said = openai.chat.completions.create(model="thinker", messages=ASK, tools=TOOLS, tool_choice="required")
    assert said.choices[0].message.tool_calls and scripted.prompt().endswith("</think>\n\n")


def test_tokens_of_reasoning_alone_are_no_text(openai, scripted):
    scripted.says = SAYS["qwen3"]
    whole = openai.responses.create(model="qwen3", input=ASK, max_output_tokens=4)
    (item,) = whole.output
    assert (whole.status, item.type, item.status) == ("incomplete", "reasoning", "incomplete")
    events = list(openai.responses.create(model="qwen3", input=ASK, max_output_tokens=4, stream=True))
    assert events[-1].type == "response.incomplete" and events[-1].response.output[0].content == item.content
    assert isinstance(Call("add", "{}").id, str)
