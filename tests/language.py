"""The project's glossary: words that its prose does not use, and where a Python file has prose."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

BANNED = [
    (r"(?<!model )\bcards?\b", "GPU"),
    (r"(?<![-_])\bprocessors?\b(?! configs?\b)", "CPU"),
    (r"\bmixtures?\b(?![ -]of[ -]experts)", "mixture of experts, or MoE"),
    (r"\banew\b", "again"),
    (r"\b(thereof|therein|thereby|whereof|wherein)\b", "a plain clause"),
    (r"\b(is|are|be|was|were) said\b", "who says it, or the thing itself"),
    (r"\basked of\b", "requires, or the thing itself"),
    (r"\bwhat (is|was|were|are) asked\b", "the request, or the requested …"),
    (r"\b(is|are|was|were|be) told\b", "who reports it, or: is inferred, receives"),
    (r"\btold (apart|by)\b", "distinguished, recognised by"),
    (r"\b(give|gives|given|giving) back\b", "release, or return"),
    (r"\b(goes|go|going|went) on\b", "continues"),
    (r"\bcome[s]? of\b|\bcame of\b", "result"),
    (r"\botherwise than\b", "differently from"),
    (r"\bas (it|they) stands?\b", "unchanged"),
    (r"\b(stand|stands|stood) (in|behind|around|between|before)\b", "is in, is after, …"),
    (r"\b(take|takes|taken) along\b|\btakes? \w+ along\b", "consume"),
    (r"\b(nobody|somebody|whoever)\b", "the actor: the user, the client"),
    (r"\bsay --", "give --"),
    (r"\bwhole or not at all\b", "atomically"),
    (r"\bbut for\b", "except"),
    (r"\blikeliest\b", "most likely"),
    (r"\b(ours|theirs)\b", "Tunesmith's, or its own …"),
    (r"\blearn(ing)? pace\b", "learning-rate schedule"),
    (r"\bfirst choices?\b", "top token"),
    (r"\bmemory ladder\b|\bthe ladder\b|\brungs?\b", "out-of-memory fallback"),
    (r"\b(is|are|was|were) called as\b", "is named after"),
    (r"\bat hand\b", "available"),
    (r"\bwhat (came|comes|has come) of (it|them|this)\b", "the result"),
    (r"\bmeasured beside\b", "measured alongside"),
    (r"\bdone again\b", "repeated, retried"),
    (r"\(but (of|under|for|in|with|the|a|on|at)\b", "except"),
    (r"\bin (its|their|the) user's words\b", "in the user's terms"),
]
"""(regular expression, which ignores case; what to write instead)."""

HEADLESS = re.compile(r"(What|Of|Those)\b")
"""The beginning of a docstring that has no subject or verb."""


def texts(source: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line, kind, text) of each docstring, string literal and comment. A kind is docstring, string or
    comment."""
    tree = ast.parse(source)
    bare = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, "docstring" if id(node) in bare else "string", node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], "comment", token.string


def problems(file: Path) -> list[str]:
    """Returns one line for each banned word and headless docstring in a file, with its place."""
    found = []
    for line, kind, text in texts(file.read_text("utf-8")):
        if kind == "docstring" and HEADLESS.match(text):
            found.append(f"{file}:{line}: a docstring that starts with {text.split()[0]!r}")
        for pattern, instead in BANNED:
            for match in re.finditer(pattern, text, re.IGNORECASE):
                at = line + text.count("\n", 0, match.start())
                found.append(f"{file}:{at}: {match[0]!r} in a {kind}; write: {instead}")
    return found
