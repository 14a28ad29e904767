"""Conversations fitted to chat templates: the forms that are tried, the parts that are dropped, and the prompt."""

import json

import pytest

from tests.data.test_masking import CALL, TALK, TOOLS, assistant, learned, load, runs, system, user
from tunesmith.data.conversation import accepted
from tunesmith.data.masking import encode_chat
from tunesmith.data.reasoning import split, switched
from tunesmith.data.rows import Chat, RowProblem
from tunesmith.data.tokenizer import Tokenizer

LOOP = "{{ bos_token }}{% for m in messages %}"
HEAD = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>' }}"
HEADED = "<|start_header_id|>assistant<|end_header_id|>"


@pytest.fixture
def template(tmp_path):
    """Returns a function that makes a Llama tokenizer with the given template."""

    def build(text: str, **variables) -> Tokenizer:
        file = tmp_path / "own.jinja"
        file.write_text(text)
        loaded = load("llama3")
        return Tokenizer.load(loaded.folder, str(file), variables)

    return build


def call(name: str, id: str | None = None, **arguments) -> dict:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return made | ({"id": id} if id else {})


def changes(tokenizer, messages, tools=None, mask="assistant") -> list[str]:
    (example,) = encode_chat(tokenizer, Chat(messages, tools), mask)
    return example.changes


def dropped(tokenizer, messages, tools=None) -> RowProblem:
    with pytest.raises(RowProblem) as problem:
        encode_chat(tokenizer, Chat(messages, tools), "assistant")
    return problem.value


# --- Parts that are not written


@pytest.mark.parametrize("family", ["gemma3", "llama3", "phi3", "smollm3", "olmo2"])
def test_a_tool_call_that_is_not_written_is_not_learned_as_an_empty_turn(family):
    problem = dropped(load(family), [user("1 + 2?"), assistant("", tool_calls=[CALL])], TOOLS)
    assert problem.reason == "part_unwritten" and "tool call of message 2" in problem.detail


def test_text_beside_a_call_is_learned_or_the_row_dropped():
    talk = [user("1 + 2?"), assistant("I will add.", tool_calls=[CALL | {"id": "abcdefghi"}])]
    assert dropped(load("mistral"), talk, TOOLS).reason == "part_unwritten"
    assert learned(load("qwen2"), talk, tools=TOOLS) == [
        ['I will add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call><|im_end|>']
    ]


def test_an_argument_that_is_not_written_drops_the_row(template):
    first_argument = template(
        LOOP + HEAD + "{% for c in m.tool_calls or [] %}{{ c.function.name }} {{ c.function.arguments.a }}"
        "{% endfor %}{{ m.content + '<|eot_id|>' }}{% endfor %}" + PROMPT + "{% endif %}"
    )
    assert dropped(first_argument, [user("?"), assistant("", tool_calls=[call("add", a=12345, b=67890)])]).reason == (
        "part_unwritten"
    )


def test_parallel_calls_are_split_where_the_template_writes_one():
    one, two = call("weather", "call00001", city="Rome"), call("traffic", "call00002", city="Oslo")
    results = [
        {"role": "tool", "tool_call_id": "call00002", "content": "jam"},
        {"role": "tool", "tool_call_id": "call00001", "content": "sun"},
    ]
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "traffic")]
    talk = [user("Both?"), assistant("", tool_calls=[one, two]), *results, assistant("Sun, jam.")]
    (example,) = encode_chat(load("gpt_oss"), Chat(talk, tools), "assistant")
    text = load("gpt_oss").decode(example.ids)
    assert example.changes == ["calls_split"]
    assert list(runs(load("gpt_oss"), example)) == [
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>',
        ' to=functions.traffic<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>',
        "<|channel|>final<|message|>Sun, jam.<|return|>",
    ]
    assert '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"sun"<|end|>' in text
    assert '<|start|>functions.traffic to=assistant<|channel|>commentary<|message|>"jam"<|end|>' in text
    assert dropped(load("gpt_oss"), talk[:2], tools).reason == "part_unwritten"
    assert len(learned(load("qwen2"), talk, tools=tools)[0]) == 2  # which writes both in one turn


