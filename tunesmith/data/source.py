"""A source's rows: its files found, its format recognised, its records read, each record turned into a Row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

from tunesmith.data import formats, reasoning, records
from tunesmith.data.file_types import TEXT_ENDINGS, ending
from tunesmith.data.files import content_hash, select
from tunesmith.data.read import lines_of, parse, read_lines
from tunesmith.data.records import Record
from tunesmith.data.rows import Chat, Raw, Row, RowProblem, Where
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.recipe import Data, Source

SAMPLES = 20  # readable records from which a format is recognised
MORE = 10_000  # of each file, in which a column is looked for that those have not; null ones may be left out


@dataclass(frozen=True)
class ResolvedSource:
    """A source with its files. They are listed once, when it is resolved; each fact about their content is read when it
    is first needed, and kept."""

    source: Source
    files: list[Path]
    left_out: list[str]
    """Files beside these that are not read, in words: "split test (2 files)"."""
    most_rows: int | None = None
    """Records that are read; None: all."""

    @property
    def path(self) -> str:
        """The path as the recipe has it."""
        return self.source.path

    @cached_property
    def formats(self) -> dict[str, str | None]:
        """By file: the format that the recipe names, or the one that the file's first readable records have; None for a
        file that has none. Raises UserError if no file has one."""
        return _formats(self.source, self.files)

    @property
    def format(self) -> str | None:
        """The formats of the files in words; None if none could be read."""
        return ", ".join(sorted({name for name in self.formats.values() if name})) or None

    @cached_property
    def hashes(self) -> dict[str, str]:
        """By file: SHA-256 of its bytes."""
        return {str(path): content_hash(path) for path in self.files}

    @cached_property
    def has_reasoning(self) -> bool:
        """Whether an assistant turn in any row has reasoning, in a field of its own or between marks in its text."""
        return any(
            m.get("reasoning_content") or any(reasoning.split(m["content"]) or ())
            for _, row in self.rows()
            if isinstance(row, Chat)
            for m in row.messages
            if m["role"] == "assistant"
        )

    def rows(self, unread: dict[str, int] | None = None, start: int = 0) -> Iterator[tuple[Where, Row | RowProblem]]:
        """Every record from number `start` on, counted from 0, as a Row or as the problem with it. Counts in `unread`
        the keys that no format reads. Raises UserError for a file that cannot be opened or whose format is unknown."""
        formats = self.formats
        for where, payload in islice(read_lines(self.files), start, self.most_rows):
            raw = parse(where, payload)
            yield where, to_row(raw, formats[where.file], self.source.columns, unread)


def resolve(source: Source) -> ResolvedSource:
    """Finds the files of a source, sorted, and downloads those of a hub dataset. Raises UserError if there are none."""
    selection = select(source)
    return ResolvedSource(source, selection.files, selection.left_out)


@dataclass(frozen=True)
class Sources:
    """The resolved sources of a recipe."""

    train: list[ResolvedSource]
    eval: list[ResolvedSource]

    @classmethod
    def resolve(cls, data: Data) -> "Sources":
        """Raises UserError."""
        return cls([resolve(source) for source in data.train], [resolve(source) for source in data.eval])

    @property
    def all(self) -> list[ResolvedSource]:
        return [*self.train, *self.eval]


def _formats(source: Source, files: list[Path]) -> dict[str, str | None]:
    """See ResolvedSource.formats."""
    samples = {str(path): _samples(path) for path in files}
    _check_columns(source, samples)
    if source.format != "auto":
        formats.get(source.format)
        return dict.fromkeys(samples, source.format)
    recognised, problem = {}, None
    for path, values in samples.items():
        renamed = [formats.rename(value, source.columns) for value in values]
        try:
            recognised[path] = formats.recognise(renamed, path) if values else None
        except formats.Unknown as error:
            recognised[path], problem = None, problem or error
    if problem and not any(recognised.values()):
        raise problem
    return recognised


def _samples(path: Path) -> list[dict]:
    """The first readable records of a file."""
    if ending(path) in TEXT_ENDINGS:
        return [{"text": ""}]  # which such a file holds, whatever else it does
    return list(islice(_readable(path), SAMPLES))


def _readable(path: Path) -> Iterator[dict]:
    raws = (parse(where, payload) for where, payload in lines_of(path))
    return (raw.value for raw in raws if raw.value is not None)


def _check_columns(source: Source, samples: dict[str, list[dict]]) -> None:
    """Raises UserError if no record that is looked at has a column that `columns` names."""
    there = {column for values in samples.values() for value in values for column in value}
    missing = {column: standard for standard, column in source.columns.items() if column not in there}
    first = next((value for values in samples.values() for value in values), None)
    if not missing or first is None:
        return
    for value in chain.from_iterable(islice(_readable(Path(path)), MORE) for path in samples):
        missing = {column: standard for column, standard in missing.items() if column not in value}
        if not missing:
            return
    column, standard = next(iter(missing.items()))
    raise UserError(
        f"columns: {source.path} has no column {column!r} to read as {standard}; its columns are "
        f"{', '.join(map(str, first))}"
    )


def to_row(
    raw: Raw, format: str | None, columns: dict[str, str], unread: dict[str, int] | None = None
) -> Row | RowProblem:
    """One record as a Row of the given format, or the problem with it. Counts in `unread`, by the names that the file
    has for them, the keys of the record and of its turns that the format did not read."""
    if raw.value is None:
        return raw.problem
    if format is None:
        return RowProblem("wrong_shape", f"no known format has the columns {', '.join(map(str, raw.value))[:200]!r}")
    record = Record(formats.rename(raw.value, columns))
    try:
        row = formats.get(format).to_row(record)
    except RowProblem as problem:
        return problem
    if unread is not None:
        replaced = [column for column in columns if column in raw.value and column not in columns.values()]
        records.count(unread, replaced + [columns.get(name, name) for name in record.unread()])
    return row


def template_variables(tokenizer: Tokenizer, sources: Iterable[ResolvedSource], given: dict) -> dict:
    """The variables for the chat template under which prompts ask for what the rows hold, reasoning or none; `given`
    variables win."""
    switch = reasoning.switch(tokenizer)
    if switch is None or switch in given:
        return dict(given)
    return reasoning.switched(tokenizer, switch, any(source.has_reasoning for source in sources)) | given


def tokenizer_for(
    folder: Path, sources: Iterable[ResolvedSource], given: dict, chat_template: str = "auto"
) -> Tokenizer:
    """The tokenizer of a folder with the template variables under which training on these sources uses it."""
    variables = template_variables(Tokenizer.load(folder, chat_template, given), sources, given)
    return Tokenizer.load(folder, chat_template, variables)
