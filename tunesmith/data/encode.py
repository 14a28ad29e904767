"""Files into tokens on disk: one shard for each source, cached by content.

Rows are read, normalised and tokenised in chunks, by as many processes as there are cores where the source is large.
A shard is a folder: ids.bin (int32) and supervised.bin (bool) hold the tokens of all examples end to end, lengths.bin
(int32) the lengths of their sequences, rows.bin one ROW an example, asked.jsonl the questions of the examples that may
be held out, and problems.jsonl the rows that were dropped or changed.
"""

import hashlib
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tunesmith.data import read, records
from tunesmith.data.masking import Group
from tunesmith.data.rows import Chat, Raw, Row, RowProblem, Text, Where, digest, prompt_digest
from tunesmith.data.source import ResolvedSource, to_row
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import CHILD_DIED, UserError, report_full_disk
from tunesmith.files import replaced, write_json
from tunesmith.recipe import MethodSettings

VERSION = 10  # raise when the same input must give other tokens
CHUNK_ROWS, CHUNK_CHARACTERS = 512, 4 * 2**20
SYSTEM_PROMPTS_COUNTED, SYSTEM_PROMPTS_KEPT = 1000, 3  # different ones: rows may each have their own
PARALLEL_FROM_BYTES = 4 * 2**20  # smaller sources are done before the worker processes have started

# start, length: where the example's tokens are. sequences: how many it has, whose lengths begin at `first` of
# lengths.bin. answer: its last answer, as token numbers within it. row: the number of its row in the source. asked:
# where its line of asked.jsonl begins, -1 for none. prompt, digest: hashes.
ROW = np.dtype(
    [
        ("start", "i8"),
        ("length", "i4"),
        ("sequences", "i4"),
        ("first", "i8"),
        ("supervised", "i4"),
        ("answer", "i4", 2),
        ("row", "i8"),
        ("file", "i4"),
        ("line", "i8"),
        ("asked", "i8"),
        ("prompt", "u8"),
        ("digest", "u8", 2),
    ]
)

Progress = Callable[[int, int], None]  # rows, examples


class Method(Protocol):
    """The side of a method that the data sees (see methods/). It can be sent to other processes."""

    @property
    def settings(self) -> MethodSettings: ...

    @property
    def splits(self) -> bool: ...

    def encode(self, tokenizer: Tokenizer, row: Row) -> list[Group]: ...


@dataclass(frozen=True)
class Settings:
    """Everything but the data that decides about the tokens."""

    tokenizer: Tokenizer
    method: Method
    sequence_length: int
    too_long: str
    candidate_share: float = 1.0  # of the prompts; only these can be held out

    def key(self) -> str:
        return repr(
            (
                VERSION,
                self.tokenizer.fingerprint,
                self.method.settings,
                self.sequence_length,
                self.too_long,
                self.candidate_share,
            )
        )


@dataclass
class Chunk:
    """The result of a worker: the arrays of its examples, and the problems of its rows."""

    ids: list[np.ndarray] = field(default_factory=list)
    lengths: list[np.ndarray] = field(default_factory=list)
    supervised: list[np.ndarray] = field(default_factory=list)
    rows: list[tuple] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    problems: list[dict] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    system_prompts: Counter[str] = field(default_factory=Counter)  # of its conversations; "" counts those without one
    read: int = 0


def encode_source(resolved: ResolvedSource, settings: Settings, cache: Path, progress: Progress) -> Path:
    """The shard of a source, from the cache if its content was encoded before."""
    source, hashes = resolved.source, resolved.hashes
    parts = [
        settings.key(),
        source.format,
        repr(sorted(source.columns.items())),
        *hashes.values(),
        *hashes,
    ]
    shard = cache / hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
    if not (shard / "shard.json").exists():
        _encode(resolved, settings, shard, progress)
    return shard


def _encode(source: ResolvedSource, settings: Settings, shard: Path, progress: Progress) -> None:
    encoder = Encoder(settings, source.formats, source.source.columns)
    remedy = "tokenised rows are kept there: free some space, or set TUNESMITH_CACHE to a folder on another disk"
    with report_full_disk(shard.parent, remedy), replaced(shard) as draft:
        draft.mkdir(parents=True)
        _write(source, encoder, draft, progress)


