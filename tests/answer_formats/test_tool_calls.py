"""Calls are read back as the template wrote them, in whatever pieces they come."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.answer_formats import templates
from tunesmith.answer_formats.format import Call, Thought, find
from tunesmith.answer_formats.markups.named_calls import NamedCalls
from tunesmith.answer_formats.markups.python_calls import PythonCalls
from tunesmith.answer_formats.markups.quoted_calls import QuotedCalls
from tunesmith.answer_formats.tool_calls import ToolReader, find_tools
from tunesmith.inference import grammar as constrain

ENDS = {"qwen2": "<|im_end|>", "mistral": "</s>", "llama": "<|eot_id|>", "coder": "<|im_end|>", "gpt_oss": "<|call|>"}
OBJECT = lambda values: st.dictionaries(st.text(max_size=5), values, max_size=3)  # noqa: E731
VALUE = st.recursive(
    st.integers() | st.booleans() | st.none() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | OBJECT(inner),
)
CALLS = st.lists(st.tuples(st.sampled_from(["add", "look_up"]), OBJECT(VALUE)), min_size=1, max_size=3)
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
    for name in ("add", "look_up")
]
NEWER = [
    "mistral_2025",
    "mistral_ids",
    "deepseek",
    "deepseek_text",
    "kimi",
    "hunyuan",
    "cohere",
    "apertus",
    "minimax_m1",
]
KEYS = st.text("abcXYZ_0", min_size=1, max_size=5) | st.sampled_from(["from", "class"])
KEYED = st.recursive(
    st.integers()
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab{}[]()=:,\"'<> \n", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)
KEYED_CALLS = st.lists(
    st.tuples(st.sampled_from(["add", "look_up"]), st.dictionaries(KEYS, KEYED, max_size=3)), min_size=1, max_size=3
)
# In tags nothing says whether a value is a string but the schema.
TEXTS = {f"text{n}": {"type": "string"} for n in range(2)}
OTHERS = {f"other{n}": {"type": ["integer", "boolean", "null", "array", "object"]} for n in range(2)}
TAGGED = [
    {
        "type": "function",
        "function": {"name": name, "description": "", "parameters": {"type": "object", "properties": TEXTS | OTHERS}},
    }
    for name in ("add", "look_up")
]
TAGGED_CALLS = st.lists(
    st.tuples(
        st.sampled_from(["add", "look_up"]),
        st.fixed_dictionaries(
            {},
            optional={
                key: st.text(max_size=8) | st.sampled_from(["5", "null", "\n<a>\n", "</function>"]) for key in TEXTS
            }
            | {key: VALUE.filter(lambda value: not isinstance(value, str)) for key in OTHERS},
        ),
    ),
    min_size=1,
    max_size=3,
)


def split(text: str, cuts: list[int]) -> list[str]:
    at = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in pairwise(at)]


def read(reader, pieces: list[str]) -> list:
    return [said for piece in pieces for said in reader.push(piece)] + reader.finish()


def written(tok, name: str, calls: list, before: str = "", tools=TOOLS, **more) -> str:
    """The assistant's turn with calls as the template writes it after the prompt."""
    talk = [
        {"role": "user", "content": "Go."},
        {
            "role": "assistant",
            "content": before,
            **more,
            "tool_calls": [
                {
                    "id": "123456789",
                    "function": {"name": n, "arguments": json.dumps(a) if name == "deepseek_text" else a},
                }
                for n, a in calls
            ],
        },
    ]
    text = tok.render(talk, tools)
    answer = text.removeprefix(tok.render(talk[:1], tools, add_generation_prompt=True)).rstrip()
    return answer.removesuffix(ENDS.get(name, "<|im_end|>"))


def split_up(said: list) -> tuple[list, str]:
    """(calls, text) of what a reader gave."""
    calls = [s for s in said if isinstance(s, Call)]
    assert len({call.id for call in calls}) == len(calls)
    return [(s.name, json.loads(s.arguments)) for s in calls], "".join(s for s in said if isinstance(s, str))


def test_formats_are_found_in_templates(tokenizers):
    found = {name: find_tools(tok) for name, tok in tokenizers.items()}
    for name in ("llama3", "gemma3", "smollm3"):  # write no tools
        assert found[name] is None
    for name in ("qwen2", "qwen3", "thinker"):
        assert (found[name].opening, found[name].closing) == ("<tool_call>\n", "\n</tool_call>")
    assert found["coder"].opening == "<tool_call>\n<function=" and found["coder"].closing.endswith("</tool_call>")
    assert found["mistral"].opening.strip() == "[TOOL_CALLS]" and found["mistral"].form.many and found["mistral"].shown
    assert found["llama"].opening == ""
    assert found["mistral_2025"].form == NamedCalls("[ARGS]") and len(found["mistral_2025"].shown) == 2
    sections = {
        name: (found[name].begins.strip(), found[name].ends.strip()) for name in ("deepseek", "kimi", "minimax")
    }
    assert sections == {
        "deepseek": ("<|calls|>", "<|calls_end|>"),
        "kimi": ("<|section|>", "<|section_end|>"),
        "minimax": ("<minimax:tool_call>", "</minimax:tool_call>"),
    }
    assert (found["kimi"].opening, found["glm"].opening) == ("<|call|>functions.", "<tool_call>")
    assert found["lfm2"].form == found["llama4"].form == PythonCalls() and found["gemma4"].form == QuotedCalls('<|"|>')


