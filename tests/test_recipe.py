"""A recipe is said once: every field is documented, is a flag, is in the schema, and is read by something."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import BaseModel

from tunesmith import recipe_text
from tunesmith.cli import main
from tunesmith.cli.train import chosen
from tunesmith.errors import UserError
from tunesmith.recipe import Recipe, Source, fields_of, known_keys
from tunesmith.recipe_errors import FOREIGN_KEYS, VALUE_HINTS

PACKAGE = Path(__file__).parent.parent / "tunesmith"
SMALL = {"model": {"path": "m"}, "data": {"train": "d.jsonl"}}


def fields() -> list[str]:
    return known_keys() + [f"data.train.{name}" for name in Source.model_fields]


@pytest.mark.parametrize("key", fields())
def test_every_field_is_read_and_documented(key):
    name = key.rpartition(".")[2]
    code = "\n".join(p.read_text() for p in PACKAGE.rglob("*.py") if p.name not in ("recipe.py", "flags.py"))
    assert re.search(rf"\.{name}\b", code), f"nothing reads {key}"
    owner = Source if key.startswith("data.train.") else Recipe
    for part in [] if owner is Source else key.split(".")[:-1]:
        owner = fields_of(owner)[part].annotation
    kind = fields_of(owner)[name].annotation
    is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
    assert is_section or fields_of(owner)[name].description, f"{key} has no docstring"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"learning_rte": 1}}, "did you mean `train.learning_rate`?"),
        ({"modle": {}}, "did you mean `model`?"),
        ({"data": {"train": [{"path": "a", "wieght": 1}]}}, "did you mean `data.train.0.weight`?"),
        (
            {"data": {"train": "a", "format": "alpaca"}},
            "unknown key `data.format`; it is a source's: `data.train: [{path:",
        ),
        ({"format": "alpaca"}, "it is a source's"),
        ({"train": {"learning_rate": -1}}, "`train.learning_rate`"),
        ({"name": "a/b"}, "name must be a plain folder name"),
        ({"train": {"learning_rate": float("inf")}}, "`train.learning_rate`"),
        ({"adapter": {"alpha": float("nan")}}, "`adapter.alpha`"),
        ({"data": {"train": "a", "eval": "b", "eval_share": 0.2}}, "data.eval_share has no effect; say one of them"),
        *(
            ({"data": {"train": "a", "eval_share": 0}} | changes, f"{key} needs held-out rows")
            for key, changes in {
                "train.result: best": {"train": {"result": "best"}},
                "train.patience": {"train": {"patience": 2}},
                "train.eval_every": {"train": {"eval_every": 5}},
                "evaluate.exact_match": {"evaluate": {"exact_match": True}},
                "train.sample_every": {"train": {"sample_every": 5}},
            }.items()
        ),
        ({"train": {"sample_every": 5}, "evaluate": {"samples": 0}}, "train.sample_every shows sample answers"),
        ({"train": {"sample_every": 5}, "method": {"name": "cpt"}}, "train.sample_every shows sample answers"),
        (
            {"adapter": {"kind": "qlora"}},
            "must be lora or full, not 'qlora'; QLoRA is adapter.kind: lora with model.quan",
        ),
        ({"adapter": {"kind": "Full"}}, "did you mean full?"),
        ({"train": {"batch": "many"}}, "`train.batch` must be a whole number, not 'many'"),
        ({"train": {"batch": 0}}, "`train.batch` must be a number greater than 0, not 0"),
        ({"train": {"epochs": None}}, "`train.epochs` is empty: it must be a number"),
        ({"train": {"gradient_checkpointing": 3}}, "must be auto, on, off, selective or a number of at most 1, not 3"),
        ({"data": {"train": []}}, "`data.train` is empty"),
        ({"model": 3}, "`model` must be a mapping"),
    ],
)
def test_a_wrong_value_is_named(changes, said):
    with pytest.raises(UserError, match=re.escape(said)):
        Recipe.build(SMALL | changes)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, []),
        (
            {"train": {"batch": 0, "epochs": "many", "optimiser": "adamw"}, "sed": 3},
            ["train.optimiser", "sed", "train.epochs", "train.batch"],
        ),
        ({"data": {}, "method": {"name": "sft", "mask": "first"}}, ["data.train", "method.mask"]),
        ({"data": {"train": [{"path": "a"}, {"weight": -1}]}}, ["data.train.1.path", "data.train.1.weight"]),
        (
            {
                "adapter": {"kind": "full", "modules_to_save": ["lm_head"]},
                "model": {"path": "m", "quantize": "nf4"},
                "name": "a/b",
                "data": {"train": "a", "eval_share": 0},
                "train": {"patience": 2},
            },
            ["adapter.modules_to_save", "model.quantize", "train.patience", "name"],
        ),
    ],
)
def test_all_problems_are_found(changes, keys):
    problems = Recipe.problems(SMALL | changes)
    assert [problem.key for problem in problems] == keys
    if keys:
        with pytest.raises(UserError, match=re.escape(problems[0].message)):
            Recipe.build(SMALL | changes)


BILLIONS = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [{9 * f'*{a}, '}]\n" for a, b in pairwise("abcdefgh"))


@pytest.mark.parametrize(
    "text",
    ["a: &a [*a]\n", BILLIONS, "a: " + "[" * 5000, "a: 2026-99-99\n", "a: !!python/name:os.system\n"],
    ids=["itself", "billions", "deep", "date", "tag"],
)
def test_hostile_yaml_is_one_line(text):
    with pytest.raises(UserError) as error:
        recipe_text.parse(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_keys_have_lines():
    text = "# mine\nmodel: m\ndata:\n  train:\n    - a\n    - path: b\n      weight: 2\ntrain: {batch: 4}\n"
    lines = recipe_text.lines(text)
    assert lines["model"] == 2 and lines["data.train.1.weight"] == 7 and lines["train.batch"] == 8


@pytest.mark.parametrize("section", [None, {}])
def test_short_forms_and_empty_sections_are_read(section):
    full = Recipe.build(SMALL)
    assert Recipe.build({"model": "m", "data": "d.jsonl", "train": section, "evaluate": section}) == full
    assert Recipe.build({"model": "m", "data": ["d.jsonl"]}) == full


def test_flags_change_one_field_of_a_short_form(tmp_path):
    (tmp_path / "r.yaml").write_text("model: m\ndata: d.jsonl\n")
    loaded = Recipe.load(tmp_path / "r.yaml", {"model": {"dtype": "float32"}})
    assert (loaded.model.path, loaded.model.dtype) == ("m", "float32")


@pytest.mark.parametrize(
    ("text", "known", "unknown"),
    [
        (
            (
                "base_model: m\ndatasets: [{path: d, type: alpaca}]\nsequence_len: 512\n"
                "adapter: qlora\nload_in_4bit: true\n"
            ),
            ["base_model is model.path", "datasets is data.train", "load_in_4bit is model.quantize: nf4"],
            None,
        ),
        (
            "model_name_or_path: m\nstage: sft\ndataset: d\ncutoff_len: 512\nflash_attn: auto\n",
            ["model_name_or_path is model.path", "cutoff_len is data.sequence_length"],
            "flash_attn",
        ),
    ],
)
def test_the_recipe_of_another_tool_is_translated(tmp_path, text, known, unknown):
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        Recipe.load(tmp_path / "other.yaml")
    assert [name for name in known if name not in str(error.value)] == [] and "\n" not in str(error.value)
    assert unknown is None or f"unknown: {unknown}" in str(error.value)


def test_the_names_for_other_tools_keys_exist():
    targets = {re.split("[: ]", name)[0] for name in FOREIGN_KEYS.values()}
    assert targets <= set(known_keys()) and set(VALUE_HINTS) <= set(known_keys())


def test_yaml_comes_back_as_it_was(tmp_path):
    model = {"path": "m", "revision": "8e12345"}  # which looks like a number
    recipe = Recipe.build(SMALL | {"model": model, "train": {"learning_rate": 1e-4}})
    (tmp_path / "r.yaml").write_text(recipe.dump())
    assert Recipe.load(tmp_path / "r.yaml") == recipe


def test_exponents_are_numbers_and_flags_win(tmp_path):
    (tmp_path / "r.yaml").write_text("model: {path: m}\ndata: {train: d}\ntrain: {learning_rate: 1e-4, batch: 4}\n")
    recipe = Recipe.load(tmp_path / "r.yaml", chosen({"train": {"batch": 16}}))
    assert (recipe.train.learning_rate, recipe.train.batch) == (1e-4, 16)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "model: {path: m}\ndata: {train: d}\ntrain:\n  batch: 4\n  epochs: 2\n  batch: 8\n",
            "r.yaml:6: `batch` is set twice",
        ),
        ("model: {path: m}\ndata: {train: d}\nmodel: {path: n}\n", "r.yaml:3: `model` is set twice"),
        ("model: {path: m, path: n}\ndata: {train: d}\n", "r.yaml:1: `path` is set twice"),
    ],
)
def test_a_key_that_is_set_twice(tmp_path, text, said):
    """YAML would silently take the last."""
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        Recipe.load(tmp_path / "r.yaml")


def test_a_flag_that_is_given_twice(monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["tunesmith", "train", "--model.path", "m", "--data.train", "d", "--train.batch", "4", "--train.batch", "8"],
    )
    with pytest.raises(SystemExit) as ended:
        main.main()
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "--train.batch" in line


def test_broken_yaml_is_named_with_its_line(tmp_path):
    (tmp_path / "r.yaml").write_text("model: {path: m}\ndata: [\n")
    with pytest.raises(UserError, match=r"r\.yaml:\d+: not valid YAML"):
        Recipe.load(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    "module",
    [
        "cli.main",
        "cli.train",
        "cli.export",
        "recipe",
        "run",
        "plan",
        "machine",
        "finetune.job",
        "data.dataset",
        "data.encode",
        "data.masking",
        "data.inspect",
        "planner.decide",
        "planner.suggest",
        "evaluate.summary",
    ],
)
def test_no_torch_is_imported(module):
    code = f"import sys, tunesmith.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
