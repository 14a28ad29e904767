"""Inspects data before training, for `tunesmith data check` and `tunesmith data show`."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import Example, Group
from tunesmith.data.rows import REASONS, Row, RowProblem, Text, Where, digest
from tunesmith.data.source import ResolvedSource
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.files import json_text

Encode = Callable[[Row], list[Group]]
MOST_PARTS = 12  # tokens of a character
PART_OF_CHARACTER = "\ufffd"  # what decoding makes of one
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
# Upper bounds of the histogram's bins, in tokens.
BOUNDS = tuple(sorted(bound for power in range(3, 22) for bound in (2**power, 3 * 2 ** (power - 1))))
PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


def check(source: ResolvedSource, encode: Encode | None = None) -> dict:
    """Returns the counts and problems of a source's rows, and token figures if `encode` is given. Raises UserError if
    no row is usable."""
    ledger, seen, examples, places = Ledger(), set(), [], []
    first_problems: list[Any] = []
    for where, row in source.rows(ledger.unread):
        try:
            if isinstance(row, RowProblem):
                raise row
            identity = digest(row)
            if identity in seen:
                raise RowProblem("duplicate")
            seen.add(identity)
            if encode:
                encoded = [example for group in encode(row) for example in group]
                examples += [(len(e.ids), sum(e.supervised)) for e in encoded]
                places += [where] * len(encoded)
                for reason in {r for e in encoded for r in e.changes}:
                    ledger.changed(where, reason)
            ledger.kept()
        except RowProblem as problem:
            ledger.dropped(where, problem.reason, problem.detail)
            if len(first_problems) < 5:
                first_problems.append({"where": str(where), "reason": problem.reason, "detail": problem.detail})
    ledger.refuse_if_empty(source.path)
    summary = {
        "path": source.path,
        "format": source.format,
        "left_out": source.left_out,
        **ledger.summary(),
        "first_problems": first_problems,
    }
    return summary | (_lengths(np.array(examples), places) if examples else {})


def show(
    source: ResolvedSource,
    tokenizer: Tokenizer | None = None,
    encode: Encode | None = None,
    offset: int = 0,
    search: str = "",
    most_text: int | None = None,
) -> Iterator[dict]:
    """Yields the records from number `offset` on, counted from 0, whose text or problem has `search`, upper and lower
    case alike. Raises UserError.

    Each has `index` (its number), `where`, `kind` (chat, text, or empty), `problem` and `detail` (why it is dropped;
    empty if it is not), `turns` ([{role, text}]) and, with a tokenizer, `examples`: [{tokens, learned (tokens),
    changes, segments: [{text, learned, ids, pieces}], is_cut}], with the text of each token in `pieces`. `most_text`:
    of an example and of a turn, in characters.
    """
    for index, (where, row) in enumerate(source.rows(start=offset), offset):
        turns = [] if isinstance(row, RowProblem) else _turns(row)
        kind = "" if isinstance(row, RowProblem) else type(row).__name__.lower()
        problem, examples = row if isinstance(row, RowProblem) else None, []
        # A record that is not searched for is not encoded, which takes most of the time.
        texts = [str(where), REASONS[problem.reason], problem.detail] if problem else [turn["text"] for turn in turns]
        if search and not any(search.casefold() in text.casefold() for text in texts):
            continue
        if tokenizer and encode and not isinstance(row, RowProblem):
            try:
                examples = [_shown(tokenizer, one, most_text) for group in encode(row) for one in group]
            except RowProblem as found:
                problem = found
        yield {
            "index": index,
            "where": str(where),
            "kind": kind,
            "problem": REASONS[problem.reason] if problem else "",
            "detail": problem.detail if problem else "",
            "turns": [turn | {"text": turn["text"][:most_text]} for turn in turns],
            "examples": examples,
        }


def _turns(row: Row) -> list[dict[str, str]]:
    if isinstance(row, Text):
        return [{"role": "", "text": row.text}]
    turns = []
    for message in row.messages:
        parts = [message.get("reasoning_content"), message.get("content")]
        parts += [json_text(message["tool_calls"])] if message.get("tool_calls") else []
        turns.append({"role": message["role"], "text": "\n".join(filter(None, parts))})
    return turns


def _shown(tokenizer: Tokenizer, example: Example, most_text: int | None) -> dict:
    """An example for `show`."""
    segments, left = [], most_text
    for segment in segments_of(tokenizer, example):
        if left is not None:
            if len(segment["text"]) > left:
                segment = segment | {"text": segment["text"][:left], "ids": segment["ids"][:left]}
            left -= len(segment["text"])
        segments.append(segment | {"pieces": pieces_of(tokenizer, segment["ids"], segment["text"])})
        if left == 0:
            break
    return {
        "tokens": len(example.ids),
        "learned": sum(example.supervised),
        "changes": [REASONS[reason] for reason in example.changes],
        "segments": segments,
        "is_cut": left == 0,
    }


def segments_of(tokenizer: Tokenizer, example: Example) -> Iterator[dict]:
    """Yields the runs of learned and of other tokens as {text, learned, ids}. The tokens of a run are decoded together,
    because a character may take several."""
    start, flags = 0, example.supervised
    for end in range(1, len(flags) + 1):
        if end == len(flags) or flags[end] != flags[start]:
            before, until = tokenizer.decode(example.ids[:start]), tokenizer.decode(example.ids[:end])
            yield {"text": until[len(before) :], "learned": flags[start], "ids": example.ids[start:end]}
            start = end


def pieces_of(tokenizer: Tokenizer, ids: list[int], text: str) -> list[str]:
    """The text of each token of a run. A character that takes several tokens is the last one's. What lies beyond the
    end of `text`, which may be cut, has no piece. Empty if the pieces do not give the text."""
    pieces = _decoded_apart(tokenizer, ids)
    if "".join(pieces).startswith(f" {text}"):  # decoding drops the space before the first word
        pieces[0] = pieces[0][1:]
    if not "".join(pieces).startswith(text):
        return []
    fitting, left = [], len(text)
    for piece in pieces:
        if piece and not left:
            break
        fitting.append(piece[:left])
        left -= len(fitting[-1])
    return fitting


def _decoded_apart(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    before = tokenizer.encode("a")[0][-1:]  # so that no token is the first, whose space may be dropped
    skipped = len(tokenizer.decode(before))
    pieces: list[str] = []
    part: list[int] = []  # of a character that is not whole yet
    known: dict[tuple[int, ...], str] = {}
    for token in ids:
        part.append(token)
        key = tuple(part)
        if key not in known:
            known[key] = tokenizer.decode([*before, *part])[skipped:]
        is_whole = PART_OF_CHARACTER not in known[key] or len(part) == MOST_PARTS
        pieces.append(known[key] if is_whole else "")
        part = [] if is_whole else part
    return pieces


def _lengths(examples: np.ndarray, places: list[Where]) -> dict:
    """Computes figures from an (examples, 2) array of tokens and supervised tokens. `places` has the row of each
    example. `histogram` is {most tokens: examples}."""
    tokens = examples[:, 0]
    counts = np.bincount(np.searchsorted(BOUNDS, tokens), minlength=len(BOUNDS) + 1)
    used = np.flatnonzero(counts)
    return {
        "histogram": {BOUNDS[i]: int(counts[i]) for i in range(used[0], min(used[-1] + 1, len(BOUNDS)))},
        "longest": {"where": str(places[tokens.argmax()]), "tokens": int(tokens.max())},
        "tokens": int(tokens.sum()),
        "supervised_share": float(examples[:, 1].sum() / tokens.sum()),
        "length_percentiles": {p: int(np.percentile(tokens, p, method="higher")) for p in PERCENTILES},
        "lost_share": {n: float((tokens > n).mean()) for n in LENGTHS if n < tokens.max()} or {LENGTHS[0]: 0.0},
    }