@given(
    name=st.sampled_from(["qwen2", "mistral", "llama"]),
    calls=CALLS,
    cuts=st.lists(st.integers(0, 300), max_size=30),
    before=st.sampled_from(["", "Let me see.", "1 < 2, [ok]"]),
)
def test_calls_come_back_as_they_were_written(tokenizers, name, calls, cuts, before):
    tok = tokenizers[name]
    if name != "qwen2":
        before = ""  # these write calls alone
    if name == "llama":
        calls = calls[:1]
    answer = written(tok, name, calls, before)
    found, text = split_up(read(ToolReader(find_tools(tok), {"add": {}, "look_up": {}}), split(answer, cuts)))
    assert found == calls and text.strip() == before


@given(
    name=st.sampled_from(NEWER),
    calls=CALLS,
    cuts=st.lists(st.integers(0, 300), max_size=30),
    before=st.sampled_from(["", "Let me see.", "1 < 2, [ok]"]),
)
def test_calls_of_newer_families_come_back(tokenizers, name, calls, cuts, before):
    tok = tokenizers[name]
    answer = written(tok, name, calls, before)
    found, text = split_up(read(ToolReader(find_tools(tok), {"add": {}, "look_up": {}}), split(answer, cuts)))
    assert found == calls and text.strip() == before


@given(
    name=st.sampled_from(["gemma4", "lfm2", "llama4"]),
    calls=KEYED_CALLS,
    cuts=st.lists(st.integers(0, 300), max_size=30),
    before=st.sampled_from(["", "a {b:c}"]),
)
def test_calls_with_keys_as_they_are_come_back(tokenizers, name, calls, cuts, before):
    tok = tokenizers[name]
    before = "" if name == "llama4" else before  # which writes calls alone
    answer = written(tok, name, calls, before)
    found, text = split_up(read(ToolReader(find_tools(tok), {"add": {}, "look_up": {}}), split(answer, cuts)))
    assert found == calls and text.strip() == before


@given(
    name=st.sampled_from(["coder", "glm", "glm_4_7", "minimax", "typed"]),
    calls=TAGGED_CALLS,
    cuts=st.lists(st.integers(0, 400), max_size=30),
    before=st.sampled_from(["", "a < b <c>"]),
)
def test_calls_in_tags_come_back(tokenizers, name, calls, cuts, before):
    tok = tokenizers[name]
    answer = written(tok, name, calls, before, TAGGED)
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TAGGED}
    found, text = split_up(read(ToolReader(find_tools(tok), schemas), split(answer, cuts)))
    assert found == calls and text.strip() == before


@given(
    arguments=OBJECT(VALUE),
    cuts=st.lists(st.integers(0, 300), max_size=30),
    ended=st.booleans(),
    thought=st.sampled_from(["", "Which one? Add."]),
)
def test_calls_in_channels_come_back(tokenizers, arguments, cuts, ended, thought):
    tok = tokenizers["gpt_oss"]
    more = {"thinking": thought} if thought else {}
    answer = written(tok, "gpt_oss", [("add", arguments)], **more) + ("<|call|>" if ended else "")
    said = read(find(tok).reader("", False, TOOLS), split(answer, cuts))
    assert split_up(said) == ([("add", arguments)], "")
    assert "".join(s.text for s in said if isinstance(s, Thought)) == thought


def test_calls_in_channels_as_the_model_writes_them(tokenizers):
    begun = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'
    told = '<|start|>functions.add to=assistant<|channel|>commentary<|message|>"made up"<|end|>'
    talk = "<|channel|>commentary<|message|>I add.<|end|><|start|>assistant" + begun + told
    cut = '<|channel|>commentary to=functions.add<|message|>{"a": '
    for text, tools, calls, said in (
        (talk, TOOLS, [("add", {"a": 1})], "I add."),
        (cut, TOOLS, [], '{"a": '),
        (begun, [], [], '{"a": 1}'),
        ("No channel.<|end|>", TOOLS, [], "No channel."),
    ):
        reader = find(tokenizers["gpt_oss"]).reader("", False, tools)
        assert split_up(read(reader, list(text))) == (calls, said)


