"""Recipes as YAML text: read with the line of each mistake, and written."""

import re
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tunesmith.errors import UserError, quoted
from tunesmith.files import read_text

DATA_SUFFIXES = {".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt"}
MOST_NODES = 100_000  # of a recipe, aliases written out: a short text with aliases can hold billions


class BadText(UserError):
    """Text that is no recipe. `problem` is the message without the place, `line` is None where no line is to blame."""

    def __init__(self, where: str | Path, line: int | None, problem: str):
        super().__init__(f"{where}{'' if line is None else f':{line}'}: {problem}")
        self.line, self.problem = line, problem


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError with file:line."""
    if path.is_file() and DATA_SUFFIXES & set(path.suffixes):
        raise UserError(
            f"{path}: data, not a recipe; `tunesmith init --model MODEL --data {quoted(path)}` writes a recipe"
        )
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; `tunesmith init` writes one") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not a recipe; name the YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return parse(text, path)


def parse(text: str, where: str | Path = "recipe") -> dict[str, Any]:
    """The mapping in YAML text. Raises BadText."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None:
            _count(root, where)
        values = loader.construct_document(root) if root is not None else None
    except yaml.constructor.ConstructorError as error:
        raise BadText(where, error.problem_mark.line + 1, error.problem) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = f"not valid YAML: {getattr(error, 'problem', None) or getattr(error, 'reason', error)}"
        raise BadText(where, mark.line + 1 if mark else None, problem) from None
    except RecursionError:
        raise BadText(where, None, "not a recipe: nested too deeply") from None
    except ValueError as error:  # a date such as 2026-99-99
        raise BadText(where, None, f"not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise BadText(where, None, "a recipe is a mapping with `model` and `data`; `tunesmith init` writes one")
    return values


def lines(text: str) -> dict[str, int]:
    """The line of each key of a valid text, by its dotted name; items of lists are counted from 0."""
    root = yaml.compose(text, _Loader)
    return dict(_lines(root, "")) if root is not None else {}


def dump(values: dict[str, Any]) -> str:
    """YAML text of plain values, in their order."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def dump_line(value: Any) -> str:
    """YAML text of a plain value on one line."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**9
    )
    return text.removesuffix("...\n").strip()


def _lines(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        inner = [(key.value, key.start_mark, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inner = [(number, value.start_mark, value) for number, value in enumerate(node.value)]
    else:
        return
    for name, mark, value in inner:
        yield f"{prefix}{name}", mark.line + 1
        yield from _lines(value, f"{prefix}{name}.")


def _count(root: yaml.Node, where: str | Path) -> None:
    """Raises BadText if a text holds itself, or more than MOST_NODES with its aliases written out."""
    counts: dict[int, int | None] = {}  # by node; None while it is counted

    def count(node: yaml.Node) -> int:
        if id(node) not in counts:
            counts[id(node)] = None
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            inner = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
            counts[id(node)] = 1 + sum(map(count, inner))
        nodes = counts[id(node)]
        if nodes is None or nodes > MOST_NODES:
            raise BadText(where, node.start_mark.line + 1, "not a recipe: its aliases repeat too much")
        return nodes

    count(root)


# libyaml is ten times as fast as the parser in Python.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """YAML 1.1 reads 1e-4 as a string; people mean a number. And it takes the last of two values for one key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{name}` is set twice; keep one", key.start_mark)
            seen.add(name)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


class _Dumper(yaml.SafeDumper):
    """Puts text that looks like such a number in quotes."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
