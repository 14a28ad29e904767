"""Looking at data before training: `tunesmith data check` and `tunesmith data show`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import Group
from tunesmith.data.rows import Row, RowProblem, Where, digest
from tunesmith.data.source import ResolvedSource

Encode = Callable[[Row], list[Group]]
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
BOUNDS = tuple(sorted(bound for power in range(3, 22) for bound in (2**power, 3 * 2 ** (power - 1))))  # of the bars
PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


def check(source: ResolvedSource, encode: Encode | None = None) -> dict:
    """Counts a source's rows, and with `encode` their tokens. Raises UserError if no row is usable."""
    ledger, seen, examples, places = Ledger(), set(), [], []
    first: list[Any] = []
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
            if len(first) < 5:
                first.append({"where": str(where), "reason": problem.reason, "detail": problem.detail})
    ledger.refuse_if_empty(source.path)
    found = {
        "path": source.path,
        "format": source.format,
        "left_out": source.left_out,
        **ledger.summary(),
        "first_problems": first,
    }
    return found | (_lengths(np.array(examples), places) if examples else {})


def _lengths(examples: np.ndarray, places: list[Where]) -> dict:
    """Figures of (examples, 2): tokens and supervised tokens. `histogram`: {tokens at most: examples}."""
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
