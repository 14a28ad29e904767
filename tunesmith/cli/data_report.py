"""Prints the findings of `tunesmith data check`, and rows as the model sees them."""

from itertools import islice

from rich.console import Console
from rich.text import Text as Styled

from tunesmith.cli.terminal import bar
from tunesmith.data.inspect import Encode, show
from tunesmith.data.records import describe
from tunesmith.data.rows import REASONS
from tunesmith.data.source import ResolvedSource
from tunesmith.data.tokenizer import Tokenizer

BAR = 30  # characters
LARGE_SHARE = 0.25  # share of all tokens above which a single row is named


def print_report(findings: dict, sequence_length: int | None = None) -> None:
    """Prints the findings of `check`. `sequence_length` is the recipe's, in tokens, if there is a recipe."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(
        f"{findings['path']}: format {findings['format']}, {findings['read']:,} rows read, {findings['kept']:,} usable"
    )
    if findings["left_out"]:
        console.print(f"  left out: {', '.join(findings['left_out'])}", style="yellow", soft_wrap=True)
    for action in ("dropped", "changed"):
        for reason, count in findings[action].items():
            console.print(f"  {count:,} {action}: {REASONS[reason]}", style="yellow")
    if findings["unread"]:
        console.print(f"  columns not read: {describe(findings['unread'])}", style="yellow", soft_wrap=True)
    dropped, first = sum(findings["dropped"].values()), findings["first_problems"]
    if first:
        console.print(
            f"  The first {len(first)} of {dropped:,} dropped rows:" if dropped > len(first) else "  The dropped rows:",
            style="dim",
        )
    for problem in first:
        detail = f" ({problem['detail']})" if problem["detail"] else ""
        console.print(f"  {problem['where']}: {REASONS[problem['reason']]}{detail}", style="dim", soft_wrap=True)
    if "tokens" not in findings:
        console.print("  Add --model to see lengths in tokens and the share of supervised tokens.")
        return
    _report_lengths(console, findings, sequence_length)


def _report_lengths(console: Console, findings: dict, sequence_length: int | None) -> None:
    console.print(f"  {findings['tokens']:,} tokens, {findings['supervised_share']:.1%} of them supervised")
    longest = findings["longest"]
    if len(findings["histogram"]) > 1 and longest["tokens"] > LARGE_SHARE * findings["tokens"]:
        console.print(
            f"  {longest['where']} alone has {longest['tokens'] / findings['tokens']:.0%} of all tokens",
            style="yellow",
            soft_wrap=True,
        )
    most = max(findings["histogram"].values())
    console.print("\n  tokens    examples")
    for bound, count in findings["histogram"].items():
        style = "red" if sequence_length and bound > sequence_length else "green"
        console.print(Styled.assemble(f"  ≤ {bound:>7,} ", (bar(count / most, BAR), style), f" {count:,}"))
    if sequence_length and longest["tokens"] > sequence_length:
        console.print(f"  red: longer than the recipe's data.sequence_length of {sequence_length:,}", style="dim")
    percentiles = findings["length_percentiles"]
    console.print(
        f"\n  half of the examples have at most {percentiles[50]:,} tokens, 95 % at most "
        f"{percentiles[95]:,}, the longest {longest['tokens']:,}"
    )
    for length, share in findings["lost_share"].items():
        if share:
            console.print(f"  data.sequence_length: {length:,} would lose {share:.1%} of them")


def print_rows(
    source: ResolvedSource, tokenizer: Tokenizer, rows: int, encode: Encode, offset: int = 0, search: str = ""
) -> None:
    """Prints rows as the model sees them, with supervised tokens in green, or between marks if there is no colour.
    `offset` and `search` as in `inspect.show`."""
    console = Console(highlight=False, markup=False, emoji=False)
    marks = _marks(console)
    console.print(
        f"The text between {marks[0]} and {marks[1]} is learned."
        if marks
        else Styled.assemble(("Green", "bold green"), " is learned, ", ("the rest", "dim"), " is not.")
    )
    shown = list(islice(show(source, tokenizer, encode, offset, search), rows))
    for row in shown:
        if row["problem"]:
            console.print(f"{row['where']}: dropped: {row['problem']}. {row['detail']}", style="red")
        for example in row["examples"]:
            title = f"{row['where']}  {example['tokens']} tokens, {example['learned']} supervised"
            console.rule(Styled(title), align="left")
            console.print(_coloured(example["segments"], marks), soft_wrap=True)
    if not shown:
        console.print(f"{source.path}: no further rows" + (f" with {search!r}" if search else ""), style="yellow")


def _marks(console: Console) -> tuple[str, str] | None:
    """Returns marks for supervised text where there is no colour: in a file, a pipe, with NO_COLOR or TERM=dumb."""
    if console.color_system and not console.no_color:
        return None
    return ("⟦", "⟧") if console.encoding.lower().startswith("utf") else ("[[", "]]")


def _coloured(segments: list[dict], marks: tuple[str, str] | None) -> Styled:
    styled = Styled()
    for segment in segments:
        text, learned = segment["text"], segment["learned"]
        styled.append(text.join(marks) if marks and learned else text, "bold green" if learned else "dim")
    return styled
