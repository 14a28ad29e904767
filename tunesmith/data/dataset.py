"""The rows a run learns from and those it is measured on, as tokens on disk.

Duplicates go, and evaluation is kept apart: held-out rows are chosen by the hash of their prompt, so rows that ask
the same are on one side whatever their order. Every row that is not used as it stood is in the ledger.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tunesmith.data import records
from tunesmith.data.encode import ROW, SYSTEM_PROMPTS_KEPT, Progress, Settings, encode_source
from tunesmith.data.ledger import Ledger
from tunesmith.data.packing import Sizes
from tunesmith.data.rows import REASONS, Where
from tunesmith.data.source import ResolvedSource, Sources
from tunesmith.errors import UserError
from tunesmith.recipe import Data

SMALL_BYTES = 2**20  # of a source so small that any of its rows may be held out
FEW_ROWS = 8  # held out at least, where the data has five times as many


class Shard:
    """A source's tokens, memory-mapped."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / "shard.json").read_text())
        self.folder, self.format, self.read, self.files = folder, facts["format"], facts["read"], facts["files"]
        self.unread: dict[str, int] = facts["unread"]
        self.chats, self.system_prompts = facts["chats"], facts["system_prompts"]
        self.rows = _map(folder / "rows.bin", ROW)
        self.ids = _map(folder / "ids.bin", np.dtype("i4"))
        self.supervised = _map(folder / "supervised.bin", np.dtype("?"))
        self.lengths = _map(folder / "lengths.bin", np.dtype("i4"))

    def where(self, example: int) -> Where:
        return Where(self.files[self.rows["file"][example]], int(self.rows["line"][example]))

    def asked(self, example: int) -> str:
        with open(self.folder / "asked.jsonl", "rb") as file:
            file.seek(int(self.rows["asked"][example]))
            return json.loads(file.readline())

    def problems(self) -> Iterator[dict]:
        with open(self.folder / "problems.jsonl", encoding="utf-8") as file:
            yield from map(json.loads, file)


