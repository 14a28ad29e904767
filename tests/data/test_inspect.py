"""`data check` and `init` with the user's own text."""

import json
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import write_rows
from tunesmith.cli import data
from tunesmith.cli.data_report import print_report, print_rows
from tunesmith.data import source as source_module
from tunesmith.data.inspect import check, pieces_of, show
from tunesmith.data.masking import encode_text
from tunesmith.data.source import resolve
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.methods import Method, cpt, sft
from tunesmith.planner import unusual
from tunesmith.planner.suggest import _batch, _yaml
from tunesmith.recipe import Source, Train

SFT = Method(sft.Settings())


def test_text_is_shown_as_it_is(family, tmp_path, capsys):
    """Brackets in the text are not rich's markup."""
    said = "[/b] a[start:end:2] [link]"
    file = write_rows(
        tmp_path / "[red]rows.jsonl",
        [
            {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": said}]},
            {"messages": [{"role": said, "content": "x"}]},
        ],
    )
    source = Source(path=str(file))
    print_report(check(resolve(source)))
    tokenizer = Tokenizer.load(family("llama3"))
    print_rows(resolve(source), tokenizer, 2, partial(SFT.encode, tokenizer))
    shown = capsys.readouterr().out.replace("\n", "")
    assert shown.count(said) >= 3 and "[red]rows" in shown


@pytest.mark.parametrize("base", ["llama3", "qwen3"])
@pytest.mark.parametrize(
    "environment, marked", [({}, True), ({"FORCE_COLOR": "1"}, False), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True)]
)
def test_learned_text_is_marked_without_colour_too(family, tmp_path, capsys, monkeypatch, base, environment, marked):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TERM", "xterm-256color")
    file = write_rows(tmp_path / "a.jsonl", [{"question": "Where is Bonn?", "answer": "In Germany."}])
    tokenizer = Tokenizer.load(family(base))
    print_rows(resolve(Source(path=str(file))), tokenizer, 1, partial(SFT.encode, tokenizer))
    legend, text = capsys.readouterr().out.split("\n", 1)
    if marked:
        assert legend == "The text between ⟦ and ⟧ is learned." and "\x1b[3" not in text
        assert text.count("⟦") == text.count("⟧") == 1
        assert "In Germany." in text.partition("⟦")[2].partition("⟧")[0] and "Bonn" in text.partition("⟦")[0]
    else:
        assert "\x1b[1;32mGreen" in legend and "⟦" not in text and "\x1b[1;32m" in text


@pytest.mark.parametrize("rows, batch", [(1, 1), (8, 1), (16, 2), (60, 4), (127, 8), (128, 16), (999, 16), (1000, 32)])
def test_init_takes_batches_that_leave_several_steps(rows, batch):
    assert _batch(rows) == batch


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_init_writes_what_it_was_given(text):
    for value in (text, f"*.{text}", f"{text} # {text}"):
        assert yaml.safe_load(f"data:\n  train: {_yaml(value)}    # a comment\n")["data"]["train"] == value


@pytest.mark.parametrize("name", ["llama3", "gemma3"])
def test_lengths_are_drawn_and_add_up(family, tmp_path, capsys, name):
    """Bars against lengths counted by the test; the examples beyond the recipe's length are named."""
    texts = ["word " * n for n in (3, 5, 40, 41, 42, 43, 900)]
    file = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    tokenizer = Tokenizer.load(family(name))
    found = check(resolve(Source(path=str(file))), partial(Method(cpt.Settings()).encode, tokenizer))
    lengths = sorted(len(encode_text(tokenizer, text).ids) for text in texts)
    bounds = [0, *found["histogram"]]
    counted = {high: sum(low < n <= high for n in lengths) for low, high in pairwise(bounds)}
    first = next(iter(found["histogram"]))
    counted[first] = sum(n <= first for n in lengths)
    assert found["histogram"] == counted and sum(counted.values()) == len(texts)
    assert found["longest"] == {"where": f"{file}:7", "tokens": lengths[-1]}
    print_report(found, 64)
    shown = capsys.readouterr().out
    bars = [line.count("█") for line in shown.splitlines() if line.startswith("  ≤")]
    assert len(bars) == len(counted) and max(bars) == 30
    assert "data.sequence_length of 64" in shown and "rows.jsonl:7 alone has" in shown


