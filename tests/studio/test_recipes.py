"""The recipe as a form, as text, and as a plan."""

import asyncio
import contextlib
import json
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.cli.main import app
from tunesmith.cli.train import chosen
from tunesmith.recipe import Recipe, known_keys
from tunesmith.studio import recipe_files, recipe_form
from tunesmith.studio.commands import Commands, while_connected

TEXT = "# my recipe\nmodel: m  # small\ndata: d.jsonl\ntrain:\n  learning_rate: 1e-4\n"
ESSENTIAL = """model.path model.quantize data.train data.eval data.eval_share data.sequence_length method.name
adapter.kind adapter.rank train.epochs train.max_steps train.batch train.learning_rate name""".split()
RICH = {
    "model": {"path": "my models/m", "chat_template_kwargs": {}, "new_tokens": ["<a>", "-b"]},
    "data": {"train": ["a.jsonl", "b c.csv"], "packing": False, "sequence_length": "max"},
    "method": {"name": "sft", "mask": "last"},
    "adapter": {"targets": ["q_proj", "k_proj"], "rank": 8},
    "train": {"learning_rate": 1e-4, "gradient_checkpointing": True, "tiled_mlp": False, "max_steps": None},
    "trackers": ["tensorboard"],
    "seed": 3,
}


def check(client, **draft) -> dict:
    answer = client.post("/api/recipe/check", json=draft)
    assert answer.status_code == 200, answer.text
    return answer.json()


def fields(schema: dict, prefix: str = ""):
    for key, field in schema["properties"].items():
        kinds = field.get("oneOf", [field])
        if any("properties" in kind for kind in kinds):
            for kind in kinds:
                yield from fields(kind, f"{prefix}{key}.")
        else:
            yield prefix + key, field


def test_the_schema_is_a_form(client):
    answer = client.get("/api/recipe/schema").json()
    schema, sections = answer["json_schema"], answer["sections"]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert "$ref" not in json.dumps(schema)
    found = dict(fields(schema))
    assert {key for key in known_keys() if key not in Recipe.model_fields or "." in key} <= set(found)
    assert {key for key, field in found.items() if field["level"] == "essential"} == set(ESSENTIAL)
    for key, field in found.items():
        assert field["title"] and field["level"] in ("essential", "more", "all"), key
        assert field.get("description") or key == "method.name", key
        assert "default" in field or key in ("model.path", "data.train"), key
    assert [key for section in sections for key in section["keys"] if key not in found] == []
    assert sorted(key for section in sections for key in section["keys"]) == sorted(found)


def test_the_schema_accepts_what_the_recipe_accepts(client):
    schema = client.get("/api/recipe/schema").json()["json_schema"]
    checked = check(client, values=RICH)
    assert checked["problems"] == []
    jsonschema.validate(checked["values"], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(checked["values"] | {"adapter": {"rank": 0}}, schema)


def test_text_becomes_values_and_keeps_its_comments(client):
    checked = check(client, yaml=TEXT)
    assert checked["yaml"] == TEXT and checked["problems"] == []
    assert checked["values"] == {
        "model": {"path": "m"},
        "data": {"train": [{"path": "d.jsonl"}]},
        "train": {"learning_rate": 1e-4},
    }
    assert checked["command"] == "tunesmith train --model m --data d.jsonl --train.learning-rate 0.0001"


def test_values_become_text_and_come_back(client):
    checked = check(client, values=RICH)
    again = check(client, yaml=checked["yaml"])
    assert again["values"] == checked["values"]
    assert Recipe.build(again["values"]) == Recipe.build(RICH)
    assert "mask: last" in checked["yaml"] and "epochs" not in checked["yaml"]


def test_the_command_says_the_same_recipe(client):
    command, bound, _ = app.parse_args(shlex.split(check(client, values=RICH)["command"])[1:])
    assert command.__name__ == "train"
    assert Recipe.build(chosen(bound.arguments["flags"])) == Recipe.build(RICH)
    rich = RICH | {"data": {"train": [{"path": "a", "weight": 2}]}}
    assert check(client, values=rich)["command"] == "tunesmith train recipe.yaml"


def test_all_problems_have_keys_and_lines(client):
    checked = check(
        client, yaml="model: m\ndata:\n  train:\n    - path: a\n      weight: -1\ntrain:\n  batch: 0\nsede: 1\n"
    )
    assert [(problem["key"], problem["line"]) for problem in checked["problems"]] == [
        ("sede", 8),
        ("data.train.0.weight", 5),
        ("train.batch", 7),
    ]
    assert checked["values"]["train"] == {"batch": 0} and checked["command"] == ""
    (broken,) = check(client, yaml="model: m\ndata: [a\ntrain: {}\n")["problems"]
    assert broken["line"] == 3 and "not valid YAML" in broken["message"]
    (missing,) = check(client, values={"data": "a"})["problems"]
    assert (missing["key"], missing["line"]) == ("model.path", None)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
KEYS = st.sampled_from([*Recipe.model_fields, "path", "train", "name", "rank", "x"]) | st.text()
SHARED = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SHARED
@given(values=st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES) | VALUES))
def test_any_values_are_answered(client, values):
    checked = recipe_form.check_values(values)
    json.loads(json.dumps(checked.model_dump(), allow_nan=False, ensure_ascii=False).encode())
    if checked.problems == []:
        assert recipe_form.check_text(checked.yaml).values == checked.values


