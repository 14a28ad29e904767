"""File readers. Each takes a path and yields (1-based line or row number, payload).

A payload is the bytes of a JSON line, a mapping of columns, or a RowProblem for a record that could not be read.
"""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from tunesmith.data.rows import RowProblem
from tunesmith.errors import UserError

Payload = bytes | dict | RowProblem
Lines = Iterator[tuple[int, Payload]]

LONGEST = 64 * 2**20  # largest line in bytes and CSV field in characters, which bounds memory
CHUNK = 2**20
ROWS = 256  # rows of a columnar file that are converted to Python objects at a time
BROKEN_STREAM = (OSError, EOFError, zlib.error)  # raised by gzip and pyarrow for truncated or damaged files
csv.field_size_limit(LONGEST)


def open_binary(path: Path) -> BinaryIO:
    """Opens a file for reading and decompresses it. Text that begins with a UTF-16 or UTF-32 byte order mark is read as
    UTF-8."""
    file = _open_decompressed(path)
    start = file.peek(4)[:4]
    marks = (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    )  # UTF-32 first: UTF-16's mark is the beginning of the one of UTF-32 LE
    encoding = next((name for mark, name in marks if start.startswith(mark)), None)
    return io.BufferedReader(_AsUtf8(file, encoding)) if encoding else file


class _AsUtf8(io.RawIOBase):
    """Reads text of another encoding as UTF-8. Lone surrogates stay invalid, so that parsing reports their record."""

    def __init__(self, file: BinaryIO, encoding: str):
        self.file, self.decoder = file, codecs.getincrementaldecoder(encoding)("surrogatepass")
        self.waiting, self.ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.waiting and not self.ended:
            piece = self.file.read(CHUNK)
            self.ended = not piece
            try:
                self.waiting = self.decoder.decode(piece, self.ended).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise OSError(f"not valid {error.encoding}: {error.reason}") from None
        size = min(len(buffer), len(self.waiting))
        buffer[:size], self.waiting = self.waiting[:size], self.waiting[size:]
        return size

    def close(self) -> None:
        self.file.close()
        super().close()


def _open_decompressed(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        import pyarrow  # its reader detects a truncated file; that of zstandard does not

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def read_jsonl(path: Path) -> Lines:
    """Reads one JSON value a line. A comma may follow the value; blank lines are skipped. A file that is one JSON
    document, or whose values span several lines, is read as by `read_json`."""
    return _read_document(path) if _is_document(path) else _read_lines(path)


def _is_document(path: Path) -> bool:
    """Whether a file's first line is an array, or the beginning of a record that spans several lines."""
    try:
        with open_binary(path) as file:
            first = b""
            while not first.strip() and (line := file.readline(LONGEST)):
                first = line.removeprefix(codecs.BOM_UTF8)
    except BROKEN_STREAM:
        return False  # reading the file reports it
    value = parse_json(_without_comma(first)) if first.strip() else None
    if not isinstance(value, RowProblem):
        return isinstance(value, list)
    first_record = next(_read_document(path), (0, None))[1]
    return isinstance(first_record, dict) and first.lstrip()[:1] in (b"[", b"{")


def _without_comma(line: bytes) -> bytes:
    """Removes the comma after an object, which is left where an array was written without its brackets."""
    return line.rstrip()[:-1] if line.rstrip().endswith(b"},") else line


def _read_lines(path: Path) -> Lines:
    number = 0
    try:
        with open_binary(path) as file:
            while line := file.readline(LONGEST):
                number += 1
                if len(line) == LONGEST and not line.endswith(b"\n"):
                    yield number, RowProblem("unreadable", f"a line longer than {LONGEST} bytes")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LONGEST)
                    continue
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield number, _without_comma(line)
    except BROKEN_STREAM as error:
        yield number + 1, _cut_off(error)