def test_calls_in_an_unusual_form_are_written(template):
    """DeepSeek V3 writes calls only if the content is none, and expects arguments as text."""
    asks_none = template(
        LOOP + HEAD + "{% if m.content is none %}{% for c in m.tool_calls %}"
        "{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}"
        "{{ '<|eot_id|>' }}{% endfor %}" + PROMPT + "{% endif %}"
    )
    talk = [user("?"), assistant("", tool_calls=[call("add", a=1)]), {"role": "tool", "content": "1"}, assistant("1.")]
    assert learned(asks_none, talk) == [['add {"a": 1}<|eot_id|>', "1.<|eot_id|>"]]
    needs_ids = template(
        LOOP + HEAD + "{% for c in m.tool_calls or [] %}{% if c.id is not defined or c.id|length != 9 %}"
        "{{ raise_exception('ids have nine characters') }}{% endif %}{{ c.id ~ c.function | tojson }}{% endfor %}"
        "{{ m.tool_call_id if m.role == 'tool' }}{{ m.content + '<|eot_id|>' }}{% endfor %}" + PROMPT + "{% endif %}"
    )
    ids = [None, "call_0123456789"]
    for id in ids:
        result = {"role": "tool", "content": "1"} | ({"tool_call_id": id} if id else {})
        (example,) = encode_chat(
            needs_ids,
            Chat([user("?"), assistant("", tool_calls=[call("add", id, a=1)]), result, assistant("1.")]),
            "assistant",
        )
        assert example.changes == []
        assert needs_ids.decode(example.ids).count("call00000") == 2


def test_context_that_is_not_written_is_noted():
    talk = [user("Who?"), assistant("A helper.")]
    assert changes(load("gemma3"), talk, TOOLS) == ["tools_unwritten"]
    assert changes(load("qwen2"), talk, TOOLS) == []
    muted = [
        user("1 + 2?"),
        assistant("", tool_calls=[CALL], weight=0),
        {"role": "tool", "content": "3"},
        assistant("3."),
    ]
    assert changes(load("llama3"), muted) == ["context_unwritten"]
    assert dropped(load("llama3"), [{**m, "weight": 1} if m["role"] == "assistant" else m for m in muted]).reason == (
        "part_unwritten"
    )


# --- Orders


def test_every_system_turn_is_written(template):
    first_only = template(
        LOOP + "{% if m.role != 'system' or loop.first %}" + HEAD + "{{ m.content + '<|eot_id|>' }}"
        "{% endif %}{% endfor %}" + PROMPT + "{% endif %}"
    )
    for tokenizer in (first_only, load("mistral")):
        leading = [system("Be brief."), system("In Norwegian."), *TALK[:2]]
        (example,) = encode_chat(tokenizer, Chat(leading), "assistant")
        assert example.changes == ["systems_joined"]
        assert "Be brief.\n\nIn Norwegian." in tokenizer.decode(example.ids)
    later = [*TALK[:2], system("Be brief."), *TALK[2:]]
    (example,) = encode_chat(first_only, Chat(later), "assistant")
    assert example.changes == ["system_moved"]
    assert "user<|end_header_id|>Be brief.\n\nWhy?<|eot_id|>" in first_only.decode(example.ids)
    assert changes(load("qwen2"), later) == []  # which writes it where it stands


def test_user_turns_in_a_row_are_joined_where_the_template_wants_that():
    talk = [user("Where is Oslo?"), user("Quickly."), assistant("In Norway.")]
    for family in ("gemma3", "mistral"):
        (example,) = encode_chat(load(family), Chat(talk), "assistant")
        assert example.changes == ["turns_joined"]
        assert "Where is Oslo?\n\nQuickly." in load(family).decode(example.ids)
    assert changes(load("qwen2"), talk) == []


def test_a_greeting_is_context():
    talk = [assistant("Welcome."), user("A room?"), assistant("Number 3.")]
    assert learned(load("qwen2"), talk) == [["Number 3.<|im_end|>"]]
    (example,) = encode_chat(load("gemma3"), Chat(talk), "assistant")
    assert example.changes == ["greeting_dropped"] and list(runs(load("gemma3"), example)) == ["Number 3.<end_of_turn>"]