@SHARED
@given(
    text=st.text()
    | st.lists(st.sampled_from([*"model data : [ ] { } , & * a ! '".split(), "\n", " ", "- "])).map("".join)
)
def test_any_text_is_answered(client, text):
    checked = recipe_form.check_text(text)
    json.dumps(checked.model_dump(), allow_nan=False, ensure_ascii=False).encode()
    assert checked.problems


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 5000,
        'a: "\\ud800"',
        "a: .nan",
        "1: 2\n? [a]\n: 3",
        "a: !!binary aGk=",
        "a: 2026-01-01",
        "a: &a [*a]",
    ],
)
def test_strange_text_is_answered(client, text):
    assert check(client, yaml=text)["problems"]


def test_a_deep_value_is_refused(client):
    values: dict = {}
    for _ in range(200):
        values = {"a": values}
    assert check(client, values=values)["problems"] == [{"key": "", "message": "nested too deeply", "line": None}]


@pytest.mark.slow
def test_a_plan_is_that_of_the_command_line(client, small):
    answer = client.post("/api/recipe/plan", json={"values": small}).json()
    assert answer["problem"] is None
    assert answer["plan"]["plan"]["micro_batch_tokens"] > 0


@pytest.mark.slow
def test_a_plan_that_fails_names_the_key(client, studio, small):
    (studio.folder / "empty").mkdir()
    bad = client.post("/api/recipe/plan", json={"values": small | {"model": "empty"}}).json()
    assert bad["plan"] is None and bad["problem"]["key"] == "model.path"
    assert bad["problem"]["message"] == "model.path: no config.json in empty"


@pytest.mark.parametrize(
    "values, key",
    [
        ({"model": "/etc"}, "model.path"),
        ({"data": "../secret.jsonl"}, "data.train.0.path"),
        ({"data": "~/secret.jsonl"}, "data.train.0.path"),
        ({"data": "link/*.jsonl"}, "data.train.0.path"),
        ({"output": "/var"}, "output"),
        ({"train": {"batch": 0}}, "train.batch"),
    ],
)
def test_a_plan_stays_inside_and_names_the_key(client, studio, tmp_path, values, key):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.jsonl").touch()
    (studio.folder / "link").symlink_to(tmp_path / "outside")
    answer = client.post("/api/recipe/plan", json={"values": {"model": "org/m", "data": "d"} | values}).json()
    assert answer["plan"] is None and answer["problem"]["key"] == key


def test_a_machine_is_described_inside_the_roots(client, small):
    answer = client.post("/api/recipe/plan", json={"values": small, "machine": "/etc/passwd"}).json()
    assert "outside the studio's folders" in answer["problem"]["message"]


class Gone:
    """A request whose client goes away once the work has begun."""

    def __init__(self):
        self.begun = asyncio.Event()

    async def receive(self):
        await self.begun.wait()
        return {"type": "http.disconnect"}


def test_work_ends_with_its_client(tmp_path, monkeypatch):
    """The command's process too."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho $$ > started.tmp; mv started.tmp started; exec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    async def ask():
        request = Gone()
        work = asyncio.ensure_future(while_connected(request, Commands(tmp_path).run("plan")))
        while not (tmp_path / "started").exists():
            await asyncio.sleep(0.01)
        request.begun.set()
        with pytest.raises(Exception, match="went away"):
            await work

    asyncio.run(ask())
    pid = int((tmp_path / "started").read_text())
    while Path(f"/proc/{pid}").exists() and is_alive(pid):  # until the kernel has ended it
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process computes; one that nobody has waited for yet does not."""
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_recipes_are_saved_found_and_read(client, studio):
    saved = client.post("/api/recipes", json={"name": "my first", "yaml": TEXT}).json()
    assert saved["path"] == "recipes/my first.yaml"
    again = client.post("/api/recipes", json={"name": "my first", "yaml": "x"})
    assert again.status_code == 409 and "there already" in again.json()["error"]["message"]
    replaced = client.post("/api/recipes", json={"name": "my first.yaml", "yaml": TEXT + "#", "replace": True})
    assert replaced.json()["id"] == saved["id"]
    (studio.folder / "notes.yaml").write_text("a: 1\n")
    (studio.folder / "top.yaml").write_text(TEXT)
    found = {one["name"]: one["id"] for one in client.get("/api/recipes").json()}
    assert set(found) == {"my first", "top"}
    assert client.get(f"/api/recipes/{saved['id']}").json() == {
        "yaml": TEXT + "#",
        "version": replaced.json()["version"],
    }
    assert client.get("/api/recipes/none").status_code == 400


