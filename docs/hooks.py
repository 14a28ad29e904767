"""MkDocs hook: a broken link in README, CONTRIBUTING or CHANGELOG fails the build, as one in docs/ does."""

import logging
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
log = logging.getLogger("mkdocs.hooks.links")


def on_pre_build(config) -> None:
    for page in PAGES:
        for problem in broken_links(ROOT / page):
            log.warning(problem)


def broken_links(page: Path) -> list[str]:
    """A line for each link of a page that leads to no file, or to no heading of a file."""
    problems = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if "://" in target:
            continue
        if not file.exists():
            problems.append(f"{page.name}: {target}: no such file")
        elif anchor and anchor not in headings(file):
            problems.append(f"{page.name}: {target}: no such heading")
    return problems


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    return {_slug(line.lstrip("# ")) for line in _prose(page).splitlines() if re.match("#+ ", line)}


def _slug(heading: str) -> str:
    """The anchor that Python-Markdown makes of a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def _prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
