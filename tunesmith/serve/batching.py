"""The engine in this process: transformers' model code, with requests joining and leaving between steps.

One thread owns the models. A step computes for one model one forward pass over the next tokens of all its sequences:
one token of each that is answering, and up to CHUNK tokens of prompts. Sequences are packed without padding and attend
each to its own keys (attention.py), so an answer does not depend on who else is there, up to the rounding of matrix
products of different sizes. Sequences of different adapters take turns, since an adapter is switched for all tokens.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from threading import Condition, Thread

import torch

from tunesmith.errors import UserError, first_line
from tunesmith.machine import memory
from tunesmith.serve.attention import KV, NAME, Segment, packed
from tunesmith.serve.decoding import Writer
from tunesmith.serve.engine import Piece, Refused, Request, Token
from tunesmith.serve.models import Served, Weights
from tunesmith.serve.prefix import PrefixCache
from tunesmith.serve.sampling import Sampler

CHUNK = 512
MEMORY_SHARE = 0.5  # of the memory that is free once the models are there, for keys and values
PREFIX_SHARE = 0.25  # of that, for prefixes
# Largest difference of logits over their spread between one packed pass and transformers' own attention. A model that
# mixes sequences or positions differs by the spread itself.
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


class Sequence:
    """A request that is being answered."""

    def __init__(self, request: Request, served: Served, deliver: Callable[[Piece], None], wake: Callable[[], None]):
        self.request, self.served = request, served
        self.ids = list(request.ids)
        self.kv, self.cached = KV(), 0
        self.sampler = Sampler(request.sampling, request.ids)
        self.writer = Writer(served.tokenizer, request.stop, request.shown)
        self.constraint = request.constraint() if request.constraint else None
        self.cancelled = False
        self.arrived = time.monotonic()
        self.prefix = 0
        self._deliver, self._wake = deliver, wake
        self._piece = Piece()

    @property
    def pending(self) -> int:
        """Tokens not yet computed."""
        return len(self.ids) - self.cached

    @property
    def generated(self) -> int:
        return len(self.ids) - len(self.request.ids)

    def cancel(self) -> None:
        self.cancelled = True
        self._wake()

    def write(self, token: Token | None, text: str) -> None:
        self._piece.text += text
        if token is not None:
            self._piece.tokens.append(token)
        if self.request.stream and (text or token is not None):
            self._send()

    def end(self, finish: str, error: str = "") -> None:
        if finish not in ("cancelled", "error"):
            self._piece.text += self.writer.finish()
            finish = "stop" if self.writer.stopped is not None else finish
        self._piece.finish, self._piece.error, self._piece.stop_text = finish, error, self.writer.stopped
        self._send()

    def _send(self) -> None:
        self._piece.generated, self._piece.cached = self.generated, self.prefix
        piece, self._piece = self._piece, Piece()
        self._deliver(piece)


class TransformersEngine:
    """See engine.Engine. `batch` sequences at most are computed at once, `queue` more may wait."""

    def __init__(self, models: dict[str, Served], batch: int = 64, queue: int = 256):
        self._batch, self._queue = batch, queue
        copies = {id(served.weights): served.weights for served in models.values()}
        per_token = max(_prepare(weights) for weights in copies.values())
        first = next(iter(copies.values()))
        free = torch.cuda.mem_get_info()[0] if first.device.type == "cuda" else memory()[1]
        self.limit_bytes = int(free * MEMORY_SHARE)
        self.limit_tokens = self.limit_bytes // per_token
        self.models = {name: replace(served, context=min(served.context, self.limit_tokens))
                       for name, served in models.items()}
        self.prefixes = PrefixCache(int(self.limit_bytes * PREFIX_SHARE))
        self.description = (f"transformers in this process, {first.device.type}, "
                            f"{str(first.inner.dtype).removeprefix('torch.')}")
        self.counts: Counter[str] = Counter()
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._run, name="engine")
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Piece], None]) -> Sequence:
        sequence = Sequence(request, self.models[request.model], deliver, self._notify)
        with self._changed:
            if self._closing:
                raise Refused("the server is stopping", 503, "stopping")
            if len(self._waiting) >= self._queue:
                self.counts["refused"] += 1
                raise Refused(f"{self._queue} requests are waiting already; try again later", 429, "queue_full")
            self._waiting.append(sequence)
            self._changed.notify()
        return sequence

    def embed(self, model: str, inputs: list[list[int]]) -> Future:
        found: Future = Future()
        served = self.models[model]

        def job():
            if found.set_running_or_notify_cancel():
                try:
                    found.set_result([_embedding(served, ids) for ids in inputs])
                except Exception as error:  # for whoever waits
                    found.set_exception(error)

        with self._changed:
            if self._closing or len(self._jobs) >= self._queue:
                raise Refused("too many requests are waiting", 429, "queue_full")
            self._jobs.append(job)
            self._changed.notify()
        return found

    def metrics(self) -> dict[str, float]:
        running = list(self._running)
        return {**self.counts, "running": len(running), "waiting": len(self._waiting),
                "kv_bytes": sum(s.kv.nbytes for s in running), "kv_limit_bytes": self.limit_bytes,
                "prefix_bytes": self.prefixes.nbytes}

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self) -> None:
        with torch.inference_mode():
            while self._next_step():
                try:
                    self._round()
                except Exception as error:  # a fault of ours or no memory: whoever waits must hear of it
                    for sequence in list(self._running):
                        self._finish(sequence, "error", first_line(error))
        for sequence in [*self._running, *self._waiting]:
            sequence.end("cancelled")
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
            self._count_end(sequence, "cancelled")
            sequence.end("cancelled")

    def _admit(self) -> None:
        """Lets waiting sequences in, oldest first, while there is room for their prompts."""
        while len(self._running) < self._batch:
            with self._changed:
                if not self._waiting:
                    return
                tokens = len(self._waiting[0].ids) + sum(len(s.ids) for s in self._running)
                if self._running and tokens > self.limit_tokens:
                    return
                sequence = self._waiting.popleft()
            sequence.kv, sequence.cached = self.prefixes.find(sequence.request.model, sequence.ids)
            if not sequence.generated:
                sequence.prefix = sequence.cached
            self._running.append(sequence)

    def _make_room(self) -> None:
        """Keeps within the limit: prefixes go first, then the youngest sequence waits again and is computed anew."""
        used = sum(s.kv.nbytes for s in self._running)
        self.prefixes.shrink(min(self.prefixes.limit_bytes, max(0, self.limit_bytes - used)))
        while used > self.limit_bytes and len(self._running) > 1:
            youngest = self._running.pop()
            used -= youngest.kv.nbytes
            youngest.kv, youngest.cached = KV(), 0
            self.counts["preempted"] += 1
            with self._changed:
                self._waiting.appendleft(youngest)

    def _step(self, sequences: list[Sequence]) -> None:
        """One forward pass of one model, and a token for every sequence that is computed up to its end."""
        room, chosen = CHUNK, []
        for sequence in sorted(sequences, key=lambda s: s.pending > 1):
            count = 1 if sequence.pending == 1 else min(sequence.pending, room)
            room -= count if sequence.pending > 1 else 0
            if count:
                chosen.append((sequence, Segment(sequence.kv, sequence.cached, count)))
        try:
            logits = _forward(sequences[0].served, chosen)
        except Exception as error:  # torch raises many kinds; the next request may go well
            for sequence, _ in chosen:
                self._finish(sequence, "error", first_line(error))
            return
        ready = []
        for sequence, segment in chosen:
            sequence.cached += segment.count
            if not sequence.pending:
                ready.append(sequence)
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
        if not sequence.generated:
            self.counts["first_tokens"] += 1
            self.counts["first_token_seconds"] += time.monotonic() - sequence.arrived
        sequence.ids.append(token)
        if token in served.stop_ids:
            return self._finish(sequence, "stop")
        told = None
        if request.logprobs is not None:
            told = _token(served.tokenizer, logits_V, token, request.logprobs)
        sequence.write(told, sequence.writer.push(token))
        if sequence.writer.stopped is not None:
            self._finish(sequence, "stop")
        elif sequence.generated >= request.max_new_tokens:
            self._finish(sequence, "length")

    def _finish(self, sequence: Sequence, finish: str, error: str = "") -> None:
        self._running.remove(sequence)
        if finish != "error" and sequence.cached:
            self.prefixes.keep(sequence.request.model, sequence.ids[:sequence.cached], sequence.kv)
        sequence.kv = KV()
        self._count_end(sequence, finish)
        sequence.end(finish, error)

    def _count_end(self, sequence: Sequence, finish: str) -> None:
        self.counts[f"finished_{finish}"] += 1
        self.counts["prompt_tokens"] += len(sequence.request.ids)
        self.counts["cached_tokens"] += sequence.prefix
        self.counts["generated_tokens"] += sequence.generated


def _forward(served: Served, chosen: list[tuple[Sequence, Segment]]) -> torch.Tensor:
    """Logits [N, V] after the last token of each of the N segments that reach their sequence's end."""
    ids, positions, last = [], [], []
    for sequence, segment in chosen:
        end = segment.at + segment.count
        ids += sequence.ids[segment.at:end]
        positions += range(segment.at, end)
        if end == len(sequence.ids):
            last.append(len(ids) - 1)
    served.weights.switch(served.adapter)
    logits = _logits(served.weights, ids, positions, [segment for _, segment in chosen], last or [0])
    return logits[:, :served.tokenizer.vocab_size]  # the embedding may have more rows than there are tokens