def test_a_save_replaces_only_the_text_that_its_page_has_read(client, studio):
    """Two tabs, which read a recipe and save it one after the other; and what an editor writes meanwhile."""

    def save(text: str, **facts) -> tuple[int, str]:
        answer = client.post("/api/recipes", json={"name": "one", "yaml": text, **facts})
        found = answer.json()
        return answer.status_code, found["version"] if answer.is_success else found["error"]["message"]

    file = studio.folder / "recipes" / "one.yaml"
    _, first = save(TEXT)
    id = client.get("/api/recipes").json()[0]["id"]
    assert client.get(f"/api/recipes/{id}").json()["version"] == first
    status, second = save(TEXT + "# one\n", version=first)
    assert status == 200 and second != first
    status, message = save(TEXT + "# two\n", version=first)
    assert status == 409 and "save over it, or choose another name" in message and "\n" not in message
    assert file.read_text() == TEXT + "# one\n"
    file.write_text(TEXT + "# an editor\n")
    assert save(TEXT + "# two\n", version=second)[0] == 409 and file.read_text() == TEXT + "# an editor\n"
    status, third = save(TEXT + "# two\n", version=second, replace=True)
    assert status == 200 and save(TEXT, version=third) == (200, first)
    file.unlink()
    assert save(TEXT, version=third)[0] == 200  # nothing is lost


def test_of_saves_at_the_same_moment_one_is_kept(client, studio):
    version = client.post("/api/recipes", json={"name": "one", "yaml": TEXT}).json()["version"]

    def save(number: int) -> bool:
        with contextlib.suppress(recipe_files.Changed):
            recipe_files.save(studio.roots, "one", f"{TEXT}# {number}\n", version)
            return True
        return False

    with ThreadPoolExecutor(8) as threads:
        kept = [number for number, is_kept in enumerate(threads.map(save, range(40))) if is_kept]
    assert len(kept) == 1 and (studio.folder / "recipes" / "one.yaml").read_text() == f"{TEXT}# {kept[0]}\n"


@pytest.mark.parametrize("name", ["", "..", "../a", "a/b", "/etc/a", ".hidden", "a\0", "a\n", " a", "x" * 300, "a."])
def test_a_recipe_has_a_plain_name(client, studio, name):
    answer = client.post("/api/recipes", json={"name": name, "yaml": TEXT})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("name:")
    assert list(studio.folder.iterdir()) == []


@pytest.mark.parametrize(
    "text, change, expected",
    [
        (TEXT, {"train": {"learning_rate": 3e-4}}, TEXT.replace("1e-4", "0.0003")),
        (TEXT, {"train": {"learning_rate": 1e-4, "batch": 4}}, TEXT + "  batch: 4\n"),
        (TEXT, {"name": "mine"}, TEXT + "name: mine\n"),
        (TEXT, {"model": {"path": "m", "dtype": "float16"}}, TEXT.replace("m  #", "{path: m, dtype: float16}  #")),
        (TEXT, {"data": {"train": ["d.jsonl", "e"]}}, TEXT.replace("d.jsonl", "{train: [d.jsonl, e]}")),
        (
            "model: m\ndata: d\n# all\nadapter: {rank: 8, alpha: 3}\n",
            {"adapter": {"alpha": 3}},
            "model: m\ndata: d\n# all\nadapter: {alpha: 3}\n",
        ),
        (
            "model: m\ndata: d\ntrain:\n  batch: 4\n  epochs: 1 # one\n# end\n",
            {"train": {"epochs": 1}},
            "model: m\ndata: d\ntrain:\n  epochs: 1 # one\n# end\n",
        ),
    ],
)
def test_a_change_in_the_form_keeps_comments(client, text, change, expected):
    values = check(client, yaml=text)["values"] | change
    found = check(client, yaml=text, values=values)
    assert found["yaml"] == expected and found["problems"] == []
    assert check(client, yaml=expected)["values"] == check(client, values=values)["values"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.sampled_from(
        [TEXT, "model: {path: m}\ndata:\n  train:\n  - d\n  packing: false # no\ntrain: {batch: 2}\n", "x: 1"]
    ),
    st.dictionaries(
        st.sampled_from(["batch", "epochs", "schedule", "max_steps"]), st.none() | st.integers() | st.text()
    ),
)
def test_a_changed_text_says_the_values(text, train):
    values = {"model": {"path": "m"}, "data": {"train": [{"path": "d"}]}, "train": train}
    plain = recipe_form.check_values(values)
    found = recipe_form.check_values(values, text)
    assert found.values == plain.values and [p.key for p in found.problems] == [p.key for p in plain.problems]
    assert recipe_form.check_text(found.yaml).values == recipe_form.check_text(plain.yaml).values


def test_problems_of_values_name_the_lines_of_their_text(client):
    found = check(client, values={"model": {"path": "m"}, "data": {"train": ["d"]}, "train": {"batch": 0}})
    (problem,) = found["problems"]
    assert found["yaml"].splitlines()[problem["line"] - 1].strip() == "batch: 0"
