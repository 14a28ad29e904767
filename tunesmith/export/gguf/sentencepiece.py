"""Tokenizes text as llama.cpp does with a SentencePiece vocabulary, to check before writing that the ids are the same.

The algorithm (llama.cpp, `llm_tokenizer_spm`) cuts out special tokens, longest first. In the text between them it
merges two neighbours whose joined text is a token, the highest score first, then the leftmost.
"""

import heapq
from dataclasses import dataclass

SPACE = "▁"


@dataclass(frozen=True)
class SentencePiece:
    ids: dict[str, int]
    scores: list[float]
    cut: list[tuple[str, int]]
    """Special tokens, which are cut out of the text, and their ids, longest first."""
    stripping: frozenset[int]
    """Ids of special tokens that consume the whitespace after them."""

    def encode(self, text: str, prefix: bool) -> list[int]:
        """Returns the ids of text. With `prefix`, a space is added at the beginning and after each special token."""
        ids: list[int] = []
        after_special = True
        for part in self._parts(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += self._merged((" " if prefix and after_special else "") + part)
            after_special = isinstance(part, int)
        return ids

    def _parts(self, text: str) -> list[str | int]:
        parts: list[str | int] = [text] if text else []
        for token, number in self.cut:
            split: list[str | int] = []
            for part in parts:
                split += [part] if isinstance(part, int) else self._cut_out(part, token, number)
            parts = split
        return parts

    def _cut_out(self, text: str, token: str, number: int) -> list[str | int]:
        first, *rest = text.split(token)
        parts: list[str | int] = [first]
        for piece in rest:
            parts += [number, piece.lstrip(" \t\n\v\f\r") if number in self.stripping else piece]
        return [part for part in parts if part != ""]

    def _merged(self, text: str) -> list[int]:
        symbols: list[str | None] = list(text.replace(" ", SPACE))
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        waiting: list[tuple[float, int, int, str]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                together = symbols[left] + symbols[right]
                if together in self.ids:
                    heapq.heappush(waiting, (-self.scores[self.ids[together]], left, right, together))

        for right in range(1, len(symbols)):
            consider(right - 1, right)
        while waiting:
            _, left, right, together = heapq.heappop(waiting)
            if symbols[left] is None or symbols[right] is None or symbols[left] + symbols[right] != together:
                continue
            symbols[left], symbols[right] = together, None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            consider(before[left], left)
            consider(left, after[left])
        return [number for symbol in symbols if symbol for number in self._numbers(symbol)]

    def _numbers(self, symbol: str) -> list[int]:
        if symbol in self.ids:
            return [self.ids[symbol]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
