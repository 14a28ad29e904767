"""Marks in text that comes in pieces, and the spaces between what is in JSON."""

# In llguidance's words: a model that begins to write spaces may never stop.
SPACES = {"whitespace_pattern": r"\n?[ \t]{0,16}"}


class ByState:
    """Reads text as it comes. `_in_STATE(said)` takes what it can of `_text`, adds it to `said`, and tells whether the
    next state has something to read."""

    _text = _state = ""

    def push(self, text: str) -> list:
        """What is certain now, in order."""
        self._text += text
        said: list = []
        while getattr(self, f"_in_{self._state}")(said):
            pass
        return said


def tail_of(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