def test_dropped_rows_that_are_not_shown_are_counted(tmp_path, capsys):
    rows = [{"messages": [{"role": "narrator", "content": str(n)}]} for n in range(8)]
    file = write_rows(
        tmp_path / "rows.jsonl",
        [*rows, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    )
    print_report(check(resolve(Source(path=str(file)))))
    assert "The first 5 of 8 dropped rows" in capsys.readouterr().out


@pytest.mark.parametrize("examples, batch, warned", [(7, 16, True), (15, 16, True), (16, 16, False), (300, 32, False)])
def test_fewer_examples_than_a_batch_are_reported(examples, batch, warned):
    dataset = SimpleNamespace(train=SimpleNamespace(weights=np.ones(examples)))
    found = list(unusual._few_rows(Train(batch=batch), dataset))
    assert [f"train.batch: {batch} is more than the {examples} examples of an epoch" in line for line in found] == (
        [True] * warned
    )


def test_a_recipe_is_checked_with_its_own_template_and_mask(family, tmp_path):
    """By the command, whose rendering is that of a template that the recipe names."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Two and two?"},
                {"role": "assistant", "content": "Four."},
                {"role": "user", "content": "And two?"},
                {"role": "assistant", "content": "Six."},
            ]
        }
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}{{ tone }}: {{ m.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}assistant{{ tone }}: {% endif %}"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "path": str(family("llama3")),
                    "chat_template": str(template),
                    "chat_template_kwargs": {"tone": "!"},
                },
                "data": {"train": str(file)},
                "method": {"mask": "last"},
            }
        )
    )
    shown = subprocess.run(
        [sys.executable, "-m", "tunesmith", "data", "show", str(recipe)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "assistant!: Four." in shown and "⟦Six." in shown and "⟦Four." not in shown


def test_rows_are_shown_as_what_is_learned(family, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "Wo liegt Köln?"}, {"role": "assistant", "content": "Am Rhein 🌊"}]},
        {"text": "plain"},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y" * 50}]},
    ]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    tokenizer = Tokenizer.load(family("qwen3"))
    encode = partial(SFT.encode, tokenizer)
    source = resolve(Source(path=str(file)))
    first, second, _ = show(source, tokenizer, encode)
    (example,) = first["examples"]
    ids = [token for segment in example["segments"] for token in segment["ids"]]
    assert ids == next(iter(encode(next(source.rows())[1])))[0].ids and example["tokens"] == len(ids)
    full, cut = example["segments"], list(show(source, tokenizer, encode, most_text=30))[2]
    assert "".join(segment["text"] for segment in full) == tokenizer.decode(ids)
    assert ["Am Rhein 🌊" in segment["text"] for segment in full if segment["learned"]] == [True]
    for segment in full:
        assert "".join(segment["pieces"]) == segment["text"] and len(segment["pieces"]) == len(segment["ids"])
    pieces = [piece for segment in full for piece in segment["pieces"]]
    assert "" in pieces and not any("\ufffd" in piece for piece in pieces)  # 🌊 takes several tokens
    assert first["turns"] == [{"role": "user", "text": "Wo liegt Köln?"}, {"role": "assistant", "text": "Am Rhein 🌊"}]
    assert (first["kind"], first["problem"], first["where"]) == ("chat", "", f"{file}:1")
    assert second["problem"] and second["examples"] == []
    assert cut["examples"][0]["is_cut"] and cut["turns"][1]["text"] == "y" * 30
    assert sum(len(segment["text"]) for segment in cut["examples"][0]["segments"]) == 30
    assert sum(len(piece) for segment in cut["examples"][0]["segments"] for piece in segment["pieces"]) == 30
    assert [row["index"] for row in show(source, search="KÖLN")] == [0]
    assert [row["index"] for row in show(source, offset=1, search="köln")] == []
    assert [row["index"] for row in show(source, offset=1)] == [1, 2]


@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma3"])
def test_each_token_has_its_text(family, name):
    """In byte-level vocabularies and in SentencePiece's; characters of several tokens stay whole."""
    tokenizer = Tokenizer.load(family(name))
    text = "  Köln 🌊🏳️ 日本語 \n\n\tfoo  bar ñ "
    ids = tokenizer.encode(text)[0]
    said = tokenizer.decode(ids)
    pieces = pieces_of(tokenizer, ids, said)
    assert len(pieces) == len(ids) and "".join(pieces) == said and "🌊" in pieces and "日" in "".join(pieces)
    assert "".join(pieces_of(tokenizer, ids, said[:9])) == said[:9]


@pytest.mark.parametrize("offset", [0, 15_000])
def test_a_long_file_is_not_read_whole(family, tmp_path, monkeypatch, capsys, offset):
    """Also where the chat template must know whether any row has reasoning."""
    file = write_rows(tmp_path / "rows.jsonl", [{"question": f"q{n}", "answer": "a"} for n in range(20_000)])
    taken = Counter()
    read_lines = source_module.read_lines

    def counted(paths):
        for where, payload in read_lines(paths):
            taken[where.line] += 1
            yield where, payload

    monkeypatch.setattr(source_module, "read_lines", counted)
    data.show(str(file), model=str(family("qwen3")), as_json=True, rows=5, offset=offset)
    (page,) = json.loads(capsys.readouterr().out)
    assert [row["index"] for row in page["rows"]] == list(range(offset, offset + 5)) and page["next"] == offset + 5
    assert max(taken) == max(10_000, offset + 5)


def test_the_end_of_a_file_is_told(tmp_path, capsys):
    file = write_rows(tmp_path / "rows.jsonl", [{"question": f"q{n}", "answer": "a"} for n in range(4)])
    data.show(str(file), as_json=True, offset=2)
    (page,) = json.loads(capsys.readouterr().out)
    assert [row["index"] for row in page["rows"]] == [2, 3] and page["next"] is None