def _logits(weights: Weights, ids: list[int], positions: list[int], segments: list[Segment], keep: list[int], **more):
    """Logits [N, V] at the positions `keep`."""
    device = weights.device
    with packed(segments):
        return weights.inner(input_ids=torch.tensor([ids], device=device), use_cache=False,
                             position_ids=torch.tensor([positions], device=device),
                             logits_to_keep=torch.tensor(keep, device=device), **more).logits[0]


def _embedding(served: Served, ids: list[int]) -> list[float]:
    served.weights.switch(served.adapter)
    device = served.weights.device
    with packed([Segment(KV(), 0, len(ids))]):
        out = served.weights.inner(input_ids=torch.tensor([ids], device=device), use_cache=False, logits_to_keep=1,
                                   position_ids=torch.arange(len(ids), device=device)[None],
                                   output_hidden_states=True)
    mean = out.hidden_states[-1][0].float().mean(0)
    return torch.nn.functional.normalize(mean, dim=0).tolist()


def _token(tokenizer, logits_V: torch.Tensor, token: int, count: int) -> Token:
    logprobs = logits_V.float().log_softmax(-1)
    values, ids = logprobs.topk(count) if count else (logprobs[:0], logprobs[:0].long())
    top = [(tokenizer.decode([i]), value) for i, value in zip(ids.tolist(), values.tolist())]
    return Token(tokenizer.decode([token]), float(logprobs[token]), top)


