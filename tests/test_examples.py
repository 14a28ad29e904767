"""The recipes of examples/ and their data: valid, whole, and held-out rows that are really new."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest

from tests import tiny
from tunesmith.data.inspect import check
from tunesmith.data.source import Sources
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.methods import Method
from tunesmith.recipe import Recipe

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/recipe.yaml"))


@pytest.fixture
def in_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Of a vocabulary about as fine as a real one for these texts."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = "".join((ROOT / "examples" / name / "data.jsonl").read_text("utf-8") for name in EXAMPLES)
    tiny.save_tokenizer("qwen2", folder, text=text)
    return Tokenizer.load(folder)


def test_there_are_three():
    assert EXAMPLES == ["courtesy", "departments", "tickets"]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("file", ["recipe.yaml", "recipe-8b.yaml"])
def test_a_recipe_is_valid_and_no_row_is_lost(in_checkout, tokenizer, name, file):
    recipe = Recipe.load(f"examples/{name}/{file}")
    encode = partial(Method(recipe.method).encode, tokenizer)
    for source in Sources.resolve(recipe.data).all:
        found = check(source, encode)
        rows = Path(source.path).read_text("utf-8").count("\n")
        assert found["read"] == rows and not found["dropped"] and not found["changed"]
        assert found["longest"]["tokens"] <= recipe.data.sequence_length
    longest = max(len(tokenizer.encode(answer)[0]) for answer in answers(name, "data") + answers(name, "held_out"))
    assert longest < recipe.evaluate.max_new_tokens


@pytest.mark.parametrize("name", EXAMPLES)
def test_held_out_questions_are_new(name):
    questions = {file: [row["messages"][1]["content"] for row in rows(name, file)] for file in ("data", "held_out")}
    every = questions["data"] + questions["held_out"]
    assert len(set(every)) == len(every)
    if name == "departments":
        return
    assert not {*answers(name, "data")} & {*answers(name, "held_out")}


def test_the_answers_of_tickets_have_the_four_keys():
    for answer in answers("tickets", "data") + answers("tickets", "held_out"):
        assert [*json.loads(answer)] == ["product", "category", "order", "urgent"]


def test_the_script_writes_the_data_that_is_there(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_data", ROOT / "examples" / "make_data.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "HERE", tmp_path)
    script.main()
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.glob("*/*.jsonl")}
    assert written == {path: (ROOT / "examples" / path).read_bytes() for path in written} and len(written) == 6


def rows(name: str, file: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "examples" / name / f"{file}.jsonl").read_text("utf-8").splitlines()]


def answers(name: str, file: str) -> list[str]:
    return [row["messages"][2]["content"] for row in rows(name, file)]