def parse_json(text: bytes | str) -> Any:
    """Returns the value of JSON text, or a RowProblem. A str may hold surrogates in place of bytes that are not
    UTF-8."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        else:
            text.encode("utf-8")
        value = json.loads(text, parse_constant=_constant)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate cannot be tokenized
        return value
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        return RowProblem("unreadable", f"not UTF-8: {error.reason}")
    except RecursionError:
        return RowProblem("broken_json", "nested too deeply")
    except json.JSONDecodeError as error:
        return RowProblem("broken_json", f"{error.msg} at character {error.pos + 1}")
    except ValueError as error:
        return RowProblem("broken_json", str(error))


def _constant(name: str) -> float | None:
    """Reads NaN as None, because pandas writes NaN for a missing value."""
    return None if name == "NaN" else float(name)


def read_json(path: Path) -> Lines:
    """Reads an array of records, an object whose `data` is such an array, or one object after another. It streams: one
    record is in memory at a time. Reading stops at a broken record, because the next one's beginning is unknown, unless
    each line is an object."""
    return _read_lines(path) if _has_lines(path) else _read_document(path)


def _has_lines(path: Path) -> bool:
    """Whether the first line is a whole record, so that the file is JSON Lines with another file name."""
    try:
        with open_binary(path) as file:
            first = parse_json(file.readline(LONGEST).removeprefix(codecs.BOM_UTF8))
    except BROKEN_STREAM:
        return False  # reading the file reports it
    return isinstance(first, dict) and not isinstance(first.get("data"), list)


def _read_document(path: Path) -> Lines:
    document = None
    try:
        with open_binary(path) as file:
            document = _Document(file)
            while document.peek():
                yield from document.records()
    except BROKEN_STREAM as error:
        yield document.line if document else 1, _cut_off(error)
    except _Broken as error:
        yield document.line, RowProblem("broken_json", f"{error}; the rest of the file is not read")


class _Broken(Exception):
    """Invalid JSON, after which no further value can be found."""


class _Document:
    """A window over the text of a JSON file that moves forward value by value."""

    decoder = json.JSONDecoder()
    blank = re.compile(r"[ \t\r\n]*")

    def __init__(self, file: BinaryIO):
        self.file = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def records(self) -> Lines:
        """Yields the records of the next value: the items of an array or of an object's `data`, or the value itself."""
        if self.peek() == "[":
            yield from self.items()
        elif self.peek() == "{":
            yield from self.members()
        else:
            yield self.line, self.value()

    def items(self) -> Lines:
        """Yields the items of an array."""
        self.expect("[")
        while self.peek() != "]":
            line = self.line_of_next()
            yield line, self.value()
            if self.peek() != "]":
                self.expect(",")
        self.expect("]")

    def members(self) -> Lines:
        """Yields the items of an object's `data` if that is an array, else the object."""
        line, record, has_data = self.line_of_next(), {}, False
        self.expect("{")
        while self.peek() != "}":
            key = self.value()
            self.expect(":")
            if key == "data" and self.peek() == "[":
                has_data = True
                yield from self.items()
            else:
                record[key if isinstance(key, str) else self.stop("a key that is no string")] = self.value()
            if self.peek() != "}":
                self.expect(",")
        self.expect("}")
        if not has_data:
            problem = next((value for value in record.values() if isinstance(value, RowProblem)), None)
            yield line, problem or record

    def value(self) -> Any:
        """Returns the next value, or a RowProblem if it is not valid Unicode."""
        self.peek()
        while True:
            try:
                _, end = self.decoder.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if self.ended or len(self.text) - self.at > LONGEST:
                    self.stop(getattr(error, "msg", str(error)))
            else:
                if end < len(self.text) or self.ended:  # a number may continue after the end of the window
                    break
            self.fill(max(CHUNK, len(self.text) - self.at))
        source = self.text[self.at : end]
        self.move(end)
        return parse_json(source)

    def peek(self) -> str:
        """Returns the next character that is not blank, or "" at the end."""
        while True:
            self.move(self.blank.match(self.text, self.at).end())
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.fill(CHUNK)

    def line_of_next(self) -> int:
        self.peek()
        return self.line

    def expect(self, character: str) -> None:
        next_character = self.peek()
        if next_character != character:
            self.stop(
                f"{character!r} expected, {'found ' + repr(next_character) if next_character else 'the file ends'}"
            )
        self.move(self.at + 1)

    def move(self, to: int) -> None:
        self.line += self.text.count("\n", self.at, to)
        self.at = to

    def fill(self, size: int) -> None:
        more = self.file.read(size)
        self.text, self.at, self.ended = self.text[self.at :] + more, 0, not more

    def stop(self, message: str) -> NoReturn:
        raise _Broken(message)


def read_csv(path: Path) -> Lines:
    """Reads a header and records of text. The yielded line is the first line of the record. The separator is the one
    that a first line `sep=;` names, a tab for .tsv, else the one of comma, semicolon and tab that the header has most
    of. After a record that is not valid CSV, such as one with an unclosed quote, reading continues with the next line.
    Raises UserError for a header that names a column twice."""
    lines = None
    try:
        with io.TextIOWrapper(open_binary(path), "utf-8-sig", "surrogateescape", newline="") as file:
            lines = _CsvLines(file)
            tabs = ".tsv" in (suffix.lower() for suffix in path.suffixes[-2:])
            first = lines.peek()
            if re.fullmatch(r"sep=.\r?\n", first):  # for Excel
                separator, _ = first[4], next(lines)
            else:
                separator = "\t" if tabs else max(",;\t", key=first.count)
            records = csv.reader(lines, delimiter=separator, strict=True)
            header = None
            while True:
                line = lines.begin()
                try:
                    fields = next(records, None)
                except csv.Error as error:
                    lines.return_all_but_first()
                    yield line, RowProblem("unreadable", f"not valid CSV: {error}")
                    continue
                if fields is None:
                    return
                if header is None and fields:
                    header = _header(path, line, fields)
                elif fields:
                    yield line, _record(header, fields)
    except BROKEN_STREAM as error:
        yield lines.number + 1 if lines else 1, _cut_off(error)


