"""Looking at data before training: `tunesmith data check` and `tunesmith data show`."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text as Styled

from tunesmith.data.files import select
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import Example, Mask, encode_chat, encode_text
from tunesmith.data.records import describe
from tunesmith.data.rows import REASONS, Chat, Row, RowProblem, Where, digest
from tunesmith.data.source import formats_of, named, rows_of, template_variables
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.recipe import Model, Source
from tunesmith.terminal import bar

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
BOUNDS = tuple(sorted(bound for power in range(3, 22) for bound in (2**power, 3 * 2 ** (power - 1))))  # of the bars
BAR = 30  # characters
LARGE_SHARE = 0.25  # of all tokens in one row, which is then named
PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


def check(source: Source, tokenizer: Tokenizer | None, mask: Mask = "assistant") -> dict:
    """What a source holds, in tokens too if there is a tokenizer. Raises UserError if nothing in it is usable."""
    ledger, seen, examples, places = Ledger(), set(), [], []
    first: list[Any] = []
    for where, row in rows_of(source, ledger.unread):
        try:
            if isinstance(row, RowProblem):
                raise row
            identity = digest(row)
            if identity in seen:
                raise RowProblem("duplicate")
            seen.add(identity)
            if tokenizer:
                encoded = _encode(tokenizer, row, mask)
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
        "format": named(formats_of(source)),
        "left_out": select(source).left_out,
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


def report(found: dict, sequence_length: int | None = None) -> None:
    """Prints what `check` found; `sequence_length` is that of the recipe, where there is one."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{found['path']}: format {found['format']}, {found['read']:,} rows read, {found['kept']:,} usable")
    if found["left_out"]:
        console.print(f"  left out: {', '.join(found['left_out'])}", style="yellow", soft_wrap=True)
    for action in ("dropped", "changed"):
        for reason, count in found[action].items():
            console.print(f"  {count:,} {action}: {REASONS[reason]}", style="yellow")
    if found["unread"]:
        console.print(f"  columns not read: {describe(found['unread'])}", style="yellow", soft_wrap=True)
    dropped, first = sum(found["dropped"].values()), found["first_problems"]
    if first:
        console.print(
            f"  The first {len(first)} of {dropped:,} dropped rows:" if dropped > len(first) else "  The dropped rows:",
            style="dim",
        )
    for problem in first:
        detail = f" ({problem['detail']})" if problem["detail"] else ""
        console.print(f"  {problem['where']}: {REASONS[problem['reason']]}{detail}", style="dim", soft_wrap=True)
    if "tokens" not in found:
        console.print("  Add --model to see token lengths and how much is trained on.")
        return
    _report_lengths(console, found, sequence_length)


def _report_lengths(console: Console, found: dict, sequence_length: int | None) -> None:
    console.print(f"  {found['tokens']:,} tokens, {found['supervised_share']:.1%} of them supervised")
    longest = found["longest"]
    if len(found["histogram"]) > 1 and longest["tokens"] > LARGE_SHARE * found["tokens"]:
        console.print(
            f"  {longest['where']} alone holds {longest['tokens'] / found['tokens']:.0%} of all tokens",
            style="yellow",
            soft_wrap=True,
        )
    most = max(found["histogram"].values())
    console.print("\n  tokens    examples")
    for bound, count in found["histogram"].items():
        style = "red" if sequence_length and bound > sequence_length else "green"
        console.print(Styled.assemble(f"  ≤ {bound:>7,} ", (bar(count / most, BAR), style), f" {count:,}"))
    if sequence_length and longest["tokens"] > sequence_length:
        console.print(f"  red: longer than the recipe's data.sequence_length, {sequence_length:,}", style="dim")
    percentiles = found["length_percentiles"]
    console.print(
        f"\n  half of the examples have at most {percentiles[50]:,} tokens, 95 % at most "
        f"{percentiles[95]:,}, the longest {longest['tokens']:,}"
    )
    for length, share in found["lost_share"].items():
        if share:
            console.print(f"  data.sequence_length: {length:,} would lose {share:.1%} of them")


def show(source: Source, tokenizer: Tokenizer, rows: int, mask: Mask) -> None:
    """Prints the first rows as the model sees them: what it learns in green, or between marks without colour."""
    console = Console(highlight=False, markup=False, emoji=False)
    marks = _marks(console)
    console.print(
        f"Learned: what stands between {marks[0]} and {marks[1]}."
        if marks
        else Styled.assemble(("Green", "bold green"), " is learned, ", ("the rest", "dim"), " is not.")
    )
    for where, row in islice(rows_of(source), rows):
        try:
            if isinstance(row, RowProblem):
                raise row
            examples = _encode(tokenizer, row, mask)
        except RowProblem as problem:
            console.print(f"{where}: dropped: {REASONS[problem.reason]}. {problem.detail}", style="red")
            continue
        for example in examples:
            learned = sum(example.supervised)
            console.rule(Styled(f"{where}  {len(example.ids)} tokens, {learned} supervised"), align="left")
            console.print(_coloured(tokenizer, example, marks), soft_wrap=True)


def _marks(console: Console) -> tuple[str, str] | None:
    """What stands around learned text where colour cannot show it: in a file, a pipe, with NO_COLOR or TERM=dumb."""
    if console.color_system and not console.no_color:
        return None
    return ("⟦", "⟧") if console.encoding.lower().startswith("utf") else ("[[", "]]")


def _coloured(tokenizer: Tokenizer, example: Example, marks: tuple[str, str] | None) -> Styled:
    """Runs of tokens of one kind decoded together, as one character may be several tokens."""
    styled, start = Styled(), 0
    flags = example.supervised
    for end in range(1, len(flags) + 1):
        if end == len(flags) or flags[end] != flags[start]:
            before, until = tokenizer.decode(example.ids[:start]), tokenizer.decode(example.ids[:end])
            text = until[len(before) :]
            styled.append(text.join(marks) if marks and flags[start] else text, "bold green" if flags[start] else "dim")
            start = end
    return styled


def _encode(tokenizer: Tokenizer, row: Row, mask: Mask) -> list[Example]:
    return encode_chat(tokenizer, row, mask) if isinstance(row, Chat) else [encode_text(tokenizer, row.text)]


def tokenizer_of(model: Model, folder: Path, sources: list[Source]) -> Tokenizer:
    """The base's tokenizer with the template that training on these sources uses; new tokens are not in it."""
    given = model.chat_template_kwargs
    kwargs = template_variables(Tokenizer.load(folder, model.chat_template, given), sources, given)
    return Tokenizer.load(folder, model.chat_template, kwargs)