def _write(source: ResolvedSource, encoder: "Encoder", folder: Path, progress: Progress) -> None:
    large = sum(f.stat().st_size for f in source.files) >= PARALLEL_FROM_BYTES
    with Writer(folder) as writer:
        for chunk in _chunks(read.read_lines(source.files), encoder, large):
            writer.add(chunk)
            progress(writer.read, writer.examples)
    write_json(
        folder / "shard.json",
        {
            "format": source.format,
            "read": writer.read,
            "files": list(writer.files),
            "unread": writer.unread,
            "chats": writer.chats,
            "system_prompts": dict(writer.system_prompts.most_common(SYSTEM_PROMPTS_KEPT)),
        },
    )


def _chunks(lines: Iterator, encoder: "Encoder", parallel: bool) -> Iterator[Chunk]:
    """Encodes in order; in parallel at most a few chunks wait, so that memory does not grow with the file."""
    pieces = _pieces(lines)
    if not parallel:
        yield from map(encoder.chunk, pieces)
        return
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (encoder,)) as pool:
        waiting: deque[Future] = deque()
        try:
            for piece in pieces:
                waiting.append(pool.submit(_work, piece))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(f"rows cannot be encoded: {CHILD_DIED}") from None


def _pieces(lines: Iterator) -> Iterator[list]:
    """Lists of CHUNK_ROWS lines, or of fewer that are long."""
    piece, size = [], 0
    for where, payload in lines:
        piece.append((where, payload))
        size += len(payload) if isinstance(payload, bytes) else len(str(payload))
        if len(piece) == CHUNK_ROWS or size >= CHUNK_CHARACTERS:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


_encoder: "Encoder"  # of a worker process


def _start_worker(encoder: "Encoder") -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = encoder


def _work(lines: list) -> Chunk:
    return _encoder.chunk(lines)


@dataclass(frozen=True)
class Encoder:
    """Encodes chunks. It can be sent to another process."""

    settings: Settings
    formats: dict[str, str | None]  # by file
    columns: dict[str, str]

    def chunk(self, lines: list) -> Chunk:
        """`lines`: (where, payload) pairs of `read.read_lines`."""
        chunk = Chunk(read=len(lines))
        for number, (where, payload) in enumerate(lines):
            try:
                row, groups, notes = self._groups(read.parse(where, payload), chunk.unread)
            except RowProblem as problem:
                groups, notes = [], [("dropped", problem.reason, problem.detail)]
            chunk.problems += [
                dict(file=where.file, line=where.line, action=action, reason=reason, detail=detail)
                for action, reason, detail in notes
            ]
            for part, group in enumerate(groups):
                self._add(chunk, number, where, row, part, group)
            if groups and isinstance(row, Chat):
                first = row.messages[0]
                chunk.system_prompts[first["content"] if first["role"] == "system" else ""] += 1
        return chunk

    def _add(self, chunk: Chunk, number: int, where: Where, row: Row, part: int, group: Group) -> None:
        identity = hashlib.blake2b(digest(row) + part.to_bytes(8), digest_size=16).digest()
        # Pieces of a text are held out one by one, the examples of a conversation together.
        asks = identity if isinstance(row, Text) else prompt_digest(row)
        prompt = int.from_bytes(asks[:8])
        is_candidate = prompt < self.settings.candidate_share * 2**64
        ids = [token for example in group for token in example.ids]
        supervised = [learned for example in group for learned in example.supervised]
        chunk.asked.append(group[0].asked if is_candidate else None)
        chunk.ids.append(np.array(ids, np.int32))
        chunk.supervised.append(np.array(supervised, bool))
        chunk.lengths.append(np.array([len(e.ids) for e in group], np.int32))
        chunk.rows.append(
            (
                0,
                len(ids),
                len(group),
                0,
                sum(supervised),
                group[0].answer,
                number,
                chunk.files.setdefault(where.file, len(chunk.files)),
                where.line,
                -1,
                prompt,
                np.frombuffer(identity, "u8"),
            )
        )

    def _groups(self, raw: Raw, unread: dict[str, int]) -> tuple[Row, list[Group], list[tuple]]:
        """The row, its groups of sequences, and (action, reason, detail) of what was changed. Raises RowProblem."""
        row = to_row(raw, self.formats[raw.where.file], self.columns, unread)
        if isinstance(row, RowProblem):
            raise row
        groups = self.settings.method.encode(self.settings.tokenizer, row)
        notes = [("changed", reason, "") for reason in dict.fromkeys(r for g in groups for e in g for r in e.changes)]
        fitting = [piece for group in groups for piece in self._fit(group)]
        lengths = [max(len(e.ids) for e in group) for group in groups]
        long = [length for length in lengths if length > self.settings.sequence_length]
        if long and not self.settings.method.splits:
            limit = f"sequence_length is {self.settings.sequence_length}"
            if not fitting:
                raise RowProblem("too_long", f"{max(long)} tokens, {limit}")
            notes.append(("shortened", "too_long", f"{max(long)} tokens, {limit}"))
        learned = [group for group in fitting if all(any(e.supervised[1:]) for e in group)]
        if not learned:
            raise RowProblem("no_supervised_token")
        return row, learned, notes

    def _fit(self, group: Group) -> list[Group]:
        """The group, or what becomes of it if a sequence is too long: pieces, its beginning, or nothing. A group of
        several sequences is never cut, as they are compared with each other."""
        limit, length = self.settings.sequence_length, max(len(e.ids) for e in group)
        if length <= limit:
            return [group]
        if len(group) > 1:
            return []
        if self.settings.method.splits:
            ends = [*range(limit, length, limit), length]
            ends[-2] -= length % limit == 1  # one token alone could not be predicted
            return [(group[0].cut(start, end),) for start, end in zip([0, *ends], ends)]
        return [(group[0].cut(0, limit),)] if self.settings.too_long == "truncate" else []


