"""The supervised tokens, compared with answers written by hand and with an independent computation."""

import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tunesmith.data.masking import encode_chat, encode_text
from tunesmith.data.reasoning import switch, switched
from tunesmith.data.rows import Chat, RowProblem
from tunesmith.data.tokenizer import Tokenizer

HOME = TemporaryDirectory(prefix="tiny-")
ENDS = {
    "llama3": "<|eot_id|>",
    "qwen2": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "mistral": "</s>",
    "gemma3": "<end_of_turn>",
    "gemma2": "<end_of_turn>",
    "phi3": "<|end|>",
    "smollm3": "<|im_end|>",
    "olmo2": "<|endoftext|>",
    "qwen3_moe": "<|im_end|>",
    "mixtral": "</s>",
    "olmoe": "<|endoftext|>",
    "gpt_oss": "<|return|>",
}
STARTS = {
    "qwen3": "<think>\n\n</think>\n\n",
    "qwen3_moe": "<think>\n\n</think>\n\n",
    "mistral": " ",
    "mixtral": " ",
    "gpt_oss": "<|channel|>final<|message|>",
}
SPLIT = {"qwen3", "qwen3_moe", "gpt_oss"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@lru_cache
def load(family: str, chat_template: str = "auto", enable_thinking: bool | None = None) -> Tokenizer:
    kwargs = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    return Tokenizer.load(folder(family), chat_template, kwargs)


@lru_cache
def folder(family: str) -> Path:
    path = Path(HOME.name) / family
    tiny.save_tokenizer(family, path)
    return path


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def learned(tokenizer, messages, mask="assistant", tools=None) -> list[list[str]]:
    """For each example the runs of supervised tokens, decoded in their place."""
    found = []
    for example in encode_chat(tokenizer, Chat(messages, tools), mask):
        assert len(example.ids) == len(example.supervised)
        assert example.ids[:2] != [tokenizer.bos_id] * 2
        found.append(list(runs(tokenizer, example)))
    return found


def runs(tokenizer, example):
    marks = "".join("x" if s else "." for s in example.supervised)
    for run in re.finditer("x+", marks):
        before, upto = (tokenizer.decode(example.ids[:at]) for at in run.span())
        yield upto[len(before) :]


TALK = [user("Hi"), assistant("Hello, you"), user("Why?"), assistant("Because\nso")]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_turn_two_turns_and_system(family):
    tokenizer, start, end = load(family), STARTS.get(family, ""), ENDS[family]
    first, second = f"{start}Hello, you{end}", f"{start}Because\nso{end}"
    both = [[first], [second]] if family in SPLIT else [[first, second]]
    assert learned(tokenizer, TALK[:2]) == [[first]]
    assert learned(tokenizer, TALK) == both
    assert learned(tokenizer, TALK, "last") == [[second]]
    # Mistral moves the system turn to the last user turn, which rewrites history.
    with_system = [[first], [second]] if family in ("mistral", "mixtral") else both
    assert learned(tokenizer, [system("Be kind."), *TALK]) == with_system
    assert [e.changes for e in encode_chat(tokenizer, Chat([system("Be kind."), *TALK]), "assistant")] == (
        [["history_split"]] * 2 if len(with_system) == 2 else [[]]
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_mask_all_and_weights(family):
    tokenizer, start, end = load(family), STARTS.get(family, ""), ENDS[family]
    [example] = encode_chat(tokenizer, Chat(TALK), "all")
    unlearned = [i for i, s in enumerate(example.supervised) if not s]
    text = tokenizer.render(TALK)
    assert unlearned == ([0] if tokenizer.bos_token and text.startswith(tokenizer.bos_token) else [])
    assert example.ids == tokenizer.encode(text)[0]
    muted = [TALK[0], {**TALK[1], "weight": 0}, *TALK[2:]]
    assert learned(tokenizer, muted) == [[f"{start}Because\nso{end}"]]
    with pytest.raises(RowProblem, match="no_supervised_token"):
        learned(tokenizer, muted[:2])


@pytest.mark.parametrize(
    "family, call, answer",
    [
        (
            "qwen2",
            '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call><|im_end|>',
            "3<|im_end|>",
        ),
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": "é"}}]</s>', " 3</s>"),
        (
            "gpt_oss",
            ' to=functions.add<|channel|>commentary json<|message|>{"a": 1, "b": "é"}<|call|>',
            "<|channel|>final<|message|>3<|return|>",
        ),
    ],
)
def test_tool_calls_are_learned_and_results_are_not(family, call, answer):
    messages = [user("1 + 2?"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "3"}, assistant("3")]
    assert learned(load(family), messages, tools=TOOLS) == [[call, answer]]
    (example,) = encode_chat(load(family), Chat(messages[:2], TOOLS), "assistant")
    asked = load(family).render(messages[:1], TOOLS, add_generation_prompt=True)
    assert example.ids[: example.answer[0]] == load(family).encode(asked)[0] and example.asked == "1 + 2?"


def test_reasoning_is_learned_where_the_template_keeps_it():
    messages = [user("2+2?"), assistant("4", reasoning_content="add them")]
    expected = [["<think>\nadd them\n</think>\n\n4<|im_end|>"]]
    assert learned(load("qwen3"), messages) == expected
    assert learned(load("qwen3"), [user("2+2?"), assistant("<think>add them</think>4")]) == expected
    assert learned(load("gpt_oss"), messages) == [
        ["<|channel|>analysis<|message|>add them<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"]
    ]


def test_parts_that_an_example_leaves_out_are_recorded():
    (example,) = encode_chat(load("llama3"), Chat([user("a?"), assistant("b"), user("c?")]), "assistant")
    assert example.changes == ["turns_unused"]
    assert list(runs(load("llama3"), example)) == ["b<|eot_id|>"]


@pytest.mark.parametrize("family", ["qwen3", "smollm3"])
def test_without_reasoning_the_empty_think_block_belongs_to_the_prompt(family):
    assert switch(load(family)) == "enable_thinking" and switch(load("qwen2")) is None
    assert switched(load(family), "enable_thinking", wanted=False) == {"enable_thinking": False}
    assert switched(load(family), "enable_thinking", wanted=True) == {}
    tokenizer = load(family, enable_thinking=False)
    assert learned(tokenizer, TALK[:2]) == [["Hello, you<|im_end|>"]]
    last = encode_chat(tokenizer, Chat(TALK), "assistant")[-1]
    assert tokenizer.decode(last.ids[: last.answer[0]]).endswith("<think>\n\n</think>\n\n")


def test_a_template_without_system_turns_gets_it_in_the_first_user_turn(tmp_path):
    turns = "{% for m in messages %}{{ '<start_of_turn>' + m.role + '\n' + m.content + '<end_of_turn>\n' }}{% endfor %}"
    refusing, dropping = tmp_path / "refusing.jinja", tmp_path / "dropping.jinja"
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    refusing.write_text("{{ bos_token }}" + refuse + turns)
    dropping.write_text("{{ bos_token }}" + turns.replace("in messages", "in messages if m.role != 'system'"))
    for template in (refusing, dropping):
        [example] = encode_chat(load("gemma3", str(template)), Chat([system("Be kind."), *TALK[:2]]), "assistant")
        assert example.changes == ["system_merged"]
        assert "<start_of_turn>user\nBe kind.\n\nHi<end_of_turn>" in load("gemma3").decode(example.ids)


@pytest.mark.parametrize(
    "template, detail",
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "no special token"),
        ("{% for m in messages %}{{ m.content | upper }}</s>{% endfor %}", "does not write|part_unwritten"),
        ("{% for m in messages %}{{ m.content + m.content + '</s>' }}{% endfor %}", "2 times"),
        ("{{ messages[0].text.lower() }}", "template_refused"),
    ],
)
def test_an_unproved_mask_is_refused(template, detail, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(template)
    with pytest.raises(RowProblem, match=detail):
        learned(load("mistral", str(file)), TALK)


def test_with_mask_all_each_answer_is_proved_and_the_rest_may_change():
    tokenizer, talk = load("mistral"), [system("▁Be▁kind."), user("▁"), *TALK[1:]]
    (example,) = encode_chat(tokenizer, Chat(talk), "all")
    assert [i for i, s in enumerate(example.supervised) if not s] == [0]
    assert tokenizer.decode(example.ids[slice(*example.answer)]).strip() == "Because\nso</s>"
    for turn in (2, 4):
        unprovable = [*talk[:turn], assistant("a▁b"), *talk[turn + 1 :]]
        with pytest.raises(RowProblem, match="mask_unproved"):
            encode_chat(tokenizer, Chat(unprovable), "all")


def test_plain_text_gets_bos_and_eos_once():
    for family in ("llama3", "qwen2", "mistral"):
        tokenizer = load(family)
        bos, eos = (tokenizer.bos_token or "") if family != "qwen2" else "", tokenizer.eos_token
        assert tokenizer.decode(encode_text(tokenizer, "Some text").ids).replace(" ", "") == f"{bos}Sometext{eos}"
        assert encode_text(tokenizer, f"{bos}Some text{eos}").ids[:2].count(tokenizer.bos_id) <= 1


TEXT = st.one_of(
    st.text(st.sampled_from("ab \n\t.é\u0301ﬁ中🙂👍🏽\u200d<|>▁\u00a0"), min_size=1, max_size=12),
    st.text(min_size=1, max_size=12),
    st.sampled_from(["<s>", "<|im_end|>", "<|begin_of_text|> x", "\n\n\nfoo", "  bar  ", "<bos>", "</think>"]),
)


PLAIN = st.text(st.sampled_from("ab\n"), min_size=1, max_size=4)
# What sentencepiece cannot tell from a space may stand in a prompt, but not in an answer.
SYSTEM = TEXT | st.text(st.sampled_from("▁ a\n"), min_size=1, max_size=4)
REFUSED_FOR = ("mask_unproved", "template_refused", "control_tokens", "part_unwritten", "empty_answer")


@settings(max_examples=400)
@given(
    family=st.sampled_from([*tiny.FAMILIES, "plain", "chatml"]),
    given_system=st.none() | SYSTEM,
    texts=st.one_of([st.lists(text, min_size=2, max_size=6) for text in (TEXT, PLAIN)]).filter(
        lambda texts: len(texts) % 2 == 0
    ),
)
def test_learned_text_is_the_answers(family, given_system, texts):
    built_in = {"plain": ("mistral", "plain"), "chatml": ("qwen2", "chatml")}
    tokenizer = load(*built_in.get(family, (family,)))
    messages = [assistant(text) if i % 2 else user(text) for i, text in enumerate(texts)]
    messages = messages if given_system is None else [system(given_system), *messages]
    try:
        examples = encode_chat(tokenizer, Chat(messages), "assistant")
    except RowProblem as problem:
        examples = problem
    if isinstance(examples, RowProblem):
        assert examples.reason in REFUSED_FOR
        assert not _plain("".join([*texts, given_system or ""])), examples
        return
    answers = [_written(family, text) for text in texts[1::2]]
    got = [run for example in examples for run in runs(tokenizer, example)]
    assert [_nfc(family, g) for g in got] == [_nfc(family, a) for a in answers]
    assert all(e.ids[:2] != [tokenizer.bos_id] * 2 for e in examples)
    last = examples[-1]
    start, end = last.answer
    assert all(last.supervised[start:end]) and not last.supervised[start - 1] and not any(last.supervised[end:])
    assert last.asked.endswith(texts[-2])
    asked = tokenizer.render(messages[:-1], add_generation_prompt=True)
    if given_system is None and len(texts) == 2:
        assert last.ids[:start] == tokenizer.encode(asked)[0]
    if _plain("".join(texts)) and all(text == text.strip() for text in texts):
        (everything,) = encode_chat(tokenizer, Chat(messages), "all")
        assert everything.ids[slice(*everything.answer)] == last.ids[slice(*last.answer)]


def _plain(text: str) -> bool:
    """Text that no template has a reason to refuse."""
    return not re.search(r"<|>|think|▁", text) and bool(text.strip())


def _nfc(family: str, text: str) -> str:
    return unicodedata.normalize("NFC", text) if family.startswith(("qwen", "chatml")) else text


def _written(family: str, text: str) -> str:
    """Returns the text that a model of the family should generate for an answer, by its documentation."""
    if family in ("llama3", "gemma3", "gemma2", "mistral", "mixtral"):
        indentation = text[: len(text) - len(text.lstrip())].rpartition("\n")[2]
        is_code = re.fullmatch(r"[ \t]{2,}|\t", indentation) and text.strip()
        text = (indentation if is_code else "") + text.strip()
    elif family in ("qwen3", "qwen3_moe", "smollm3"):
        text = text.lstrip("\n")
    end = {"plain": "</s>", "chatml": "<|im_end|>"}.get(family) or ENDS[family]
    return STARTS.get(family, "") + text + end