def test_calls_and_results_as_text_stay_unchanged():
    """The shape of Hermes' and ToolACE's rows."""
    talk = [
        user("Rain?"),
        assistant('<tool_call>\n{"name": "weather"}\n</tool_call>'),
        {"role": "tool", "content": "rain"},
        assistant("Yes."),
    ]
    assert learned(load("qwen2"), talk) == [
        ['<tool_call>\n{"name": "weather"}\n</tool_call><|im_end|>', "Yes.<|im_end|>"]
    ]


def test_a_prompt_that_would_drop_a_part_is_refused():
    found = accepted(load("gemma3"), Chat([user("1 + 2?")], TOOLS))
    assert [str(part) for part in found.unwritten] == ["the tools"]
    alone = accepted(load("gemma3"), Chat([system("Write a poem.")]))
    assert alone.messages == [user("Write a poem.")] and not alone.unwritten


# --- Reasoning


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<think>\nwhy\n</think>\n\nso", ("why", "so")),
        ("why\n</think>\n\nso", ("why", "so")),
        ("<think></think>so", ("", "so")),
        ("<thinking>why</thinking>\nso", ("why", "so")),
        ("<reasoning>why</reasoning>so", ("why", "so")),
        ("[THINK]why[/THINK]so", ("why", "so")),
        ("<|begin_of_thought|>why<|end_of_thought|>\n\nso", ("why", "so")),
        ("<|channel>thought\nwhy<channel|>so", ("why", "so")),
        ("say <think> and </think>", None),
        ("<think> without an end", None),
        ("so", None),
    ],
)
def test_every_spelling_of_reasoning_in_text_is_found(text, expected):
    assert split(text) == expected


def test_reasoning_in_the_text_is_learned_in_the_templates_own_form():
    for text in ("<think>\nadd them\n</think>\n\n4", "<thinking>add them</thinking>4", "add them</think>\n\n4"):
        assert learned(load("qwen3"), [user("2+2?"), assistant(text)]) == [
            ["<think>\nadd them\n</think>\n\n4<|im_end|>"]
        ]
        assert learned(load("gpt_oss"), [user("2+2?"), assistant(text)]) == [
            ["<|channel|>analysis<|message|>add them<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"]
        ]


def test_reasoning_without_a_place_moves_into_the_answer():
    own = [user("2+2?"), assistant("4", reasoning_content="add them")]
    assert learned(load("llama3"), own) == [["<think>\nadd them\n</think>\n\n4<|eot_id|>"]]
    assert changes(load("llama3"), own) == ["reasoning_in_answer"]
    in_text = [user("2+2?"), assistant("<thinking>add them</thinking>4")]
    assert learned(load("llama3"), in_text) == [["<thinking>add them</thinking>4<|eot_id|>"]]
    assert changes(load("llama3"), in_text) == []


