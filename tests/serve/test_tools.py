"""Calls are read back as the template wrote them, in whatever pieces they come."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.serve.tools import Call, ToolReader, find_format

LLAMA = """{{ bos_token }}{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\n\n' + tools | tojson }}
{{- '<|eot_id|>' }}{% endif %}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}
{%- if m.tool_calls %}{{ '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
{{- m.tool_calls[0].function.arguments | tojson + '}' }}{% else %}{{ m.content }}{% endif %}{{ '<|eot_id|>' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
OBJECT = lambda values: st.dictionaries(st.text(max_size=5), values, max_size=3)  # noqa: E731
VALUE = st.recursive(st.integers() | st.booleans() | st.none() | st.text(max_size=8),
                     lambda inner: st.lists(inner, max_size=3) | OBJECT(inner))
CALLS = st.lists(st.tuples(st.sampled_from(["add", "look_up"]), OBJECT(VALUE)), min_size=1, max_size=3)
TOOLS = [{"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}
         for name in ("add", "look_up")]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in ("qwen2", "qwen3", "mistral", "llama3"):
        tiny.save_tokenizer(name, folder / name)
    (folder / "llama.jinja").write_text(LLAMA)
    found = {name: Tokenizer.load(folder / name) for name in ("qwen2", "qwen3", "mistral", "llama3")}
    return found | {"llama": Tokenizer.load(folder / "llama3", str(folder / "llama.jinja"))}


def split(text: str, cuts: list[int]) -> list[str]:
    at = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in zip(at, at[1:])]


def read(reader: ToolReader, pieces: list[str]) -> list:
    return [said for piece in pieces for said in reader.push(piece)] + reader.finish()


def test_formats_are_found_in_templates(tokenizers):
    found = {name: find_format(tok) for name, tok in tokenizers.items()}
    assert found["llama3"] is None  # its template writes no tools
    assert (found["qwen2"].opening, found["qwen2"].closing) == ("<tool_call>\n", "\n</tool_call>")
    assert found["qwen3"] == found["qwen2"]
    assert found["mistral"].opening.strip() == "[TOOL_CALLS]" and found["mistral"].many and found["mistral"].shown
    assert (found["llama"].opening, found["llama"].arguments) == ("", "parameters")


@given(name=st.sampled_from(["qwen2", "mistral", "llama"]), calls=CALLS,
       cuts=st.lists(st.integers(0, 300), max_size=30), before=st.sampled_from(["", "Let me see.", "1 < 2, [ok]"]))
def test_calls_come_back_as_they_were_written(tokenizers, name, calls, cuts, before):
    tok = tokenizers[name]
    if name != "qwen2":
        before = ""  # these write calls alone
    if name == "llama":
        calls = calls[:1]
    talk = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": before, "tool_calls": [
        {"id": "123456789", "function": {"name": n, "arguments": a}} for n, a in calls]}]
    text = tok.render(talk, TOOLS)
    answer = text.removeprefix(tok.render(talk[:1], TOOLS, add_generation_prompt=True)).rstrip()
    answer = answer.removesuffix({"qwen2": "<|im_end|>", "mistral": "</s>", "llama": "<|eot_id|>"}[name])
    said = read(ToolReader(find_format(tok), {"add", "look_up"}), split(answer, cuts))
    found = [(s.name, json.loads(s.arguments)) for s in said if isinstance(s, Call)]
    assert found == calls
    assert "".join(s for s in said if isinstance(s, str)).strip() == before
    assert len({s.id for s in said if isinstance(s, Call)}) == len(calls)


@given(name=st.sampled_from(["qwen2", "mistral", "llama"]), cuts=st.lists(st.integers(0, 60), max_size=20),
       text=st.text("ab <tol_c>[]{}TOLCAS_\n\"", max_size=60))
def test_text_that_is_no_call_is_kept(tokenizers, name, cuts, text):
    said = read(ToolReader(find_format(tokenizers[name]), {"add"}), split(text, cuts))
    assert "".join(said) == text


def test_a_call_cut_short_is_text(tokenizers):
    text = 'Well.\n<tool_call>\n{"name": "add", "argum'
    said = read(ToolReader(find_format(tokenizers["qwen2"]), {"add"}), [text])
    assert [s for s in said if isinstance(s, Call)] == [] and "".join(said).replace("\n", "") == text.replace("\n", "")
