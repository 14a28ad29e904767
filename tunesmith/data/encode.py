"""Files into tokens on disk: one `Shard` for each source, cached by content.

Rows are read, normalised and tokenised in chunks, by as many processes as there are cores where the source is large.
A shard is a folder: ids.bin (int32) and supervised.bin (bool) of all examples end to end, rows.bin (ROW, one an
example), chats.jsonl (prompt and reference of rows that may be held out) and problems.jsonl (rows dropped or changed).
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from tunesmith.data import read
from tunesmith.data.rows import Chat, Row, RowProblem, Where, digest, prompt_digest
from tunesmith.data.source import format_of, to_row
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.recipe import Method, Source
from tunesmith.run import write_json

VERSION = 2  # raise when the same input must give other tokens
CHUNK_ROWS = 512
PARALLEL_FROM_BYTES = 4 * 2**20  # smaller sources are done before the worker processes have started

ROW = np.dtype([("start", "i8"), ("length", "i4"), ("supervised", "i4"), ("file", "i4"), ("line", "i8"),
                ("candidate", "?"), ("prompt", "u8"), ("digest", "u8", 2)])

Encode = Callable[[Tokenizer, Row, Method], list]


@dataclass(frozen=True)
class Settings:
    """Everything but the data that decides about the tokens."""

    tokenizer: Tokenizer
    encode: Encode
    method: Method
    splits: bool
    sequence_length: int
    too_long: str
    candidate_share: float  # of the prompts; only these can be held out

    def key(self) -> str:
        return repr((VERSION, self.tokenizer.fingerprint, self.method, self.splits, self.sequence_length, self.too_long,
                     self.candidate_share, self.encode.__module__))


@dataclass
class Chunk:
    """What a worker returns: arrays of its examples, and what is to be said of its rows."""

    ids: np.ndarray
    supervised: np.ndarray
    rows: np.ndarray
    files: list[str]
    chats: list[dict] = field(default_factory=list)
    problems: list[dict] = field(default_factory=list)
    read: int = 0


def encode_source(source: Source, settings: Settings, cache: Path, progress: Callable[[int, int], None]) -> Path:
    """The shard of a source, from the cache if its content was encoded before. `progress(rows, bytes)`."""
    files = read.files(source)
    parts = [settings.key(), source.format, repr(sorted(source.columns.items())), *map(read.content_hash, files),
             *map(str, files)]
    shard = cache / hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
    if not (shard / "shard.json").exists():
        _encode(source, files, settings, shard, progress)
    return shard


def _encode(source: Source, files: list[Path], settings: Settings, shard: Path, progress) -> None:
    format_name = format_of(source)
    draft = shard.with_name(f".{shard.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        total_bytes = sum(f.stat().st_size for f in files)
        encoder = (settings, format_name, source.columns)
        with Writer(draft) as writer:
            for chunk in _chunks(read.read_lines(source), encoder, total_bytes >= PARALLEL_FROM_BYTES):
                writer.add(chunk)
                progress(writer.read, len(writer))
        write_json(draft / "shard.json", {"format": format_name, "read": writer.read, "files": writer.files})
        shutil.rmtree(shard, ignore_errors=True)
        os.rename(draft, shard)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _chunks(lines: Iterator, encoder: tuple, parallel: bool) -> Iterator[Chunk]:
    """Encodes in order; in parallel at most a few chunks wait, so that memory does not grow with the file."""
    pieces = iter(lambda: list(islice(lines, CHUNK_ROWS)), [])
    if not parallel:
        yield from map(Encoder(*encoder).chunk, pieces)
        return
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, encoder) as pool:
        waiting: deque[Future] = deque()
        for piece in pieces:
            waiting.append(pool.submit(_work, piece))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _start_worker(*encoder) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(*encoder)


def _work(lines: list) -> Chunk:
    return _encoder.chunk(lines)


class Encoder:
    """What a process needs to encode chunks."""

    def __init__(self, settings: Settings, format_name: str | None, columns: dict[str, str]):
        self.settings, self.format, self.columns = settings, format_name, columns

    def chunk(self, lines: list) -> Chunk:
        ids, supervised, rows, files = [], [], [], {}
        chunk = Chunk(None, None, None, [], read=len(lines))
        for where, payload in lines:
            try:
                row, examples = self._encode(where, payload, chunk)
            except RowProblem as problem:
                _note(chunk, where, "dropped", problem.reason, problem.detail)
                continue
            prompt = int.from_bytes(prompt_digest(row)[:8], "little")
            candidate = prompt < self.settings.candidate_share * 2**64
            for part, example in enumerate(examples):
                identity = digest(row) if part == 0 else hashlib.blake2b(digest(row) + bytes([part % 256]),
                                                                        digest_size=16).digest()
                file = files.setdefault(where.file, len(files))
                rows.append((0, len(example.ids), sum(example.supervised), file, where.line, candidate,
                             prompt, np.frombuffer(identity, "u8")))
                ids.append(np.array(example.ids, np.int32))
                supervised.append(np.array(example.supervised, bool))
                if candidate:
                    chunk.chats.append(_shown(row))
        chunk.ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        chunk.supervised = np.concatenate(supervised) if ids else np.zeros(0, bool)
        chunk.rows, chunk.files = np.array(rows, ROW), list(files)
        return chunk

    def _encode(self, where: Where, payload, chunk: Chunk) -> tuple[Row, list]:
        """The row and its examples, none of them too long. Raises RowProblem."""
        row = to_row(read.parse(where, payload), self.format, self.columns)
        if isinstance(row, RowProblem):
            raise row
        examples = self.settings.encode(self.settings.tokenizer, row, self.settings.method)
        for reason in {reason for example in examples for reason in example.changes}:
            _note(chunk, where, "changed", reason, "")
        fitting = [piece for example in examples for piece in self._fit(example, where, chunk)]
        if not any(any(example.supervised[1:]) for example in fitting):
            raise RowProblem("no_supervised_token")
        return row, fitting

    def _fit(self, example, where: Where, chunk: Chunk) -> list:
        limit, length = self.settings.sequence_length, len(example.ids)
        if length <= limit:
            return [example]
        if self.settings.splits:
            pieces = [(example.ids[i : i + limit], example.supervised[i : i + limit]) for i in range(0, length, limit)]
            return [type(example)(ids, supervised, example.changes) for ids, supervised in pieces if len(ids) > 1]
        if self.settings.too_long == "truncate":
            _note(chunk, where, "shortened", "too_long", f"{length} tokens, cut to {limit}")
            return [type(example)(example.ids[:limit], example.supervised[:limit], example.changes)]
        raise RowProblem("too_long", f"{length} tokens, sequence_length is {limit}")


def _note(chunk: Chunk, where: Where, action: str, reason: str, detail: str) -> None:
    chunk.problems.append(dict(file=where.file, line=where.line, action=action, reason=reason, detail=detail))


def _shown(row: Row) -> dict:
    """Prompt and reference as people read them."""
    if not isinstance(row, Chat):
        return {"prompt": "", "reference": row.text}
    last = max(i for i, m in enumerate(row.messages) if m["role"] == "assistant")
    asked = [m["content"] for m in row.messages[:last] if m["role"] == "user"]
    return {"prompt": asked[-1] if asked else "", "reference": row.messages[last].get("content") or ""}


class Writer:
    """Appends chunks to a shard's files."""

    def __init__(self, folder: Path):
        self.folder, self.read, self.files, self._tokens, self._count = folder, 0, [], 0, 0

    def __enter__(self):
        self._open = {name: open(self.folder / name, "wb") for name in
                      ("ids.bin", "supervised.bin", "rows.bin", "chats.jsonl", "problems.jsonl")}
        return self

    def __exit__(self, *_):
        for file in self._open.values():
            file.close()

    def __len__(self) -> int:
        return self._count

    def add(self, chunk: Chunk) -> None:
        numbers = []
        for name in chunk.files:
            if name not in self.files:
                self.files.append(name)
            numbers.append(self.files.index(name))
        rows = chunk.rows
        if len(rows):
            rows["file"] = np.array(numbers)[rows["file"]]
            rows["start"] = self._tokens + np.cumsum(rows["length"]) - rows["length"]
        self._open["ids.bin"].write(chunk.ids.tobytes())
        self._open["supervised.bin"].write(chunk.supervised.tobytes())
        self._open["rows.bin"].write(rows.tobytes())
        for name, items in (("chats.jsonl", chunk.chats), ("problems.jsonl", chunk.problems)):
            for item in items:
                self._open[name].write((json.dumps(item, ensure_ascii=True) + "\n").encode())
        self._tokens += len(chunk.ids)
        self._count += len(rows)
        self.read += chunk.read
