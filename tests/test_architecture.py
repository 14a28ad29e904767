"""The package keeps to docs/explanation/architecture.md: imports point down, and files and functions are short."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tunesmith"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up; a folder may import those before it, and its own files.
FLOORS = [
    "units",
    "errors",
    "files",
    "recipe_errors",
    "recipe_text",
    "registry",
    "recipe",
    "plan",
    "run",
    "machine",
    "leases",
    "energy",
    "data",
    "answer_formats",
    "model",
    "inference",
    "methods",
    "training",
    "evaluate",
    "trackers",
    "planner",
    "finetune",
    "export",
    "serve",
    "connect",
    "jobs",
    "studio",
    "demo",
    "studio",
    "cli",
    "__main__",
]


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> set[str]:
    """Returns Tunesmith's modules that a file imports, also inside functions."""
    names = {name_of(f) for f in FILES}
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & names - {name_of(file), "tunesmith"}


def test_there_is_no_circle():
    TopologicalSorter({name_of(f): imported(f) for f in FILES if f.parent != PACKAGE or f.stem != "__init__"}).prepare()


@pytest.mark.parametrize("file", [f for f in FILES if f != PACKAGE / "__init__.py"], ids=name_of)
def test_imports_point_down(file):
    own = name_of(file).split(".")[1]
    allowed = {*FLOORS[: FLOORS.index(own)], own}
    assert {name.split(".")[1] for name in imported(file)} <= allowed


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert text.count("\n") <= 600 and max(map(len, text.splitlines()), default=0) <= 120
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 90, node.name


# The launcher writes one line to stderr: that a stop saves first.
SILENT = [f for f in FILES if "cli" not in f.parts and name_of(f) != "tunesmith.finetune.launch"]


@pytest.mark.parametrize("file", SILENT, ids=name_of)
def test_only_the_command_line_prints(file):
    """Everything else writes events or returns its results."""
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    assert not any(isinstance(function, ast.Name) and function.id == "print" for function in calls)
