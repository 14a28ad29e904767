"""A source's rows: its records read, its format recognised, each record turned into a Row."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from tunesmith.data import formats, reasoning, records
from tunesmith.data.read import read
from tunesmith.data.records import Record
from tunesmith.data.rows import Chat, Raw, Row, RowProblem, Where
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.recipe import Source

SAMPLES = 20  # readable records from which a format is recognised
MORE = 10_000  # in which a column is looked for that those have not; null ones may be left out


def rows_of(source: Source, unread: dict[str, int] | None = None) -> Iterator[tuple[Where, Row | RowProblem]]:
    """Every record of a source in order, as a Row or as the problem with it. Counts the keys that no format read in
    `unread`. Raises UserError for a source that cannot be opened or whose format is not known."""
    format = format_of(source)
    for raw in read(source):
        yield raw.where, to_row(raw, format, source.columns, unread)


def format_of(source: Source) -> str | None:
    """The format that the source names, or that its first readable records have; None if none can be read."""
    readable = (raw.value for raw in read(source) if raw.value is not None)
    samples = list(islice(readable, SAMPLES))
    missing = {column: standard for standard, column in source.columns.items()}
    for value in chain(samples, islice(readable, MORE) if missing else ()):
        if not (missing := {column: name for column, name in missing.items() if column not in value}):
            break
    if samples and missing:
        column, standard = next(iter(missing.items()))
        raise UserError(f"columns: {source.path} has no column {column!r} to read as {standard}; its columns are "
                        f"{', '.join(map(str, samples[0]))}")
    if source.format != "auto":
        formats.get(source.format)
        return source.format
    renamed = [formats.rename(sample, source.columns) for sample in samples]
    return formats.recognise(renamed, source.path) if samples else None


def to_row(raw: Raw, format: str | None, columns: dict[str, str],
           unread: dict[str, int] | None = None) -> Row | RowProblem:
    """One record as a Row of the given format, or the problem with it. Counts in `unread`, by the names that the file
    has for them, the keys of the record and of its turns that the format did not read."""
    if raw.value is None:
        return raw.problem
    record = Record(formats.rename(raw.value, columns))
    try:
        row = formats.get(format).to_row(record)
    except RowProblem as problem:
        return problem
    if unread is not None:
        replaced = [column for column in columns if column in raw.value and column not in columns.values()]
        records.count(unread, replaced + [columns.get(name, name) for name in record.unread()])
    return row


def template_variables(tokenizer: Tokenizer, sources: Iterable[Source], given: dict) -> dict:
    """The variables for the chat template under which prompts ask for what the rows hold, reasoning or none; those that
    are `given` win."""
    switch = reasoning.switch(tokenizer)
    if switch is None or switch in given:
        return dict(given)
    return reasoning.switched(tokenizer, switch, any(map(has_reasoning, sources))) | given


def has_reasoning(source: Source) -> bool:
    """Whether any row has reasoning of the assistant's, in a field of its own or between marks in its text."""
    return any(m.get("reasoning_content") or any(reasoning.split(m["content"]) or ())
               for _, row in rows_of(source) if isinstance(row, Chat) for m in row.messages if m["role"] == "assistant")
