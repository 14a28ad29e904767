"""Style sheets of views cannot collide: all rules of one are inside of the class of its view."""

import re

import pytest

from tunesmith.studio.page import STATIC

SOURCES = STATIC.parent / "web" / "src"
SHARED = ("shell", "charts", "files")  # the frame, and parts of several views
VIEWS = [f".view-{path}" for path in re.findall(r'path: "(\w+)"', (SOURCES / "studio" / "routes.ts").read_text())]
FILES = [file for file in (SOURCES / "studio").rglob("*/*.css") if file.parent.name not in SHARED]


def top_level(css: str) -> list[str]:
    """The selectors, and at-rules, that are not inside of others."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    found, depth, begun = [], 0, 0
    for place, character in enumerate(css):
        if character == "{":
            if depth == 0:
                found.append(css[begun:place].strip())
            depth += 1
        elif character == "}":
            depth -= 1
            begun = place + 1
    return found


def test_nested_rules_are_not_at_the_top():
    assert top_level("/* .x {} */ .a { .b { c: d } @media (e) { f: g } } @media (h) { .i { j: k } }") == [
        ".a",
        "@media (h)",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_style_sheet_has_one_root(file):
    (root,) = top_level(file.read_text())
    assert re.fullmatch(r"\.[\w-]+", root), root
    others = [other for other in FILES if other != file and top_level(other.read_text()) == [root]]
    assert not others or root in VIEWS, others
