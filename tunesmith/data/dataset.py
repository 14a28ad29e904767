"""The rows a run learns from and those it is measured on, as tokens on disk.

Duplicates go, and evaluation is kept apart: held-out rows are chosen by the hash of their prompt, so rows that ask
the same are on one side whatever their order. Every row that is not used as it stood is in the ledger.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tunesmith.data import read
from tunesmith.data.encode import ROW, Settings, encode_source
from tunesmith.data.ledger import Ledger
from tunesmith.data.rows import Where
from tunesmith.errors import UserError
from tunesmith.recipe import Data, Source

SMALL_BYTES = 2**20  # of a source so small that any of its rows may be held out
FEW_ROWS = 8  # held out at least, where the data has five times as many


class Shard:
    """A source's tokens, memory-mapped."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / "shard.json").read_text())
        self.format, self.read, self.files = facts["format"], facts["read"], facts["files"]
        self.rows = _map(folder / "rows.bin", ROW)
        self.ids = _map(folder / "ids.bin", np.dtype("i4"))
        self.supervised = _map(folder / "supervised.bin", np.dtype("?"))
        self.folder = folder

    def where(self, row: int) -> Where:
        return Where(self.files[self.rows["file"][row]], int(self.rows["line"][row]))

    def chats(self) -> dict[int, dict]:
        """{row: {prompt, reference}} of the candidates for evaluation."""
        with open(self.folder / "chats.jsonl", encoding="utf-8") as file:
            return dict(zip(np.flatnonzero(self.rows["candidate"]).tolist(), map(json.loads, file)))

    def problems(self):
        with open(self.folder / "problems.jsonl", encoding="utf-8") as file:
            yield from map(json.loads, file)


