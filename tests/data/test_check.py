"""What `data check` and `init` make of the users' own text."""

import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import write_rows
from tunesmith.data.check import check, report, show
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