class Writer:
    """Appends chunks to a shard's files."""

    def __init__(self, folder: Path):
        self.folder, self.read, self.examples, self.chats = folder, 0, 0, 0
        self.files: dict[str, int] = {}
        self.unread: dict[str, int] = {}
        self.system_prompts: Counter[str] = Counter()
        self._tokens = self._sequences = 0

    def __enter__(self) -> "Writer":
        names = ("ids.bin", "supervised.bin", "lengths.bin", "rows.bin", "asked.jsonl", "problems.jsonl")
        self._open = {name: open(self.folder / name, "wb") for name in names}  # noqa: SIM115  __exit__ closes them
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def add(self, chunk: Chunk) -> None:
        if chunk.rows:
            self._add_examples(chunk)
        for problem in chunk.problems:
            self._open["problems.jsonl"].write(_line(problem))
        for name, rows in chunk.unread.items():
            records.count(self.unread, [name], rows)
        for prompt, rows in chunk.system_prompts.items():
            if prompt in self.system_prompts or len(self.system_prompts) < SYSTEM_PROMPTS_COUNTED:
                self.system_prompts[prompt] += rows
        self.chats += chunk.system_prompts.total()
        self.read += chunk.read

    def _add_examples(self, chunk: Chunk) -> None:
        rows = np.array(chunk.rows, ROW)
        numbers = [self.files.setdefault(name, len(self.files)) for name in chunk.files]
        rows["file"] = np.array(numbers)[rows["file"]]
        rows["row"] += self.read
        rows["start"] = self._tokens + np.cumsum(rows["length"]) - rows["length"]
        rows["first"] = self._sequences + np.cumsum(rows["sequences"]) - rows["sequences"]
        for number, asked in enumerate(chunk.asked):
            if asked is not None:
                rows["asked"][number] = self._open["asked.jsonl"].tell()
                self._open["asked.jsonl"].write(_line(asked))
        self._open["rows.bin"].write(rows.tobytes())
        for name, arrays in (
            ("ids.bin", chunk.ids),
            ("supervised.bin", chunk.supervised),
            ("lengths.bin", chunk.lengths),
        ):
            self._open[name].write(np.concatenate(arrays).tobytes())
        self._tokens += int(rows["length"].sum())
        self._sequences += int(rows["sequences"].sum())
        self.examples += len(rows)


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"  # ASCII, so that half a surrogate pair does no harm
