"""Text in pieces is the text of all tokens, whatever they are; a stop string ends it wherever it falls."""

from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.inference.text_stream import Writer


@lru_cache
def tokenizer(name: str, base) -> Tokenizer:
    tiny.save_tokenizer(name, base / name)
    return Tokenizer.load(base / name)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


def written(tok: Tokenizer, ids: list[int], stop=()) -> tuple[list[str], str | None]:
    writer, pieces = Writer(tok, stop), []
    for token in ids:
        pieces.append(writer.push(token))
        if writer.stopped is not None:
            break
    return [*pieces, writer.finish()], writer.stopped


@given(ids=st.lists(st.integers(0, 479), max_size=60))
def test_any_tokens(base, ids):
    tok = tokenizer("llama3", base)
    pieces, _ = written(tok, ids)
    assert "".join(pieces) == tok.decode(ids, skip_special_tokens=True).rstrip("\ufffd")


@given(name=st.sampled_from(["llama3", "qwen3", "mistral", "gemma3", "phi3"]), text=st.text(max_size=40))
def test_any_text_without_a_broken_character(base, name, text):
    tok = tokenizer(name, base)
    ids, _ = tok.encode(text)
    ids = [i for i in ids if i not in tok.special_ids]
    pieces, _ = written(tok, ids)
    whole = tok.decode(ids)
    assert "".join(pieces) == whole.rstrip("\ufffd")
    assert all(piece.count("\ufffd") <= text.count("\ufffd") for piece in pieces)


LETTERS = "abc é🙂"


@given(text=st.text(LETTERS, max_size=30), stop=st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3))
def test_stop_strings(base, text, stop):
    tok = tokenizer("qwen3", base)
    ids, _ = tok.encode(text)
    pieces, stopped = written(tok, ids, tuple(stop))
    grown = (tok.decode(ids[:count]) for count in range(1, len(ids) + 1))  # the first token that completes one ends it
    found = next(
        (text[: min(text.find(s) for s in stop if s in text)] for text in grown if any(s in text for s in stop)), None
    )
    assert "".join(pieces) == (tok.decode(ids) if found is None else found) and (stopped is None) == (found is None)


def test_special_tokens_are_not_shown_but_those_asked_for(base):
    tok = tokenizer("mistral", base)
    ids, _ = tok.encode("[TOOL_CALLS][INST]")
    mark, other = ids
    writer = Writer(tok, shown=frozenset({mark}))
    assert writer.push(mark) + writer.push(other) + writer.finish() == "[TOOL_CALLS]"


@pytest.mark.parametrize("name", ["mistral", "phi3", "qwen3", "gemma3"])
def test_a_text_that_goes_on_keeps_the_space_before_its_first_word(base, name):
    tok, text = tokenizer(name, base), "Return the current name of it, or é 日本"
    ids = tok.encode(text)[0]
    for before in range(1, len(ids)):
        writer = Writer(tok, context=ids[:before])
        more = "".join(map(writer.push, ids[before:])) + writer.finish()
        if "\ufffd" not in tok.decode(ids[:before]):  # a character of which the context has a part
            assert tok.decode(ids[:before]) + more == text