def _prepare(weights: Weights) -> int:
    """Puts our attention into a model, and shows on two sequences that packed they are what each is alone. Returns
    the bytes of keys and values a token takes. Raises UserError for a model that keeps anything else."""
    model = weights.inner
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    if other := kinds - {"full_attention", "sliding_attention"}:
        raise UserError(f"{model.config.model_type}: cannot be served: its layers are {', '.join(sorted(other))}; "
                        "only models of attention over keys and values can")
    # Above the special tokens, which stand first or last, whatever the vocabulary.
    first = [100 + 3 * i for i in range(5)]
    second = [90 + 5 * i for i in range(9)]
    with torch.inference_mode():
        model.set_attn_implementation("eager")
        device = weights.device
        expected = torch.cat([model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]
                              for ids in (first, second)]).float()
        model.set_attn_implementation(NAME)
        kv = KV()
        segments = [Segment(kv, 0, 5), Segment(KV(), 0, 9)]
        found = _logits(weights, first + second, [*range(5), *range(9)], segments, [*range(14)]).float()
    difference = float((found - expected).abs().max() / expected.std())
    if not difference < BOUNDS[model.dtype]:
        raise UserError(f"{model.config.model_type}: cannot be served: two prompts computed together differ from each "
                        f"alone by {difference:.2g} of the logits' spread")
    return kv.bytes_per_token
