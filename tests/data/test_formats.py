"""Data formats: each known spelling gives the Chat written by hand here, and no input raises an unexpected
exception."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import formats, records
from tunesmith.data.rows import REASONS, Chat, Raw, RowProblem, Text, Where, digest
from tunesmith.data.source import to_row
from tunesmith.errors import UserError


def say(*turns: str) -> list[dict]:
    """Messages from "role: content"."""
    return [dict(zip(("role", "content"), turn.split(": ", 1))) for turn in turns]


QA = say("user: 2+2?", "assistant: 4")
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CALLED = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "It is 4"},
]
PARTS = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
PERSONS = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
LONGER = say("user: hi", "assistant: ho", "user: 2+2?", "assistant: 4")
SQUAD = {"text": ["4", "four"], "answer_start": [0, 1]}

KNOWN = [
    ("messages", {"messages": QA}, QA),
    ("messages", {"messages": json.dumps(QA)}, QA),
    ("messages", {"conversations": [*QA, {"role": "user", "content": "and?"}]}, [*QA, *say("user: and?")]),
    ("messages", {"messages": [{"role": "developer", "content": " s "}, *QA]}, [*say("system:  s "), *QA]),
    ("messages", {"messages": [{"role": "user", "content": PARTS}, QA[1]]}, QA),
    (
        "messages",
        {"messages": [QA[0], QA[1] | {"thinking": "hm", "weight": 0, "extra": 1}]},
        [QA[0], QA[1] | {"reasoning_content": "hm", "weight": 0}],
    ),
    (
        "messages",
        {
            "messages": [
                CALLED[0],
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}],
                },
                *CALLED[2:],
            ]
        },
        CALLED,
    ),
    (
        "messages",
        {
            "messages": [
                CALLED[0],
                {"role": "assistant", "function_call": CALL["function"]},
                {"role": "function", "content": "4"},
                CALLED[3],
            ]
        },
        CALLED,
    ),
    (
        "sharegpt",
        {"system": "s", "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        [*say("system: s"), *QA],
    ),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "2+2?"},
                {"from": "function_call", "value": json.dumps(CALL["function"])},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "It is 4"},
            ]
        },
        CALLED,
    ),
    ("alpaca", {"instruction": "2+2?", "input": "", "output": "4", "text": "all"}, QA),
    ("alpaca", {"instruction": "Add", "context": "2 2", "response": "4"}, say("user: Add\n\n2 2", "assistant: 4")),
    (
        "alpaca",
        {"instruction": "2+2?", "output": "4", "history": [["hi", "ho"]], "system": "s"},
        [*say("system: s", "user: hi", "assistant: ho"), *QA],
    ),
    ("prompt_completion", {"prompt": "2+2?", "completion": "4"}, QA),
    ("prompt_completion", {"prompt": QA[:1], "chosen": QA[1:], "rejected": "5"}, QA),
    ("prompt_completion", {"prompt": "2+2?", "chosen": QA}, QA),
    (
        "messages",
        {"messages": [*LONGER[:1], LONGER[1] | {"train": False}, LONGER[2] | {"train": False}, LONGER[3]]},
        [LONGER[0], LONGER[1] | {"weight": 0}, *LONGER[2:]],
    ),
    (
        "messages",
        {"messages": [QA[0], {"role": "function_call", "content": json.dumps(CALL["function"])}, *CALLED[2:]]},
        CALLED,
    ),
    (
        "messages",
        {
            "messages": [
                QA[0],
                {"role": "tool_call", "content": json.dumps([CALL])},
                {"role": "ipython", "content": "4"},
                CALLED[3],
            ]
        },
        CALLED,
    ),
    (
        "messages",
        {
            "messages": [
                QA[0],
                {"role": "assistant", "tool_calls": [{"name": "add", "parameters": {"a": 2}}]},
                *CALLED[2:],
            ]
        },
        CALLED,
    ),
    ("messages", {"messages": str(QA)}, QA),
    ("messages", {"messages": str([QA[0] | {"content": "a\\d 'x'"}, QA[1]])}, say("user: a\\d 'x'", "assistant: 4")),
    ("messages", {"system_prompt": "s", "messages": QA}, [*say("system: s"), *QA]),
    ("messages", {"system": "s", "messages": [*say("system: s\n"), *QA]}, [*say("system: s\n"), *QA]),
    ("messages", {"system": "s", "messages": [*say("system: t"), *QA]}, [*say("system: s", "system: t"), *QA]),
    ("messages", {"messages": QA[:1], "chosen": QA[1], "rejected": say("assistant: 5")[0]}, QA),
    ("sharegpt", {"conversations": PERSONS[:1], "chosen": PERSONS[1], "rejected": PERSONS[0]}, QA),
    (
        "sharegpt",
        {"conversations": [PERSONS[0], PERSONS[1] | {"masked": True, "reasoning": "hm"}]},
        [QA[0], QA[1] | {"weight": 0, "reasoning_content": "hm"}],
    ),
    (
        "alpaca",
        {"instruction": "Add", "context": "Sums", "input": "2 2", "chosen": "4", "rejected": "5"},
        say("user: Add\n\nSums\n\n2 2", "assistant: 4"),
    ),
    ("alpaca", {"instruction": "2+2?", "output": "4", "history": LONGER[:2], "label": False}, LONGER),
    (
        "prompt_completion",
        {"prompt": "2+2?", "completion": "4", "history": json.dumps([["hi", "ho"]]), "label": True},
        LONGER,
    ),
    (
        "prompt_completion",
        {"prompt": "2+2?", "response": "4", "system_prompt": "s", "reasoning_content": "hm"},
        [*say("system: s"), QA[0], QA[1] | {"reasoning_content": "hm"}],
    ),
    ("prompt_completion", {"chosen": QA, "rejected": say("user: 2+2?", "assistant: 5")}, QA),
    ("question_answer", {"query": "2+2?", "response": "4", "history": [["hi", "ho"]]}, LONGER),
    (
        "question_answer",
        {"instruction": "Add", "context": "Sums", "question": "2 2", "answer": "4"},
        say("user: Add\n\nSums\n\n2 2", "assistant: 4"),
    ),
    ("question_answer", {"query": "2+2?", "answers": json.dumps([CALL["function"]])}, CALLED[:2]),
    ("question_answer", {"question": "2+2?", "answers": SQUAD}, QA),
    (
        "question_answer",
        {"question": "2+2?", "answer": "4", "context": "Sums"},
        say("user: Sums\n\n2+2?", "assistant: 4"),
    ),
]


@pytest.mark.parametrize("name, raw, messages", KNOWN)
def test_each_spelling_is_recognised_and_read(name, raw, messages):
    assert formats.recognise([raw], "a.jsonl") == name
    row = formats.get(name).to_row(raw)
    assert row == Chat(messages) and digest(row) == digest(Chat(messages))


@pytest.mark.parametrize("tools", [[TOOL], [TOOL["function"]], json.dumps([TOOL])])
def test_tools_are_functions_in_one_shape(tools):
    for raw in (
        {"messages": CALLED},
        {"prompt": "a", "completion": "b"},
        {"question": "a", "answer": "b"},
        {"instruction": "a", "output": "b"},
        {"conversations": PERSONS},
    ):
        for column in ("tools", "functions"):
            assert formats.get(formats.recognise([raw], "a")).to_row(raw | {column: tools}).tools == [TOOL]


ROW_SHAPES = {
    "messages": {"messages": QA},
    "sharegpt": {"conversations": PERSONS},
    "text": {"text": "a"},
    "alpaca": {"instruction": "2+2?", "output": "4"},
    "prompt_completion": {"prompt": "2+2?", "chosen": "4"},
    "question_answer": {"question": "2+2?", "answer": "4"},
}


@pytest.mark.parametrize("name", ROW_SHAPES)
def test_what_a_format_does_not_read_is_named(name):
    """Reports non-empty columns, a column that `columns` replaces, and keys of turns, unless they were read."""

    def unread(raw: dict, columns: dict) -> dict:
        found = {}
        row = to_row(Raw(Where("a", 1), raw), name, columns, found)
        assert not isinstance(row, RowProblem)
        return found

    raw = ROW_SHAPES[name]
    assert unread(raw, {}) == {}
    assert unread(raw | {"source": "x", "score": 0, "none": None, "empty": ""}, {}) == {"source": 1, "score": 1}
    first = next(iter(raw))
    assert unread(
        {"mine": raw[first], first: "old", "other": "x"} | {k: raw[k] for k in raw if k != first},
        {first: "mine", "unknown": "other"},
    ) == {first: 1, "other": 1}


def test_keys_of_turns_that_are_not_read_are_named():
    turns = [QA[0] | {"name": "Ann", "train": True}, QA[1] | {"refusal": False, "weight": 1}]
    for messages in (turns, json.dumps(turns), str(turns)):
        found = {}
        to_row(Raw(Where("a", 1), {"messages": messages}), "messages", {}, found)
        assert found == {"messages[].name": 1, "messages[].train": 1, "messages[].refusal": 1}


def test_a_new_key_in_each_row_does_not_fill_memory():
    found = {}
    for number in range(2000):
        records.count(found, [f"key{number}"])
    assert len(found) <= records.MOST_NAMES + 1 and sum(found.values()) == 2000
    assert records.describe({"b": 1, "a": 1, "c\n": 1200}, most=2) == r"'c\n' (1,200 rows), a (1 row), and 1 more"


@pytest.mark.parametrize(
    "name, raw",
    [
        ("prompt_completion", {"prompt": "a", "completion": "b", "label": False}),
        ("prompt_completion", {"prompt": "a", "completion": "b", "label": "False"}),
        ("messages", {"messages": QA, "label": False}),
        ("sharegpt", {"conversations": PERSONS, "kto_tag": "false"}),
        ("alpaca", {"instruction": "a", "output": "b", "kto_tag": False}),
        ("question_answer", {"question": "a", "answer": "b", "rejected": True}),
    ],
)
def test_answers_that_are_marked_as_bad_are_not_learned(name, raw):
    with pytest.raises(RowProblem) as problem:
        formats.get(name).to_row(raw)
    assert problem.value.reason == "marked_bad"


def test_text_is_text_and_not_stripped():
    assert formats.recognise([{"text": "a", "url": "b"}], "x") == "text"
    assert formats.get("text").to_row({"content": " a\n"}) == Text(" a\n")


@pytest.mark.parametrize(
    "messages, reason",
    [
        (say("user: a"), "empty_answer"),
        (say("system: a"), "empty_answer"),
        (say("user: a", "assistant: "), "empty_answer"),
        (say("user: a", "narrator: b"), "unknown_role"),
        ([{"role": ["user"], "content": "a"}], "unknown_role"),
        (say("tool: a", "assistant: b"), "wrong_role_order"),
        (say("user: a", "tool: b", "assistant: c"), "wrong_role_order"),
        ([CALLED[0], CALLED[1], CALLED[3]], "wrong_role_order"),
        ([], "wrong_shape"),
        ("not a list", "wrong_shape"),
        ([{"role": "user", "content": [{"type": "image"}]}, QA[1]], "wrong_shape"),
        ([QA[0], QA[1] | {"weight": 0.5}], "wrong_shape"),
        ([QA[0], QA[1] | {"train": "perhaps"}], "wrong_shape"),
        ([QA[0], {"role": "function_call", "content": "add(2)"}], "wrong_shape"),
        ([QA[0], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "wrong_shape"),
    ],
)
def test_an_invalid_conversation_is_refused_with_a_reason(messages, reason):
    with pytest.raises(RowProblem) as problem:
        formats.get("messages").to_row({"messages": messages})
    assert problem.value.reason == reason


def test_columns_are_renamed():
    renamed = formats.rename({"q": "2+2?", "reply": "4", "answer": "old"}, {"question": "q", "answer": "reply"})
    assert formats.get(formats.recognise([renamed], "a")).to_row(renamed) == Chat(QA)


def test_unknown_columns_and_formats_are_refused_with_a_way_out():
    with pytest.raises(UserError, match="a.csv.*columns q, a; known formats are alpaca.*text.*`columns:"):
        formats.recognise([{"q": "1", "a": "2"}], "a.csv")
    with pytest.raises(UserError, match="fit alpaca and question_answer; choose with `format:`"):
        formats.recognise([{"instruction": "1", "output": "2", "question": "3", "answer": "4"}], "a.csv")
    with pytest.raises(UserError, match="unknown format 'mesages'.*messages"):
        formats.get("mesages")


KEYS = st.sampled_from(
    "messages conversations conversation role content from value tool_calls function_call function "
    "name arguments id type text tools functions system weight reasoning thinking tool_call_id "
    "instruction input output response history prompt completion chosen question answer answers "
    "context system_prompt kto_tag label rejected train masked query".split()
) | st.text(max_size=3)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        [
            "user",
            "assistant",
            "system",
            "tool",
            "human",
            "gpt",
            "function_call",
            "[{",
            "[]",
            "{}",
            '{"name": "f"}',
            '[{"role": "user"}]',
            '{"a": "\\ud800"}',
            "text",
            "null",
            "1",
        ]
    )
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={"content": LEAVES | JSON, "tool_calls": JSON, "weight": LEAVES, "name": LEAVES},
)
RAWS = st.dictionaries(KEYS, JSON | st.lists(TURN, max_size=4), max_size=6)


@settings(max_examples=600)
@given(RAWS)
def test_any_mapping_is_a_row_or_a_problem(raw):
    for format in formats.FORMATS.values():
        assert isinstance(format.recognises(raw), bool)
        try:
            row = format.to_row(raw)
        except RowProblem as problem:
            row = problem
        if isinstance(row, RowProblem):
            assert row.reason in REASONS and "\n" not in row.detail
        else:
            check(row)


def check(row) -> None:
    """Checks independently what a Row guarantees."""
    digest(row)
    if isinstance(row, Text):
        assert row.text
        return
    assert any(message["role"] == "assistant" for message in row.messages)
    for message in row.messages:
        assert message["role"] in ("system", "user", "assistant", "tool") and isinstance(message["content"], str)
        assert message["role"] != "assistant" or message["content"].strip() or message["tool_calls"]
        assert all(isinstance(call["function"]["arguments"], dict) for call in message.get("tool_calls", []))


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["s", "u", "a", "c", "t"]), max_size=7))
def test_results_belong_to_calls_and_neighbouring_answers_are_one(letters):
    turns = {
        "s": say("system: x"),
        "u": say("user: x"),
        "a": say("assistant: x"),
        "c": [CALLED[1]],
        "t": say("tool: x"),
    }
    messages = [message for letter in letters for message in turns[letter]]
    sequence = "".join(letters)
    try:
        kept = len(formats.get("messages").to_row({"messages": messages}).messages)
    except RowProblem:
        kept = 0
    right = re.fullmatch("(s|u|at*|c+t+)*c*", sequence) and {"a", "c"} & set(letters)
    assert kept == (len(re.sub("a*c+|a+", "x", sequence)) if right else 0)


def test_text_and_the_call_that_follows_it_are_one_answer():
    talk = [
        CALLED[0],
        {"from": "gpt", "value": "Let me see."},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        *CALLED[2:],
    ]
    talk = [{"from": t.get("from", t.get("role")), "value": t.get("value", t.get("content"))} for t in talk]
    row = formats.get("sharegpt").to_row({"conversations": talk})
    assert row.messages == [CALLED[0], CALLED[1] | {"content": "Let me see."}, *CALLED[2:]]
    thinking = [QA[0], {"role": "assistant", "content": "a", "reasoning": "r"}, {"role": "assistant", "content": "b"}]
    assert formats.get("messages").to_row({"messages": thinking}).messages == [
        QA[0],
        {"role": "assistant", "content": "a\n\nb", "reasoning_content": "r"},
    ]
    muted = [QA[0], {"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "b"}]
    assert formats.get("messages").to_row({"messages": muted}).messages == muted
