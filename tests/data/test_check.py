"""What `data check` and `init` make of the users' own text."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import write_rows
from tunesmith.data.check import check, report, show
from tunesmith.data.template import encode_text
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.init import _yaml
from tunesmith.recipe import Source


def test_text_is_shown_as_it_is(family, tmp_path, capsys):
    """Not as marks of the screen's."""
    said = "[/b] a[start:end:2] [link]"
    file = write_rows(tmp_path / "[red]rows.jsonl", [
        {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": said}]},
        {"messages": [{"role": said, "content": "x"}]}])
    source = Source(path=str(file))
    report(check(source, None))
    show(source, family("llama3"), 2, "assistant")
    shown = capsys.readouterr().out.replace("\n", "")
    assert shown.count(said) >= 3 and "[red]rows" in shown


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_what_init_writes_is_what_was_said(text):
    for value in (text, f"*.{text}", f"{text} # {text}"):
        assert yaml.safe_load(f"data:\n  train: {_yaml(value)}    # a comment\n")["data"]["train"] == value


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_lengths_are_drawn_and_add_up(family, tmp_path, capsys, name):
    """Bars against lengths counted by the test; the examples beyond the recipe's length are named."""
    texts = ["word " * n for n in (3, 5, 40, 41, 42, 43, 900)]
    file = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    found = check(Source(path=str(file)), family(name))
    tokenizer = Tokenizer.load(family(name))
    lengths = sorted(len(encode_text(tokenizer, text).ids) for text in texts)
    bounds = [0, *found["histogram"]]
    counted = {high: sum(low < n <= high for n in lengths) for low, high in zip(bounds, bounds[1:])}
    first, *others = found["histogram"]
    counted[first] = sum(n <= first for n in lengths)
    assert found["histogram"] == counted and sum(counted.values()) == len(texts)
    assert found["longest"] == {"where": f"{file}:7", "tokens": lengths[-1]}
    report(found, 64)
    shown = capsys.readouterr().out
    bars = [line.count("█") for line in shown.splitlines() if line.startswith("  ≤")]
    assert len(bars) == len(counted) and max(bars) == 30
    assert "data.sequence_length, 64" in shown and "rows.jsonl:7 alone holds" in shown


def test_dropped_rows_that_are_not_shown_are_counted(tmp_path, capsys):
    rows = [{"messages": [{"role": "narrator", "content": str(n)}]} for n in range(8)]
    file = write_rows(tmp_path / "rows.jsonl", [*rows, {"messages": [{"role": "user", "content": "a"},
                                                                     {"role": "assistant", "content": "b"}]}])
    report(check(Source(path=str(file)), None))
    assert "The first 5 of 8 dropped rows" in capsys.readouterr().out