@given(
    name=st.sampled_from(["qwen2", "mistral", "llama", "coder", *templates.CALLS]),
    cuts=st.lists(st.integers(0, 60), max_size=20),
    text=st.text('ab <tol_c>[]{}TOLCAS_\n"', max_size=60),
)
def test_text_that_is_no_call_is_kept(tokenizers, name, cuts, text):
    said = read(ToolReader(find_tools(tokenizers[name]), {"add": {}}), split(text, cuts))
    assert "".join(said) == text


@pytest.mark.parametrize(("name", "call"), [("qwen2", '{"name": "add", "argum'), ("coder", "<function=add>\n<param")])
def test_a_call_cut_short_is_text(tokenizers, name, call):
    text = f"Well.\n<tool_call>\n{call}"
    calls, said = split_up(read(ToolReader(find_tools(tokenizers[name]), {"add": {}}), [text]))
    assert calls == [] and said.replace("\n", "") == text.replace("\n", "")


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "5", "5"),
        ({"type": "integer"}, "5", 5),
        ({"type": "number"}, "5", 5),
        (None, "5", 5),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "5", "5"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "None", None),
        ({"enum": ["5", "6"]}, "5", "5"),
        ({"type": "boolean"}, "True", True),
        ({"type": "integer"}, "five", "five"),
        ({}, '"a"', '"a"'),
        ({}, "NaN", "NaN"),
        ({}, "1e999", "1e999"),
        ({"type": "object"}, '{"a": [1]}', {"a": [1]}),
        ({"$ref": "#/$defs/Text"}, "5", "5"),
        ({"$ref": "#/$defs/Number"}, "5", 5),
        ({"allOf": [{"$ref": "#/$defs/Text"}, {"enum": ["5"]}]}, "5", "5"),
        ({"anyOf": [{"$ref": "#/$defs/Number"}, {"type": "null"}]}, "5", 5),
        ({"$ref": "#/$defs/Itself"}, "5", 5),
        ({"type": "object"}, "{'a': [True, None]}", {"a": [True, None]}),
    ],
)
def test_a_value_in_tags_is_what_its_schema_says(tokenizers, schema, text, value):
    answer = f"<tool_call>\n<function=add>\n<parameter=x>\n{text}\n</parameter>\n</function>\n</tool_call>"
    definitions = {
        "Text": {"type": "string"},
        "Number": {"allOf": [{"type": "integer"}]},
        "Itself": {"$ref": "#/$defs/Itself"},
    }
    tools = {"add": {"type": "object", "properties": {} if schema is None else {"x": schema}, "$defs": definitions}}
    reader = ToolReader(find_tools(tokenizers["coder"]), tools)
    assert split_up(read(reader, [answer])) == ([("add", {"x": value})], "")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("qwen2", '<tool_call>\n{{"name": "add", "arguments": {}}}\n</tool_call>'),
        ("mistral", '[TOOL_CALLS] [{{"name": "add", "arguments": {}}}]'),
        ("llama", '{{"name": "add", "parameters": {}}}'),
        ("kimi", "<|section|><|call|>functions.add:0<|args|>{}<|call_end|><|section_end|>"),
    ],
)
def test_arguments_are_json_objects_or_the_call_is_text(tokenizers, name, answer):
    """As clients get them: neither NaN nor a list, but objects written as text, and newlines in strings as they are."""
    for arguments, expected in (("null", {}), (r'"{\"a\": 1}"', {"a": 1}), ('{"a": "b\nc"}', {"a": "b\nc"})):
        reader = ToolReader(find_tools(tokenizers[name]), {"add": {}})
        assert split_up(read(reader, list(answer.format(arguments))))[0] == [("add", expected)]
    for arguments in ('"not json"', "[1, 2]", '{"n": NaN}', "5", '"[1]"'):
        text = answer.format(arguments)
        said = read(ToolReader(find_tools(tokenizers[name]), {"add": {}}), list(text))
        assert "".join(said) == text


