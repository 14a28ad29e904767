"""The documentation: its recipes are valid, its commands parse, its rows can be read, its Python runs, its generated
parts are current, its links and paths lead somewhere, and its words are those of the glossary."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from tests.language import BANNED
from tunesmith.cli.main import app, main
from tunesmith.model.load import config_of, with_random_weights
from tunesmith.recipe import Recipe

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [*DOCS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LANGUAGES = {"sh", "yaml", "json", "python", "text"}


class Block(NamedTuple):
    """A fenced block: `where` is the page and line of its first line."""

    where: str
    language: str
    text: str


def load(path: Path) -> ModuleType:
    """A module outside of any package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


will_it_fit = load(ROOT / "docs/will_it_fit.py")
generate, hooks = load(ROOT / "docs/generate.py"), load(ROOT / "docs/hooks.py")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(language: str | None = None) -> list[Block]:
    """The fenced blocks of all pages, or those in one language."""
    found = []
    for page in DOCS:
        text = page.read_text("utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 2
            found.append(Block(f"{name(page)}:{line}", match[1], match[2]))
    return [block for block in found if language in (None, block.language)]


def commands(script: str) -> list[list[str]]:
    """The arguments of each `tunesmith` in a shell script, without comments and variables before it."""
    lines = script.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if "tunesmith" in line]
    for line in words:
        while line and re.fullmatch(r"[A-Z_]+=.*", line[0]):
            del line[0]
    return [line[1:] for line in words if line[:1] == ["tunesmith"]]


def cases(language: str):
    return [pytest.param(block.text, id=block.where) for block in blocks(language)]


def test_every_block_names_its_language():
    assert not [block.where for block in blocks() if block.language not in LANGUAGES]


@pytest.mark.parametrize("text", cases("yaml"))
def test_recipes_are_valid(text, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    Recipe.load(file)


@pytest.mark.parametrize("text", [case for case in cases("sh") if commands(case.values[0])])
def test_commands_are_known_with_their_flags(text):
    for arguments in commands(text):
        app.parse_args(arguments, print_error=False, exit_on_error=False)


def test_a_wrong_command_is_found():
    [arguments] = commands("X=1 tunesmith train recipe.yaml --train.learning-rte 1  # comment")
    with pytest.raises(Exception, match="learning-rte"):
        app.parse_args(arguments, print_error=False, exit_on_error=False)


@pytest.mark.parametrize("text", cases("json"))
def test_rows_can_be_used(text, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(SystemExit, match="0"):
        main(["data", "check", str(file), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] == found["read"] == len(text.splitlines())


@pytest.mark.parametrize("text", cases("python"))
def test_python_runs(text, tmp_path, monkeypatch):
    """All of it, except for the lines below the guard of a script."""
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("page", generate.pages(), ids=name)
def test_generated_parts_are_current(page):
    text = page.read_text("utf-8")
    assert generate.filled(text) == text, f"run python docs/generate.py to update {name(page)}"


@pytest.mark.parametrize("page", LINKING, ids=name)
def test_links_lead_somewhere(page):
    assert not hooks.broken_links(page)


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_named_files_exist(page):
    named = re.findall(r"`((?:tests|bench|tunesmith|docs)/[\w/.-]+)`", page.read_text("utf-8"))
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_words_are_those_of_the_glossary(page):
    """Generated parts are the package's own text, which a test of the package checks."""
    prose = FENCE.sub(" ", generate.BLOCK.sub(" ", page.read_text("utf-8")))
    prose = " ".join(re.sub(r"`[^`]*`", " ", prose).split())
    assert not [
        f"{match[0]!r}: write {instead}"
        for pattern, instead in BANNED
        for match in re.finditer(pattern, prose, re.IGNORECASE)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "method", "column"), [("Llama-3.3-70B", "LoRA", "8 GB"), ("Llama-3.1-8B", "LoRA", "24 GB")]
)
def test_the_table_has_what_the_planner_says(model, method, column):
    """`python docs/will_it_fit.py` computes all of it, which takes too long for a test."""
    machines = {column: will_it_fit.MACHINES[column]}
    written = json.loads(will_it_fit.RESULT.read_text())[method][model]
    assert dict(will_it_fit.cells(model, method, machines)) == {column: written[column]}


PARAMETERS = {  # as published
    "SmolLM2-135M": 134.5e6,
    "Llama-3.2-1B": 1.236e9,
    "Llama-3.2-3B": 3.213e9,
    "Llama-3.1-8B": 8.030e9,
    "Qwen3-8B": 8.191e9,
    "Qwen3-14B": 14.768e9,
    "Qwen3-32B": 32.762e9,
    "Llama-3.3-70B": 70.554e9,
    "Qwen3-30B-A3B": 30.532e9,
}


@pytest.mark.parametrize("model", will_it_fit.MODELS)
def test_shapes_of_the_table_have_the_published_parameters(model, tmp_path):
    config = config_of(will_it_fit.folder_of(model, tmp_path))
    with torch.device("meta"):
        parameters = with_random_weights(config).parameters()
    assert sum(parameter.numel() for parameter in parameters) == pytest.approx(PARAMETERS[model], rel=1e-3)
