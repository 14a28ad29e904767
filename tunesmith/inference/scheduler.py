"""The engine in this process, with requests joining and leaving between steps.

One thread owns the models. A step computes for one model one forward pass over the next tokens of all its sequences:
one token of each that is answering, and up to CHUNK tokens of prompts. Sequences attend each to its own keys, so an
answer does not depend on who else is there, up to the rounding of matrix products of different sizes. Sequences of
different adapters take turns, since an adapter is switched for all tokens. How a copy of weights computes is its own
matter: by transformers' code (transformers_model.py) or by llama.cpp (llama_model.py).
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from threading import Condition, Thread

import torch

from tunesmith.errors import UserError, first_line
from tunesmith.inference import prefix_cache
from tunesmith.inference.interface import Piece, Refused, Request, Served, Token
from tunesmith.inference.loaded_model import KV, Part, Weights
from tunesmith.inference.prefix_cache import PrefixCache
from tunesmith.inference.sampling import Sampler
from tunesmith.inference.text_stream import Delivery
from tunesmith.units import size

CHUNK = 512
MEMORY_SHARE = 0.5  # of the memory that is free once the models are there, for keys and values
PREFIX_SHARE = 0.25  # of that, for prefixes


class Pool:
    """The memory for keys and values of one copy of weights."""

    def __init__(self, weights: Weights, share: float, context: int, batch: int, most_bytes: int | None):
        """`share` of the memory that is free, `most_bytes` at most; `context`: most tokens of each of `batch`
        sequences."""
        limit_bytes = int(weights.free_bytes() * share)
        self.limit_tokens, self._computes = weights.reserve(
            limit_bytes if most_bytes is None else min(limit_bytes, most_bytes),
            context,
            sequences=batch + prefix_cache.MOST + 1,
            step=CHUNK + batch,
        )
        self.limit_bytes = self.limit_tokens * weights.bytes_per_token
        self.prefixes = PrefixCache(int(self.limit_bytes * PREFIX_SHARE) if weights.divides else 0)

    def describe(self, names: list[str]) -> str:
        """For people; `names` are the models of these weights."""
        return (
            f"{self._computes} ({', '.join(names)}); keys and values of up to {self.limit_tokens:,} tokens in "
            f"{size(self.limit_bytes)}"
        )


class Sequence:
    """A request that is being answered."""

    def __init__(self, request: Request, served: Served, delivery: Delivery, wake: Callable[[], None]):
        self.request, self.served, self.delivery = request, served, delivery
        self.ids = list(request.ids)
        self.kv: KV | None = None
        self.cached = 0
        self.sampler = Sampler(request.sampling, request.ids)
        self.constraint = request.constraint() if request.constraint else None
        self.cancelled = False
        self._wake = wake

    @property
    def pending(self) -> int:
        """Tokens not yet computed."""
        return len(self.ids) - self.cached

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes if self.kv else 0

    def forget(self) -> None:
        """Releases keys and values; to continue, they are computed again."""
        if self.kv is not None:
            self.kv.free()
        self.kv, self.cached = None, 0

    def cancel(self) -> None:
        self.cancelled = True
        self._wake()


class BatchingEngine:
    """See interface.Engine. `batch` sequences at most are computed at once, `queue` more may wait. `kv_bytes`: most
    bytes of keys and values; by default a share of the memory that is free."""

    def __init__(self, models: dict[str, Served], batch: int = 64, queue: int = 256, kv_bytes: int | None = None):
        self._batch, self.capacity = batch, batch + queue
        copies = {id(served.weights): served for served in models.values()}
        share = MEMORY_SHARE / len(copies)
        most_bytes = None if kv_bytes is None else kv_bytes // len(copies)
        self.pools = {
            key: Pool(served.weights, share, served.context, batch, most_bytes) for key, served in copies.items()
        }
        self.models = {
            name: replace(served, context=min(served.context, self._pool(served).limit_tokens))
            for name, served in models.items()
        }
        if small := [name for name, served in self.models.items() if served.context < 2]:
            raise UserError(f"{small[0]}: there is no memory left for keys and values; serve fewer or smaller models")
        self.description = [
            pool.describe([name for name, served in models.items() if self._pool(served) is pool])
            for pool in self.pools.values()
        ]
        self.device_bytes = _sums(
            served.weights.device_bytes(self.pools[key].limit_bytes) for key, served in copies.items()
        )
        self.counts: Counter[str] = Counter()
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._run, name="engine")
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Piece], None]) -> Sequence:
        served = self.models[request.model]
        delivery = Delivery(request, served.tokenizer, deliver, self.counts)
        sequence = Sequence(request, served, delivery, self._notify)
        with self._changed:
            if self._closing:
                raise Refused("the server is stopping", 503, "stopping")
            if len(self._waiting) + len(self._running) >= self.capacity:
                self.counts["refused"] += 1
                raise Refused(f"{self.capacity} requests are here already; try again later", 429, "queue_full")
            self._waiting.append(sequence)
            self._changed.notify()
        return sequence

    def embed(self, model: str, inputs: list[list[int]]) -> Future:
        served = self.models[model]
        return self._compute(lambda: [served.weights.embedding(served.adapter, ids) for ids in inputs])

    def score(self, model: str, ids: list[int], logprobs: int) -> Future:
        served = self.models[model]
        return self._compute(lambda: _scored(served, ids, logprobs))

    def _compute(self, work: Callable[[], object]) -> Future:
        """Lets the engine's thread do something between two steps. Raises Refused."""
        found: Future = Future()

        def job():
            if found.set_running_or_notify_cancel():
                try:
                    found.set_result(work())
                except Exception as error:  # raised where the result is awaited
                    found.set_exception(error)

        with self._changed:
            if self._closing or len(self._jobs) >= self.capacity:
                raise Refused("too many requests are waiting", 429, "queue_full")
            self._jobs.append(job)
            self._changed.notify()
        return found

    def metrics(self) -> dict[str, float]:
        running, pools = list(self._running), self.pools.values()
        return {
            **self.counts,
            "running": len(running),
            "waiting": len(self._waiting),
            "kv_bytes": sum(s.nbytes for s in running),
            "kv_limit_bytes": sum(p.limit_bytes for p in pools),
            "prefix_bytes": sum(p.prefixes.nbytes for p in pools),
        }

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        for served in self.models.values():
            served.weights.close()

    def _pool(self, served: Served) -> Pool:
        return self.pools[id(served.weights)]

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        with torch.inference_mode():
            while self._next_step():
                try:
                    self._round()
                except Exception as error:  # a bug or no memory: the clients that wait must receive it
                    for sequence in list(self._running):
                        self._finish(sequence, "error", first_line(error))
        for sequence in [*self._running, *self._waiting]:
            sequence.delivery.end("cancelled")
        self._running.clear()
        self._waiting.clear()

    def _round(self) -> None:
        """One step of every model that has something to do."""
        self._drop_cancelled()
        self._admit()
        self._make_room()
        for name in dict.fromkeys(s.request.model for s in self._running):
            self._step([s for s in self._running if s.request.model == name])

    def _next_step(self) -> bool:
        """Waits for work; False when the engine closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._jobs or self._waiting or self._running)
            jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
        for job in jobs:
            job()
        return not self._closing

    def _drop_cancelled(self) -> None:
        for sequence in [s for s in self._running if s.cancelled]:
            self._finish(sequence, "cancelled")
        with self._changed:
            gone = [s for s in self._waiting if s.cancelled]
            self._waiting = deque(s for s in self._waiting if not s.cancelled)
        for sequence in gone:
            sequence.delivery.end("cancelled")

    def _admit(self) -> None:
        """Lets waiting sequences in, oldest first, while there is room for their prompts."""
        while len(self._running) < self._batch:
            with self._changed:
                if not self._waiting:
                    return
                first = self._waiting[0]
                pool = self._pool(first.served)
                others = [s for s in self._running if self._pool(s.served) is pool]
                if others and len(first.ids) + sum(len(s.ids) for s in others) > pool.limit_tokens:
                    return
                sequence = self._waiting.popleft()
            known, sequence.cached = pool.prefixes.find(sequence.request.model, sequence.ids)
            sequence.kv = known or sequence.served.weights.new_kv()
            if not sequence.delivery.generated:
                sequence.delivery.cached = sequence.cached
            self._running.append(sequence)

    def _make_room(self) -> None:
        """Keeps within the limits: prefixes go first, then the youngest sequence waits and is computed again."""
        for pool in self.pools.values():
            running = [s for s in self._running if self._pool(s.served) is pool]
            used = sum(s.nbytes for s in running)
            pool.prefixes.shrink(min(pool.prefixes.limit_bytes, max(0, pool.limit_bytes - used)))
            while used > pool.limit_bytes and len(running) > 1:
                youngest = running.pop()
                used -= youngest.nbytes
                youngest.forget()
                self.counts["preempted"] += 1
                self._running.remove(youngest)
                with self._changed:
                    self._waiting.appendleft(youngest)

    def _step(self, sequences: list[Sequence]) -> None:
        """One forward pass of one model, and a token for every sequence that is computed up to its end."""
        served = sequences[0].served
        room, chosen = CHUNK, []
        for sequence in sorted(sequences, key=lambda s: s.pending > 1):
            count = sequence.pending if room > 0 and not served.weights.divides else min(sequence.pending, room)
            count = 1 if sequence.pending == 1 else count
            room -= count if sequence.pending > 1 else 0
            if count > 0:
                end = sequence.cached + count
                part = Part(sequence.kv, sequence.cached, sequence.ids[sequence.cached : end], end == len(sequence.ids))
                chosen.append((sequence, part))
        try:
            logits = served.weights.logits(served.adapter, [part for _, part in chosen])
        except Exception as error:  # torch raises many kinds; the next request may go well
            for sequence, _ in chosen:
                self._finish(sequence, "error", first_line(error))
            return
        logits = logits[:, : served.tokenizer.vocab_size]  # the embedding may have more rows than there are tokens
        for sequence, part in chosen:
            sequence.cached += len(part.ids)
        ready = [sequence for sequence, part in chosen if part.last]
        largest = logits.argmax(-1).tolist() if ready else []
        for row, sequence in enumerate(ready):
            try:
                self._next_token(sequence, logits[row], largest[row])
            except Exception as error:  # of this sequence alone: logits that are not numbers, a grammar at its end
                self._finish(sequence, "error", first_line(error))

    def _next_token(self, sequence: Sequence, logits_V: torch.Tensor, largest: int) -> None:
        request, served = sequence.request, sequence.served
        if sequence.sampler.takes_largest and sequence.constraint is None:
            token = largest
        else:
            scores = logits_V.float().cpu().clone()
            if sequence.constraint is not None:
                scores[~sequence.constraint.allowed()] = float("-inf")
            token = sequence.sampler(scores)
            if sequence.constraint is not None:
                sequence.constraint.accept(token)
        sequence.ids.append(token)
        ends = token in served.stop_ids
        told = None
        if request.logprobs is not None:
            told = _token(served.tokenizer, logits_V, token, request.logprobs)
        if finish := sequence.delivery.take(token, ends, told):
            self._finish(sequence, finish)

    def _finish(self, sequence: Sequence, finish: str, error: str = "") -> None:
        self._running.remove(sequence)
        if finish != "error" and sequence.cached:
            kv, sequence.kv = sequence.kv, None
            self._pool(sequence.served).prefixes.keep(sequence.request.model, sequence.ids[: sequence.cached], kv)
        sequence.forget()
        sequence.delivery.end(finish, error)


def _sums(parts: Iterable[dict[str, int | None]]) -> dict[str, int | None]:
    """Adds up bytes by device; unknown with anything is unknown."""
    found: dict[str, int | None] = {}
    for part in parts:
        for device, nbytes in part.items():
            before = found.get(device, 0)
            found[device] = None if nbytes is None or before is None else before + nbytes
    return found


def _scored(served: Served, ids: list[int], count: int) -> list[Token]:
    """See interface.Engine.score."""
    found = [Token(served.tokenizer.decode(ids[:1]), None, [])]
    for logits in served.weights.prompt_logits(served.adapter, ids):
        for logits_V, token in zip(logits[:, : served.tokenizer.vocab_size], ids[len(found) :]):
            found.append(_token(served.tokenizer, logits_V, token, count))
    return found


def _token(tokenizer, logits_V: torch.Tensor, token: int, count: int) -> Token:
    logprobs = logits_V.float().log_softmax(-1)
    values, ids = logprobs.topk(count) if count else (logprobs[:0], logprobs[:0].long())
    top = [(tokenizer.decode([i]), value) for i, value in zip(ids.tolist(), values.tolist())]
    return Token(tokenizer.decode([token]), float(logprobs[token]), top)