def test_calls_of_a_template_that_writes_none_stand_in_the_text(tokenizers):
    """As LFM2's: its vocabulary has marks for calls."""
    tok, calls = tokenizers["lfm2_in_text"], [("add", {"a": "it's", "b": [1, None]}), ("look_up", {})]
    message = find(tok).message(
        {
            "role": "assistant",
            "content": "Well. ",
            "tool_calls": [
                {"id": "1", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
            ],
        }
    )
    assert message == {
        "role": "assistant",
        "content": 'Well. <|tool_call_start|>[add(a="it\'s", b=[1, None]), look_up()]<|tool_call_end|>',
    }
    said = read(ToolReader(find_tools(tok), {"add": {}, "look_up": {}}), list(message["content"]))
    assert split_up(said) == (calls, "Well.")


def test_a_call_after_one_that_is_none_is_read(tokenizers):
    bad, good = '<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>', '{"name": "add", "arguments": {"a": 1}}'
    cut = '<tool_call>\n{"name": "add", "arguments": {"a'
    for begin in (bad, cut):
        said = read(
            ToolReader(find_tools(tokenizers["qwen3"]), {"add": {}}),
            list(f"{begin}\n<tool_call>\n{good}\n</tool_call>"),
        )
        assert split_up(said) == ([("add", {"a": 1})], begin)


SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["colour", "count"],
    "properties": {
        "colour": {"enum": ["red", "green"]},
        "count": {"type": "integer", "maximum": 99},
        "name": {"type": "string"},
    },
}
PAINT = [{"type": "function", "function": {"name": "paint", "description": "", "parameters": SCHEMA}}]


@pytest.mark.parametrize(
    "name", [*ENDS, *(name for name in templates.CALLS if name not in ("deepseek_text", "lfm2_in_text"))]
)
def test_the_grammar_takes_what_the_template_writes(tokenizers, name):
    """And after it nothing but the end."""
    pytest.importorskip("llguidance")
    tok = tokenizers[name]
    stops = frozenset(tok.encode(ENDS.get(name, "<|im_end|>"))[0])
    lark = find(tok).grammar(tok, [*PAINT, *TOOLS], False)
    for arguments in ({"colour": "green", "count": 12}, {"colour": "red", "count": 3, "name": "a </b>\nc"}):
        grammar = constrain.from_lark(tok, stops, lark)()
        accept_text(grammar, tok, written(tok, name, [("paint", arguments)], tools=PAINT))
        assert set(grammar.allowed().nonzero().flatten().tolist()) == stops
    wrong = constrain.from_lark(tok, stops, lark)()
    text = written(tok, name, [("paint", {"colour": "blue", "count": 12})], tools=PAINT)
    with pytest.raises(AssertionError):
        accept_text(wrong, tok, text)


def accept_text(grammar, tokenizer, text: str) -> None:
    """Raises AssertionError at the first token that the grammar does not allow."""
    for token in tokenizer.encode_rest(text)[0]:
        assert grammar.allowed()[token], tokenizer.decode([token])
        grammar.accept(token)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"é": {"enum": ["ü", "", 'a"b']}}},
        {"properties": 5},
        {},
        {"properties": {"a": True, "b": {"$ref": "#/x"}}, "required": 5},
        {
            "$defs": {"n": {"type": "integer"}},
            "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
        },
    ],
)
def test_the_grammar_of_tags_takes_any_schema(tokenizers, schema):
    pytest.importorskip("llguidance")
    tok = tokenizers["coder"]
    tool = {"type": "function", "function": {"name": "paint", "parameters": schema}}
    stops = frozenset(tok.encode("<|im_end|>")[0])
    grammar = constrain.from_lark(tok, stops, find(tok).grammar(tok, [tool], False))()
    arguments = {"é": "ü"} if "é" in str(schema) else {"a": 5, "b": [5]} if "$defs" in schema else {}
    for token in tok.encode_rest(written(tok, "coder", [("paint", arguments)]))[0]:
        assert grammar.allowed()[token], tok.decode([token])
        grammar.accept(token)


ITEMS = {
    "type": "object",
    "required": ["items"],
    "additionalProperties": False,
    "properties": {"items": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Item"}}},
    "$defs": {
        "Item": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"enum": ["bolt", "nut"]},
                "parts": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
            },
        }
    },
}


@pytest.mark.parametrize("name", ["qwen2", "mistral", "llama", "coder", "gpt_oss", "mistral_2025", "glm", "lfm2"])
def test_a_demanded_call_keeps_to_a_schema_with_references(tokenizers, name):
    pytest.importorskip("llguidance")
    tok = tokenizers[name]
    stops = frozenset(tok.encode(ENDS.get(name, "<|im_end|>"))[0])
    tools = [{"type": "function", "function": {"name": tool, "parameters": ITEMS}} for tool in ("order", "offer")]
    lark = find(tok).grammar(tok, tools, False)
    parts = [{"name": "bolt", "parts": [{"name": "nut"}]}]
    assert follows(tok, constrain.from_lark(tok, stops, lark)(), written(tok, name, [("offer", {"items": parts})]))
    assert not follows(
        tok, constrain.from_lark(tok, stops, lark)(), written(tok, name, [("offer", {"items": [{"name": "nail"}]})])
    )


def follows(tok, grammar, text: str) -> bool:
    """Whether a grammar allows each token of a text."""
    for token in tok.encode_rest(text)[0]:
        if not grammar.allowed()[token]:
            return False
        grammar.accept(token)
    return True