class _CsvLines:
    """Iterates over the lines of a file, and can push back the lines of the current record."""

    def __init__(self, file: io.TextIOWrapper):
        self.file, self.number = file, 0  # number of the last line that was returned
        self.taken: list[str] = []
        self.waiting: deque[str] = deque()

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = self.waiting.popleft() if self.waiting else self.file.readline(LONGEST)
        if not line:
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        return line

    def peek(self) -> str:
        """Returns the next line without consuming it, or "" at the end."""
        if not self.waiting and (line := self.file.readline(LONGEST)):
            self.waiting.append(line)
        return self.waiting[0] if self.waiting else ""

    def begin(self) -> int:
        """Starts a record and returns the number of its first line."""
        self.taken.clear()
        return self.number + 1

    def return_all_but_first(self) -> None:
        """Pushes back all lines of the current record except the first."""
        self.waiting.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken[1:])


def _header(path: Path, line: int, fields: list[str]) -> list[str]:
    """Returns the column names. A column without a name, such as a table's last one, is named by its number."""
    if isinstance(_record(fields, fields), RowProblem):
        raise UserError(f"{path}:{line}: the header is not UTF-8; save the file as UTF-8")
    twice = {name for name in fields if name and fields.count(name) > 1}
    if twice:
        raise UserError(f"{path}:{line}: the header names the column {min(twice)!r} twice; rename one")
    return [name or f"column {number}" for number, name in enumerate(fields, 1)]


def _record(header: list[str], fields: list[str]) -> Payload:
    if any(fields[len(header) :]) or len(fields) < len(header):  # empty extra fields do not count
        return RowProblem("wrong_shape", f"{len(fields)} fields, the header has {len(header)}")
    try:
        "".join(fields).encode("utf-8")
    except UnicodeEncodeError:
        return RowProblem("unreadable", "not UTF-8")
    return dict(zip(header, fields))


def read_text(path: Path) -> Lines:
    """Reads the whole file as one record with the column `text`."""
    try:
        with open_binary(path) as file:
            yield 1, {"text": file.read().decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        yield 1, RowProblem("unreadable", f"not UTF-8 at byte {error.start + 1}")
    except BROKEN_STREAM as error:
        yield 1, _cut_off(error)


def read_parquet(path: Path) -> Lines:
    """Reads row group by row group. A damaged group yields one RowProblem, and reading continues with the next."""
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except _damage() as error:
        yield 1, _cut_off(error)
        return
    start = 1
    with file:
        for group in range(file.num_row_groups):
            line = start
            try:
                for batch in file.iter_batches(ROWS, row_groups=[group]):
                    yield from _rows(batch, line)
                    line += len(batch)
            except _damage() as error:
                yield line, RowProblem("unreadable", f"damaged up to the end of row group {group}: {_one_line(error)}")
            start += file.metadata.row_group(group).num_rows


def read_arrow(path: Path) -> Lines:
    """Reads Arrow IPC, file or stream format, memory-mapped. Reading stops at a damaged batch."""
    import pyarrow

    line = 1
    try:
        with pyarrow.memory_map(str(path)) as file:
            for batch in _batches(file):
                batch.validate(full=True)  # damaged offsets would otherwise read outside the file
                yield from _rows(batch, line)
                line += len(batch)
    except _damage() as error:
        yield line, _cut_off(error)


def _damage() -> tuple[type[Exception], ...]:
    """Returns the exceptions that pyarrow raises for damaged files and for values that Python cannot hold, such as
    dates after the year 9999."""
    import pyarrow

    return (pyarrow.ArrowException, OSError, MemoryError, ValueError, TypeError, LookupError, ArithmeticError)


def _batches(file: Any) -> Iterator[Any]:
    from pyarrow import ipc

    if file.read(6) == b"ARROW1":
        reader = ipc.open_file(file)
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    file.seek(0)
    return ipc.open_stream(file)


def _rows(batch: Any, line: int) -> Lines:
    """Yields the rows of an Arrow record batch. Null and NaN fields of structs are removed: Arrow gives every struct of
    a column the fields of all, so a null says only that another row has the field, and pandas writes null as NaN."""
    for start in range(0, len(batch), ROWS):
        part = batch.slice(start, ROWS)
        try:
            values = part.to_pylist()
        except _damage():
            values = [_single(part.slice(row, 1)) for row in range(len(part))]
        for row, value in enumerate(values):
            yield line + start + row, value if isinstance(value, RowProblem) else _without_nulls(value)


def _single(part: Any) -> Payload:
    try:
        return part.to_pylist()[0]
    except _damage() as error:
        return RowProblem("unreadable", _one_line(error))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_nulls(inner)
            for key, inner in value.items()
            if inner is not None and not (isinstance(inner, float) and isnan(inner))
        }
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _cut_off(error: Exception) -> RowProblem:
    return RowProblem("unreadable", f"cut off or damaged, the rest of the file is not read: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