class TokenStore:
    """Examples by number: `store[i]` is (ids, supervised, lengths), the arrays of its sequences end to end and how long
    each is. `lengths`, `sizes` and `weights` are arrays over all examples."""

    def __init__(self, shards: list[Shard], picks: list[np.ndarray], weights: list[float]):
        self._shards = shards
        self._shard = np.repeat(np.arange(len(picks)), [len(p) for p in picks])
        self._example = np.concatenate(picks).astype(np.int64)
        self.lengths = np.concatenate([s.rows["length"][p] for s, p in zip(shards, picks)])
        self.sizes = Sizes(self.lengths, *(np.concatenate(v) for v in zip(*map(_sequences, shards, picks))))
        self.weights = np.repeat(np.array(weights), [len(p) for p in picks])

    def __len__(self) -> int:
        return len(self._example)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shard, example = self._at(number)
        start, length = shard.rows["start"][example], shard.rows["length"][example]
        tokens, first = slice(start, start + length), shard.rows["first"][example]
        lengths = shard.lengths[first : first + shard.rows["sequences"][example]]
        return shard.ids[tokens], shard.supervised[tokens], lengths

    def first_sequence(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, supervised) of an example's first sequence, which for most methods is its only one."""
        ids, supervised, lengths = self[number]
        return ids[: lengths[0]], supervised[: lengths[0]]

    def where(self, number: int) -> Where:
        shard, example = self._at(number)
        return shard.where(example)

    def prompt_and_answer(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The last answer's ids, and those of all before it: the prompt just as training saw it."""
        shard, example = self._at(number)
        start, end = shard.rows["answer"][example]
        ids = self[number][0]
        return ids[:start], ids[start:end]

    def asked(self, number: int) -> str:
        """Returns the question of a held-out example as text."""
        shard, example = self._at(number)
        return shard.asked(example)

    @property
    def fingerprint(self) -> str:
        """Equal for stores of the same rows, whatever tokenizer encoded them."""
        digests = [
            shard.rows["digest"][self._example[self._shard == number]] for number, shard in enumerate(self._shards)
        ]
        rows = np.concatenate(digests)
        ordered = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        return hashlib.blake2b(ordered.tobytes(), digest_size=16).hexdigest()

    @property
    def largest_id(self) -> int:
        return max((int(s.ids.max()) for s in self._shards if len(s.ids)), default=0)

    def _at(self, number: int) -> tuple[Shard, int]:
        return self._shards[self._shard[number]], self._example[number]


@dataclass
class Dataset:
    train: TokenStore
    eval: TokenStore
    rows: list[int]  # examples to learn from, of each source
    formats: list[str | None]
    ledger: dict  # the ledger's summary
    eval_unused: int  # held-out examples beyond data.eval_limit
    system_prompts: dict[str, float]  # the most common ones ("" for none) and their share of the conversations
    left_out: dict[str, list[str]]  # by source: what lies beside its files and is not read, for people


def prepare(
    data: Data, sources: Sources, settings: Settings, cache: Path, ledger_file: Path | None, progress: Progress
) -> Dataset:
    """Encodes every source, removes duplicates, sets rows aside and writes the ledger. Raises UserError."""

    def shard(source: ResolvedSource, share: float) -> Shard:
        return Shard(encode_source(source, replace(settings, candidate_share=share), cache, progress))

    train = [shard(source, _candidate_share(data, source)) for source in sources.train]
    shards = [shard(source, 1.0) for source in sources.eval] + train
    is_eval = [np.full(len(s.rows), i < len(data.eval)) for i, s in enumerate(shards)]
    repeated = _repeated([s.rows["digest"] for s in shards], is_eval)
    leaked = _leaked(shards, is_eval) if data.eval else [np.zeros(len(s.rows), bool) for s in shards]
    usable = [~r & ~k for r, k in zip(repeated, leaked)]
    if not data.eval:
        is_eval = _set_aside(data, shards, usable)
    ledger = _ledger(ledger_file, shards, repeated, leaked, data, sources.train)
    keyed = [("data.eval", source) for source in sources.eval] + [("data.train", source) for source in sources.train]
    for (key, source), s, r, k in zip(keyed, shards, repeated, leaked):
        if (r | k).all():
            raise UserError(f"{key}: {source.path} gives no row: {_losses(s, r, k)}; leave it out, or mend it")
    weights = [1.0] * len(data.eval) + [source.weight for source in data.train]
    learned = TokenStore(shards, [np.flatnonzero(u & ~e) for u, e in zip(usable, is_eval)], weights)
    if not len(learned):
        raise UserError(
            f"data.train: no row of {data.train[0].path} is left to learn from; the rest is held out or "
            "asks what evaluation rows ask (data.eval, data.eval_share)"
        )
    held_out = [u & e for u, e in zip(usable, is_eval)]
    measured = _limited(shards, held_out, data.eval_limit)
    learned_rows = [int((u & ~e).sum()) for u, e in zip(usable, is_eval)][len(data.eval) :]
    return Dataset(
        learned,
        TokenStore(shards, list(map(np.flatnonzero, measured)), weights),
        learned_rows,
        [s.format for s in train],
        ledger.summary(),
        int(sum(h.sum() - m.sum() for h, m in zip(held_out, measured))),
        _system_prompts(train),
        {source.path: source.left_out for source in sources.all if source.left_out},
    )


def _system_prompts(train: list[Shard]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for shard in train:
        counts.update(shard.system_prompts)
    chats = sum(shard.chats for shard in train)
    return {prompt: round(rows / chats, 3) for prompt, rows in counts.most_common(SYSTEM_PROMPTS_KEPT)}


def measured_only(
    data: Data, sources: list[ResolvedSource], settings: Settings, cache: Path, progress: Progress
) -> tuple[TokenStore, dict]:
    """The rows of `sources` without duplicates, at most `data.eval_limit`, and the ledger's summary. Raises
    UserError if none is usable."""
    shards = [Shard(encode_source(source, settings, cache, progress)) for source in sources]
    none = [np.zeros(len(s.rows), bool) for s in shards]
    repeated = _repeated([s.rows["digest"] for s in shards], none)
    ledger = _ledger(None, shards, repeated, none, data, sources)
    limited = _limited(shards, [~r for r in repeated], data.eval_limit)
    return TokenStore(shards, list(map(np.flatnonzero, limited)), [1.0] * len(shards)), ledger.summary()


def _sequences(shard: Shard, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many sequences each of the examples has, and the tokens of the longest."""
    rows = shard.rows[picked]
    longest = np.maximum.reduceat(shard.lengths, shard.rows["first"])[picked] if len(shard.rows) else rows["length"]
    return rows["sequences"], longest


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def _candidate_share(data: Data, source: ResolvedSource) -> float:
    """Small sources keep every row as a candidate, so that a share of few rows is still some."""
    if data.eval or not data.eval_share:
        return 0.0
    small = sum(f.stat().st_size for f in source.files) < SMALL_BYTES
    return 1.0 if small else min(1.0, 2 * data.eval_share)


def _repeated(digests: list[np.ndarray], is_eval: list[np.ndarray]) -> list[np.ndarray]:
    """For each shard, which examples equal an earlier one; those of evaluation count as earlier than all others."""
    keys = np.concatenate(digests)
    rank = np.where(np.concatenate(is_eval), 0, len(keys)) + np.arange(len(keys))
    order = np.lexsort((rank, keys[:, 1], keys[:, 0]))
    same = np.zeros(len(keys), bool)
    same[order[1:]] = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    return np.split(same, np.cumsum([len(d) for d in digests])[:-1])


def _leaked(shards: list[Shard], is_eval: list[np.ndarray]) -> list[np.ndarray]:
    """For each shard, which of its examples to learn from ask what an evaluation row asks."""
    asked = np.unique(np.concatenate([s.rows["prompt"][e] for s, e in zip(shards, is_eval)]))
    return [np.isin(s.rows["prompt"], asked) & ~e for s, e in zip(shards, is_eval)]


def _set_aside(data: Data, shards: list[Shard], usable: list[np.ndarray]) -> list[np.ndarray]:
    """Whole prompts in the order of their hashes, as long as they stay within the share and the limit."""
    candidates = [s.rows["prompt"][u & (s.rows["asked"] >= 0)] for s, u in zip(shards, usable)]
    prompts, sizes = np.unique(np.concatenate(candidates), return_counts=True)
    left, chosen = most_set_aside(data, sum(int(u.sum()) for u in usable)), []
    for prompt, size in zip(prompts, sizes):
        if size <= left:
            chosen.append(prompt)
            left -= size
        if not left:
            break
    return [np.isin(s.rows["prompt"], np.array(chosen, "u8")) for s in shards]


def most_set_aside(data: Data, rows: int) -> int:
    """Returns how many of so many usable rows may be held out."""
    share = max(round(data.eval_share * rows), min(FEW_ROWS, rows // 5)) if data.eval_share else 0
    return min(share, data.eval_limit)


def _limited(shards: list[Shard], held_out: list[np.ndarray], limit: int) -> list[np.ndarray]:
    """The held-out examples with the lowest hashes, over all shards: a sample that does not depend on their order."""
    hashes = np.concatenate([np.where(h, s.rows["digest"][:, 0], np.iinfo("u8").max) for s, h in zip(shards, held_out)])
    chosen = np.zeros(len(hashes), bool)
    chosen[np.argsort(hashes, kind="stable")[:limit]] = True
    return [c & h for c, h in zip(np.split(chosen, np.cumsum([len(h) for h in held_out])[:-1]), held_out)]


def _losses(shard: Shard, repeated: np.ndarray, leaked: np.ndarray) -> str:
    """How many of a source's rows were lost, by reason; of one that gives none."""
    lost = Counter(REASONS[problem["reason"]] for problem in shard.problems() if problem["action"] == "dropped")
    for reason, count in (("duplicate", repeated & ~leaked), ("duplicate_of_eval", leaked)):
        lost[REASONS[reason]] += len(np.unique(shard.rows["row"][count]))
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in lost.items() if count)
    return f"{shard.read:,} rows read" + (f", {reasons}" if reasons else "")


def _ledger(
    file: Path | None,
    shards: list[Shard],
    repeated: list[np.ndarray],
    leaked: list[np.ndarray],
    data: Data,
    sources: list[ResolvedSource],
) -> Ledger:
    """The account of every row, written to `file`. Raises UserError, naming the sources, if no row is kept."""
    with Ledger(file) as ledger:
        for s, r, k in zip(shards, repeated, leaked):
            _account(ledger, s, r, k, data)
        ledger.kept(sum(s.read for s in shards) - sum(ledger.summary()["dropped"].values()))
        ledger.refuse_if_empty(", ".join(s.path for s in sources))
    return ledger


def _account(ledger: Ledger, shard: Shard, repeated: np.ndarray, leaked: np.ndarray, data: Data) -> None:
    """Writes what happened to each row of a shard that is not used as it stood."""
    for name, rows in shard.unread.items():
        records.count(ledger.unread, [name], rows)
    noting = {"dropped": ledger.dropped, "changed": ledger.changed, "shortened": ledger.shortened}
    for problem in shard.problems():
        where = Where(problem["file"], problem["line"])
        if problem["reason"] == "too_long" and problem["action"] == "dropped" and data.too_long == "refuse":
            raise UserError(
                f"{where}: {problem['detail']} (data.too_long: refuse); raise data.sequence_length or "
                "set data.too_long to drop or truncate"
            )
        noting[problem["action"]](where, problem["reason"], problem["detail"])
    # A row is dropped if all its examples are; they stand side by side.
    _, first, examples = np.unique(shard.rows["row"], return_index=True, return_counts=True)
    lost = np.add.reduceat(repeated | leaked, first) if len(first) else first
    for example in first[lost == examples]:
        reason = "duplicate_of_eval" if leaked[example] else "duplicate"
        ledger.dropped(shard.where(example), reason)
