"""What is in data, and rows as the model sees them, for a person."""

from itertools import islice

from rich.console import Console
from rich.text import Text as Styled

from tunesmith.cli.terminal import bar
from tunesmith.data.inspect import Encode
from tunesmith.data.masking import Example
from tunesmith.data.records import describe
from tunesmith.data.rows import REASONS, RowProblem
from tunesmith.data.source import ResolvedSource
from tunesmith.data.tokenizer import Tokenizer

BAR = 30  # characters
LARGE_SHARE = 0.25  # of all tokens in one row, which is then named


def print_report(found: dict, sequence_length: int | None = None) -> None:
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


def print_rows(source: ResolvedSource, tokenizer: Tokenizer, rows: int, encode: Encode) -> None:
    """Prints the first rows as the model sees them: what it learns in green, or between marks without colour."""
    console = Console(highlight=False, markup=False, emoji=False)
    marks = _marks(console)
    console.print(
        f"Learned: what stands between {marks[0]} and {marks[1]}."
        if marks
        else Styled.assemble(("Green", "bold green"), " is learned, ", ("the rest", "dim"), " is not.")
    )
    for where, row in islice(source.rows(), rows):
        try:
            if isinstance(row, RowProblem):
                raise row
            examples = [example for group in encode(row) for example in group]
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
