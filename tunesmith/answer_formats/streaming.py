"""Marks that templates write, text that comes in pieces, and the spaces between what is in JSON."""

import re

# In llguidance's words: a model that begins to write spaces may never stop.
SPACES = {"whitespace_pattern": r"\n?[ \t]{0,16}"}
MARK = re.compile(r"<[^<>\n]*>?|\[[^\[\]\s]*\]|\s+|[^\s<\[]+|.", re.DOTALL)
"""One piece of a template's text: a tag or the beginning of one, whitespace, or a word."""


class ByState:
    """Reads text as it comes. `_in_STATE(said)` takes what it can of `_text`, adds it to `said`, and tells whether the
    next state has something to read."""

    _text = _state = ""

    def push(self, text: str) -> list:
        """The parts that are certain now, in order."""
        self._text += text
        said: list = []
        while getattr(self, f"_in_{self._state}")(said):
            pass
        return said


def tail_of(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)


def common_start(first: str, second: str) -> str:
    """The whole marks that both texts begin with."""
    return _shared(MARK.findall(first), MARK.findall(second))


def common_end(first: str, second: str) -> str:
    """The whole marks that both texts end with."""
    marks = [MARK.findall(text)[::-1] for text in (first, second)]
    return first[len(first) - len(_shared(*marks)) :]


def _shared(first: list[str], second: list[str]) -> str:
    count = next((i for i, (one, other) in enumerate(zip(first, second)) if one != other), min(len(first), len(second)))
    return "".join(first[:count])
