"""An answer's tokens as text, piece by piece: no half character, no special token, nothing from a stop string on."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from tunesmith.answer_formats.streaming import tail_of
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.inference.interface import Piece, Request, Token

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_WAIT = 64


class Writer:
    """Give it each token; it returns the text that is certain. `shown` are special ids that stay, `context` the ids
    before the text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: tuple[str, ...] = (),
        shown: frozenset[int] = frozenset(),
        context: Sequence[int] = (),
    ):
        self.stopped: str | None = None
        """The stop string that ended the answer."""
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids - shown
        self._stop = stop
        self._held = ""  # may be the beginning of a stop string
        self._ids = list(context)  # the last ones written, then those not yet
        self._written = len(context)

    def push(self, token: int) -> str:
        """The text that this token adds, or that it makes certain."""
        if token in self._hidden:
            return ""
        self._ids.append(token)
        # A token's text depends on the one before it: spaces, and bytes that make one character.
        before, after = self._decode(self._ids[: self._written]), self._decode(self._ids)
        waits = after.endswith(REPLACEMENT) and len(self._ids) - self._written < LONGEST_WAIT
        if waits or len(after) <= len(before):
            return ""
        self._ids, self._written = self._ids[self._written :], len(self._ids) - self._written
        return self._until_stop(after[len(before) :])

    def finish(self) -> str:
        """Returns the text that was held back, without a character that was never completed."""
        if self.stopped is not None:
            return ""
        before, after = self._decode(self._ids[: self._written]), self._decode(self._ids)
        rest = self._until_stop(after[len(before) :].rstrip(REPLACEMENT))
        rest, self._held = rest + ("" if self.stopped is not None else self._held), ""
        return rest

    def _until_stop(self, new: str) -> str:
        text = self._held + new
        found = min(((text.find(s), s) for s in self._stop if s in text), default=None)
        if found is not None:
            self.stopped, self._held = found[1], ""
            return text[: found[0]]
        held = max((tail_of(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


class Delivery:
    """Hands an answer on as its tokens come, or at its end, as the request wants; and counts. `generated` and `cached`
    are those of Piece; `counts` are the engine's metrics."""

    def __init__(self, request: Request, tokenizer: Tokenizer, deliver: Callable[[Piece], None], counts: Counter[str]):
        self.generated = self.cached = 0
        self._request, self._deliver, self._counts = request, deliver, counts
        self._writer = Writer(tokenizer, request.stop, request.shown, request.context)
        self._piece = Piece()
        self._arrived = time.monotonic()

    def take(self, token: int, ends: bool, told: Token | None = None) -> str | None:
        """One more token; `ends`: it is one that ends answers. Returns how the answer ends with it, if it does."""
        if not self.generated:
            self._counts["first_tokens"] += 1
            self._counts["first_token_seconds"] += time.monotonic() - self._arrived
        self.generated += 1
        if ends:
            self._piece.stop_token = told
            return "stop"
        text = self._writer.push(token)
        self._piece.text += text
        if told is not None:
            self._piece.tokens.append(told)
        if self._request.stream and (text or told is not None):
            self._send()
        if self._writer.stopped is not None:
            return "stop"
        return "length" if self.generated >= self._request.max_new_tokens else None

    def end(self, finish: str, error: str = "") -> None:
        """The last piece."""
        self._counts[f"finished_{finish}"] += 1
        self._counts["prompt_tokens"] += len(self._request.ids)
        self._counts["cached_tokens"] += self.cached
        self._counts["generated_tokens"] += self.generated
        if finish not in ("cancelled", "error"):
            self._piece.text += self._writer.finish()
            finish = "stop" if self._writer.stopped is not None else finish
        self._piece.finish, self._piece.error, self._piece.stop_text = finish, error, self._writer.stopped
        self._send()

    def _send(self) -> None:
        self._piece.generated, self._piece.cached = self.generated, self.cached
        piece, self._piece = self._piece, Piece()
        self._deliver(piece)
