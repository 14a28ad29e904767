"""A recipe is said once: every field is documented, is a flag, is in the schema, and is read by something."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from tunesmith.errors import UserError
from tunesmith.flags import RecipeFlags, chosen
from tunesmith.recipe import Recipe, Source, known_keys

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
    for part in ([] if owner is Source else key.split(".")[:-1]):
        owner = owner.model_fields[part].annotation
    kind = owner.model_fields[name].annotation
    is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
    assert is_section or owner.model_fields[name].description, f"{key} has no docstring"


@pytest.mark.parametrize(("changes", "said"), [
    ({"train": {"learning_rte": 1}}, "did you mean `train.learning_rate`?"),
    ({"modle": {}}, "did you mean `model`?"),
    ({"data": {"train": [{"path": "a", "wieght": 1}]}}, "did you mean `data.train.0.weight`?"),
    ({"data": {"train": "a", "format": "alpaca"}}, "unknown key `data.format`; it is a source's: `data.train: [{path:"),
    ({"format": "alpaca"}, "it is a source's"),
    ({"train": {"learning_rate": -1}}, "`train.learning_rate`"),
    ({"name": "a/b"}, "name must be a plain folder name"),
])
def test_a_wrong_value_is_named(changes, said):
    with pytest.raises(UserError, match=re.escape(said)):
        Recipe.build(SMALL | changes)


def test_yaml_comes_back_as_it_was(tmp_path):
    model = {"path": "m", "revision": "8e12345"}  # which looks like a number
    recipe = Recipe.build(SMALL | {"model": model, "train": {"learning_rate": 1e-4}})
    (tmp_path / "r.yaml").write_text(recipe.dump())
    assert Recipe.load(tmp_path / "r.yaml") == recipe


def test_exponents_are_numbers_and_flags_win(tmp_path):
    (tmp_path / "r.yaml").write_text("model: {path: m}\ndata: {train: d}\ntrain: {learning_rate: 1e-4, batch: 4}\n")
    flags = RecipeFlags.model_validate({"train": {"batch": 16}})
    recipe = Recipe.load(tmp_path / "r.yaml", chosen(flags))
    assert (recipe.train.learning_rate, recipe.train.batch) == (1e-4, 16)


def test_broken_yaml_is_named_with_its_line(tmp_path):
    (tmp_path / "r.yaml").write_text("model: {path: m}\ndata: [\n")
    with pytest.raises(UserError, match=r"r\.yaml:\d+: not valid YAML"):
        Recipe.load(tmp_path / "r.yaml")


@pytest.mark.parametrize("module", ["cli", "recipe", "run", "machine", "job", "data.dataset", "data.encode",
                                    "data.template", "data.check", "plan.choose"])
def test_no_torch_is_imported(module):
    code = f"import sys, tunesmith.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