class TokenStore:
    """Examples by number: `store[i]` is (ids, supervised). `lengths`, `supervised` and `weights` are arrays."""

    def __init__(self, shards: list[Shard], picks: list[np.ndarray], weights: list[float]):
        self._shards = shards
        self._shard = np.concatenate([np.full(len(p), i) for i, p in enumerate(picks)] or [np.zeros(0, int)])
        self._row = np.concatenate([*picks, np.zeros(0, np.int64)]).astype(np.int64)
        self.lengths = self._column("length", picks)
        self.supervised = self._column("supervised", picks)
        self.weights = np.concatenate([np.full(len(p), w) for p, w in zip(picks, weights)] or [np.zeros(0)])

    def _column(self, name: str, picks: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([s.rows[name][p] for s, p in zip(self._shards, picks)] or [np.zeros(0, np.int32)])

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        shard, row = self._shards[self._shard[number]], self._row[number]
        start, length = shard.rows["start"][row], shard.rows["length"][row]
        return shard.ids[start : start + length], shard.supervised[start : start + length]

    def where(self, number: int) -> Where:
        return self._shards[self._shard[number]].where(self._row[number])

    def shown(self) -> list[dict]:
        """{prompt, reference} of each, for a store of held-out rows."""
        chats = [s.chats() if (self._shard == i).any() else {} for i, s in enumerate(self._shards)]
        return [chats[s][r] for s, r in zip(self._shard.tolist(), self._row.tolist())]


@dataclass
class Dataset:
    train: TokenStore
    eval: TokenStore
    formats: list[str]
    ledger: dict  # the ledger's summary


def prepare(data: Data, settings: Settings, cache: Path, ledger_file: Path | None, progress: Callable) -> Dataset:
    """Encodes every source, removes duplicates, sets rows aside and writes the ledger. Raises UserError."""
    shards = [_shard(source, replace(settings, candidate_share=_candidate_share(data, source)), cache, progress)
              for source in data.train]
    eval_shards = [_shard(source, replace(settings, candidate_share=1.0), cache, progress)
                   for source in data.eval]
    everything = eval_shards + shards
    is_eval = [np.full(len(s.rows), s in eval_shards) for s in everything]
    repeated = _repeated([s.rows["digest"] for s in everything], is_eval)
    if not data.eval:
        is_eval = _set_aside(data, shards, repeated)
    with Ledger(ledger_file) as ledger:
        dropped = _account(ledger, everything, repeated, is_eval, data)
        ledger.kept(sum(s.read for s in everything) - dropped)
        ledger.refuse_if_empty(", ".join(s.path for s in data.train))
        summary = ledger.summary()
    picks = [[np.flatnonzero(~r & (e == side)) for r, e in zip(repeated, is_eval)] for side in (False, True)]
    weights = [1.0] * len(eval_shards) + [source.weight for source in data.train]
    train, held_out = (TokenStore(everything, p, weights) for p in picks)
    if not len(train):
        raise UserError(f"data.train: no row of {data.train[0].path} is left to learn from; the rest is held out or "
                        "equal to evaluation rows (data.eval_share, data.eval)")
    if data.eval and len(held_out) > data.eval_limit:
        held_out = TokenStore(everything, [p[: data.eval_limit] for p in picks[1]], weights)
    return Dataset(train, held_out, [s.format for s in shards], summary)


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def _shard(source: Source, settings: Settings, cache: Path, progress) -> Shard:
    return Shard(encode_source(source, settings, cache, progress))


def _candidate_share(data: Data, source: Source) -> float:
    """Small sources keep every row as a candidate, so that a share of few rows is still some."""
    if data.eval or not data.eval_share:
        return 0.0
    small = sum(f.stat().st_size for f in read.files(source)) < SMALL_BYTES
    return 1.0 if small else min(1.0, 2 * data.eval_share)


def _repeated(digests: list[np.ndarray], is_eval: list[np.ndarray]) -> list[np.ndarray]:
    """For each shard, which rows equal an earlier one; evaluation rows count as earlier than all others."""
    keys = np.concatenate(digests)
    rank = np.where(np.concatenate(is_eval), 0, len(keys)) + np.arange(len(keys))
    order = np.lexsort((rank, keys[:, 1], keys[:, 0]))
    same = np.zeros(len(keys), bool)
    same[order[1:]] = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    return np.split(same, np.cumsum([len(d) for d in digests])[:-1])


def _set_aside(data: Data, shards: list[Shard], repeated: list[np.ndarray]) -> list[np.ndarray]:
    """The rows with the lowest prompt hashes, whole prompts at a time."""
    prompts = [np.where(s.rows["candidate"] & ~r, s.rows["prompt"], np.iinfo("u8").max)
               for s, r in zip(shards, repeated)]
    fresh = np.sort(np.concatenate(prompts))
    total = sum(int((~r).sum()) for r in repeated)
    wanted = max(round(data.eval_share * total), min(FEW_ROWS, total // 5)) if data.eval_share else 0
    wanted = min(wanted, data.eval_limit, int((fresh < np.iinfo("u8").max).sum()))
    if not wanted:
        return [np.zeros(len(p), bool) for p in prompts]
    return [p <= fresh[wanted - 1] for p in prompts]


def _account(ledger: Ledger, shards: list[Shard], repeated: list[np.ndarray], is_eval: list[np.ndarray],
             data: Data) -> int:
    """Writes what happened to each row that was not used as it stood; returns how many were dropped."""
    dropped = 0
    noting = {"dropped": ledger.dropped, "changed": ledger.changed, "shortened": ledger.shortened}
    for shard, twice in zip(shards, repeated):
        for problem in shard.problems():
            where = Where(problem["file"], problem["line"])
            if problem["reason"] == "too_long" and problem["action"] == "dropped" and data.too_long == "refuse":
                raise UserError(f"{where}: {problem['detail']} (data.too_long: refuse); raise data.sequence_length or "
                                "set data.too_long to drop or truncate")
            noting[problem["action"]](where, problem["reason"], problem["detail"])
            dropped += problem["action"] == "dropped"
        wheres = {shard.where(row) for row in np.flatnonzero(twice)}
        whole = wheres - {shard.where(row) for row in np.flatnonzero(~twice)} if wheres else wheres
        in_eval = {tuple(d) for s, e in zip(shards, is_eval) for d in s.rows["digest"][e].tolist()} if whole else set()
        for row in np.flatnonzero(twice):
            where = shard.where(row)
            if where in whole:
                whole.remove(where)
                leak = tuple(shard.rows["digest"][row].tolist()) in in_eval and bool(data.eval)
                ledger.dropped(where, "duplicate_of_eval" if leak else "duplicate")
                dropped += 1
    return dropped