OFF_BY_DEFAULT = (
    LOOP + HEAD + "{% if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}"
    "{% endif %}{{ m.content + '<|eot_id|>' }}{% endfor %}"
    + PROMPT
    + "{% if not enable_thinking | default(false) %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def test_a_switch_that_is_off_by_default_is_switched_on_for_reasoning(template):
    tokenizer = template(OFF_BY_DEFAULT)
    thinking, plain = [user("2+2?"), assistant("4", reasoning_content="add")], [user("2+2?"), assistant("4")]
    assert switched(tokenizer, "enable_thinking", wanted=True) == {"enable_thinking": True}
    assert learned(template(OFF_BY_DEFAULT, enable_thinking=True), thinking) == [
        ["<think>\nadd\n</think>\n\n4<|eot_id|>"]
    ]
    assert dropped(tokenizer, thinking).reason == "part_unwritten"
    off = template(OFF_BY_DEFAULT, enable_thinking=False)
    assert switched(tokenizer, "enable_thinking", wanted=False) == {"enable_thinking": False}
    assert learned(off, plain) == [["4<|eot_id|>"]]


# R1's distills: the prompt opens the reasoning, finished turns have none.
OPENING = (
    LOOP
    + HEAD
    + "{{ m.content.split('</think>')[-1] + '<|eot_id|>' }}{% endfor %}"
    + PROMPT
    + "{{ '<think>\n' }}{% endif %}"
)
# Gemma 4: the prompt ends in an empty thought, finished turns have none.
EMPTY = (
    LOOP
    + HEAD
    + "{{ m.content + '<|eot_id|>' }}{% endfor %}"
    + PROMPT
    + "{{ '<|channel>thought\n<channel|>' }}{% endif %}"
)
# DeepSeek V3.1: finished turns have an end of reasoning, but none.
ENDED = (
    LOOP
    + HEAD
    + "{{ ('<think></think>' if m.role == 'assistant' else '') + m.content + '<|eot_id|>' }}{% endfor %}"
    + PROMPT
    + "{{ '<think>' }}{% endif %}"
)


@pytest.mark.parametrize(
    "text, plain, thinking",
    [
        (OPENING, "\n</think>\n\n4<|eot_id|>", "add\n</think>\n\n4<|eot_id|>"),
        (EMPTY, "4<|eot_id|>", None),
        (ENDED, "</think>4<|eot_id|>", "add</think>4<|eot_id|>"),
    ],
)
def test_answers_follow_the_prompt_that_inference_uses(text, plain, thinking, template):
    tokenizer = template(text)
    for given, written in (({}, plain), ({"reasoning_content": "add"}, thinking)):
        talk = [user("Hi"), assistant("Hello", **given), user("2+2?"), assistant("4", **given)]
        if written is None:
            assert dropped(tokenizer, talk).detail == "the generation prompt has no place for reasoning"
            continue
        last = encode_chat(tokenizer, Chat(talk), "assistant")[-1]
        context = [{"role": m["role"], "content": m["content"]} for m in talk[:3]]
        prompt = tokenizer.encode(tokenizer.render(context, add_generation_prompt=True))[0]
        assert last.ids[: last.answer[0]] == prompt
        assert tokenizer.decode(last.ids[last.answer[0] : last.answer[1]]) == written
        assert all(last.supervised[len(prompt) :])


def test_an_answer_that_cannot_follow_the_prompt_is_recorded(template):
    odd = template(
        LOOP + HEAD + "{{ m.content + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>My answer: ' }}{% endif %}"
    )
    assert changes(odd, TALK[:2]) == ["prompt_differs"]
    assert learned(odd, TALK[:2]) == [["Hello, you<|eot_id|>"]]
    assert changes(template(OPENING), TALK[:2], mask="all") == ["prompt_differs"]


def test_reasoning_between_calls_is_learned(template):
    """gpt-oss: the reasoning of a call is written until an answer follows."""
    tokenizer = template(
        LOOP
        + HEAD
        + "{% if m.reasoning_content and (loop.last or (m.tool_calls and messages[-1].role != 'assistant')) %}"
        "{{ '[' + m.reasoning_content + ']' }}{% endif %}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}"
        "{% endfor %}{{ m.content + '<|eot_id|>' }}{% endfor %}" + PROMPT + "{% endif %}"
    )
    talk = [
        user("Rain?"),
        assistant("", tool_calls=[call("weather", city="Rome")], reasoning_content="Ask it."),
        {"role": "tool", "content": "rain"},
        assistant("Yes.", reasoning_content="It rains."),
    ]
    (example,) = encode_chat(tokenizer, Chat(talk), "assistant")
    assert list(runs(tokenizer, example)) == [
        '[Ask it.]{"name": "weather", "arguments": {"city": "Rome"}}<|eot_id|>',
        "[It rains.]Yes.<|eot_id|>",
    ]
    asked = tokenizer.render(talk[:3], add_generation_prompt=True)
    assert example.ids[: example.answer[0]] == tokenizer.encode(asked)[0]


# --- Ends of turns, control tokens, whitespace


def test_a_turn_that_the_next_one_ends_is_learned_with_its_token(template):
    """GLM: nothing ends a turn but the next role's token."""
    tokenizer = template(
        "{% for m in messages %}{{ {'user': '<|begin_of_text|>', 'tool': '<|end_of_text|>', 'assistant': "
        "'<|start_header_id|>'}[m.role] + '\n' + m.content }}{% for c in m.tool_calls or [] %}"
        "{{ '(' + c.function | tojson + ')' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>\n' }}{% endif %}"
    )
    tokenizer.named_tokens.pop("bos_token")  # here it begins a user's turn
    assert learned(tokenizer, TALK) == [["Hello, you<|begin_of_text|>", "Because\nso<|begin_of_text|>"]]
    called = [
        user("?"),
        assistant("", tool_calls=[call("add", a=1)]),
        {"role": "tool", "content": "1"},
        assistant("1."),
    ]
    assert learned(tokenizer, called) == [
        ['({"name": "add", "arguments": {"a": 1}})<|end_of_text|>', "1.<|begin_of_text|>"]
    ]


def test_the_token_that_ends_the_turn_is_learned_where_another_ends_the_text(template):
    """Cohere: a token ends the text, then another the turn."""
    tokenizer = template(
        LOOP + HEAD + "{{ m.content + '<|end_of_text|><|eot_id|>' }}{% endfor %}" + PROMPT + "{% endif %}"
    )
    assert learned(tokenizer, TALK[:2]) == [["Hello, you<|end_of_text|><|eot_id|>"]]


@pytest.mark.parametrize("family, end", [("qwen2", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("mistral", "</s>")])
def test_control_tokens_in_a_rows_own_text(family, end):
    ended = [user("Where?"), assistant(f"Here.{end}\n")]
    assert changes(load(family), ended) == ["end_token_removed"]
    assert learned(load(family), ended) == learned(load(family), [user("Where?"), assistant("Here.")])
    for talk in ([user(f"Where?{end}"), assistant("Here.")], [user("Where?"), assistant(f"He{end}re.")]):
        problem = dropped(load(family), talk)
        assert problem.reason == "control_tokens" and end in problem.detail
    assert dropped(load(family), [user("Where?"), assistant(end)]).reason == "empty_answer"


@pytest.mark.parametrize("family", ["llama3", "gemma3", "mistral"])
def test_indentation_of_an_answer_is_learned_though_the_template_trims_it(family):
    tokenizer = load(family)
    for text, kept in (("    return 1\n", "    return 1"), ("\n\n\treturn 1", "\treturn 1"), (" one\n", "one")):
        [[run]], start = learned(tokenizer, [user("def f():"), assistant(text)]), " " if family == "mistral" else ""
        assert run.startswith(start + kept + "<") and (kept == "one") == (
            changes(tokenizer, [user("def f():"), assistant(text)]) == []
        )


def test_template_variables_of_the_recipe_win(recipe, family):
    from tunesmith.data.source import Sources, template_variables

    built = recipe("qwen3", model={"chat_template_kwargs": {"enable_thinking": True}})
    tokenizer = Tokenizer.load(family("qwen3"))
    assert template_variables(tokenizer, Sources.resolve(built.data).train, built.model.chat_template_kwargs) == {
        "enable_thinking": True
    }
    assert template_variables(tokenizer, Sources.resolve(built.data).train, {}) == {"enable_thinking": False}


def test_reasoning_is_looked_for_in_every_row(tmp_path, family):
    from tunesmith.data.source import resolve, template_variables
    from tunesmith.recipe import Source

    file = tmp_path / "rows.jsonl"
    rows = [{"messages": [user(f"{n}?"), assistant("yes")]} for n in range(300)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = Tokenizer.load(family("smollm3"))
    assert template_variables(tokenizer, [resolve(Source(path=str(file)))], {}) == {"enable_thinking": False}
    with file.open("a") as more:
        more.write(json.dumps({"messages": [user("?"), assistant("<think>so</think>yes")]}) + "\n")
    assert template_variables(tokenizer, [resolve(Source(path=str(file)))], {}) == {}
