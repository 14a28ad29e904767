"""An answer's tokens as text, piece by piece: no half character, no special token, nothing from a stop string on."""

from tunesmith.data.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_WAIT = 64


class Writer:
    """Give it each token; it gives back the text that is certain. `shown` are special ids that stay."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), shown: frozenset[int] = frozenset()):
        self.stopped: str | None = None
        """The stop string that ended the answer."""
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids - shown
        self._stop = stop
        self._held = ""  # may be the beginning of a stop string
        self._ids: list[int] = []  # the last ones written, then those not yet
        self._written = 0

    def push(self, token: int) -> str:
        """The text that this token adds, or that it makes certain."""
        if token in self._hidden:
            return ""
        self._ids.append(token)
        # A token's text depends on the one before it: spaces, and bytes that make one character.
        before, after = self._decode(self._ids[:self._written]), self._decode(self._ids)
        waits = after.endswith(REPLACEMENT) and len(self._ids) - self._written < LONGEST_WAIT
        if waits or len(after) <= len(before):
            return ""
        self._ids, self._written = self._ids[self._written:], len(self._ids) - self._written
        return self._until_stop(after[len(before):])

    def finish(self) -> str:
        """What was still held back; a character that was never completed is left out."""
        if self.stopped is not None:
            return ""
        before, after = self._decode(self._ids[:self._written]), self._decode(self._ids)
        rest = self._until_stop(after[len(before):].rstrip(REPLACEMENT))
        rest, self._held = rest + ("" if self.stopped is not None else self._held), ""
        return rest

    def _until_stop(self, new: str) -> str:
        text = self._held + new
        found = min(((text.find(s), s) for s in self._stop if s in text), default=None)
        if found is not None:
            self.stopped, self._held = found[1], ""
            return text[:found[0]]
        held = max((tail_of(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - held:]
        return text[:len(text) - held]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


def tail_of(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
