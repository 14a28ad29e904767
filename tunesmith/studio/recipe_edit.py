"""Changes of a recipe's text that leave its comments and its order as they are."""

import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from tunesmith.recipe_text import dump, dump_line

ABSENT = object()


class Edit(NamedTuple):
    start: int
    """In characters."""
    end: int
    text: str


def changed(text: str, old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """A text that says `old`, so changed that it says `new`; None where a change concerns more than single lines.
    The caller checks what the result says."""
    root = yaml.compose(text, yaml.SafeLoader)
    edits: list[Edit] = []
    for path, value in _changes(old, new):
        edit = _edit(text, root, path, value)
        if edit is None:
            return None
        edits.append(edit)
    for edit in sorted(edits, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _changes(old: dict[str, Any], new: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    """The paths whose values differ, with the new ones."""
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name, ABSENT), new.get(name, ABSENT)
        if isinstance(before, dict) and isinstance(after, dict) and after:
            yield from _changes(before, after, (*above, name))
        elif before != after or isinstance(before, bool) != isinstance(after, bool):
            yield (*above, name), after


def _edit(text: str, root: yaml.Node | None, path: tuple[str, ...], value: Any) -> Edit | None:
    node = root
    for name in path[:-1]:
        node = next((inner for key, inner in _pairs(node) if key.value == name), None)
    pairs = _pairs(node)
    at = next((number for number, (key, _) in enumerate(pairs) if key.value == path[-1]), None)
    if not isinstance(node, yaml.MappingNode) or not pairs:
        return None
    if at is None:
        return None if value is ABSENT else _addition(text, node, path[-1], value)
    key, inner = pairs[at]
    if not _is_on_one_line(key, inner):
        return None
    if value is not ABSENT:
        return Edit(inner.start_mark.index, inner.end_mark.index, dump_line(value))
    if node.flow_style:
        return _removal_in_flow(pairs, at)
    start, end = _line_around(text, key.start_mark.index, inner.end_mark.index)
    is_alone = not text[start : key.start_mark.index].strip() and len(pairs) > 1
    return Edit(start, end, "") if is_alone else None


def _addition(text: str, node: yaml.MappingNode, name: str, value: Any) -> Edit | None:
    """Behind the last key of a mapping."""
    key, last = node.value[-1]
    end = last.end_mark.index
    if node.flow_style:
        return Edit(end, end, f", {name}: {dump_line(value)}")
    first = node.value[0][0]
    start, _ = _line_around(text, first.start_mark.index, first.start_mark.index)
    if text[start : first.start_mark.index].strip():
        return None
    if (isinstance(last, yaml.ScalarNode) and _is_on_one_line(key, last)) or last.flow_style:
        _, end = _line_around(text, end, end)
    else:  # a block ends where the next key begins, behind the comments between them
        end = key.start_mark.index + len(text[key.start_mark.index : end].rstrip())
        _, end = _line_around(text, end, end)
    newline = "" if text[:end].endswith("\n") else "\n"
    added = textwrap.indent(dump({name: value}), " " * first.start_mark.column)
    return Edit(end, end, newline + added)


def _removal_in_flow(pairs: list[tuple[yaml.Node, yaml.Node]], at: int) -> Edit | None:
    if len(pairs) == 1:
        return None
    if at + 1 < len(pairs):
        return Edit(pairs[at][0].start_mark.index, pairs[at + 1][0].start_mark.index, "")
    return Edit(pairs[at - 1][1].end_mark.index, pairs[at][1].end_mark.index, "")


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _is_on_one_line(key: yaml.Node, value: yaml.Node) -> bool:
    return key.start_mark.line == value.start_mark.line == value.end_mark.line


def _line_around(text: str, start: int, end: int) -> tuple[int, int]:
    """The beginning of the line of `start`, and that of the line behind `end`."""
    newline = text.find("\n", end)
    return text.rfind("\n", 0, start) + 1, len(text) if newline < 0 else newline + 1
