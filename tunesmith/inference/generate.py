"""Generates answers to many prompts together, synchronously and reproducibly: for evaluation, parity and rollouts.

Which sequences share a forward pass depends on the arguments and the answers alone, never on time or free memory. Each
draw is a function of the seed, the prompt's number, the answer's number and the token's number. So the other sequences
of a pass change an answer by no more than the rounding of matrix products. N sequences of a pass, V tokens of the
vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tunesmith.inference.loaded_model import KV, Part, Weights

TOGETHER, TOKENS = 64, 16384  # sequences of a pass, and their tokens, whose keys and values are kept
Progress = Callable[[int], None]  # called with the number of answers so far
PREFILL_TOKENS = 2048  # prompt tokens of a pass; more need more memory and are not faster


def unheard(done: int) -> None:
    """Progress that is not shown."""


@dataclass(frozen=True)
class Answer:
    """`ids` include the stop token if one `ended` the answer. `logprobs` has the natural log-probability of each id
    under the distribution it was drawn from, which at temperature 0 is that of temperature 1."""

    ids: list[int]
    logprobs: np.ndarray
    ended: bool

    @property
    def text_ids(self) -> list[int]:
        """The ids without the stop token."""
        return self.ids[:-1] if self.ended else self.ids


@dataclass(frozen=True)
class _Draws:
    """How tokens are drawn; `key` is that of Philox."""

    stop_ids: frozenset[int]
    temperature: float
    key: np.ndarray


@dataclass
class _Prompt:
    """A prompt; the first `at` of its ids are computed. `logits_V` follow the last one; `waiting` has the numbers of
    the answers that have not started."""

    place: int
    number: int
    ids: list[int]
    max_new_tokens: int
    waiting: deque[int]
    kv: KV | None = None
    at: int = 0
    logits_V: torch.Tensor | None = None


@dataclass
class _Sequence:
    """An answer in progress; `kv` holds `at` tokens. `uniforms` gives a number from 0 to 1 for each token."""

    prompt: _Prompt
    number: int
    kv: KV
    at: int
    uniforms: np.random.Generator
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def generate(
    weights: Weights,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: frozenset[int],
    per_prompt: int = 1,
    temperature: float = 0.0,
    seed: tuple[int, ...] = (0,),
    numbers: Sequence[int] | None = None,
    together: int = TOGETHER,
    max_tokens: int = TOKENS,
    adapter: str | None = None,
    progress: Progress = unheard,
) -> list[list[Answer]]:
    """Returns `per_prompt` answers to each prompt (ids), in the order of the prompts. Each prompt is computed once.

    An answer ends with one of `stop_ids`, or at `max_new_tokens`, one number for all prompts or one each. `temperature`
    0 takes the most likely token. `seed` may have parts, such as a run's seed and a step; `numbers` are the prompts'
    numbers for the draws, by default their places. A pass computes at most `together` sequences, and at most as many as
    fit into `max_tokens`, prompts and longest answers included. `progress` is called with the number of answers so far.
    """
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    draws = _Draws(stop_ids, temperature, np.random.SeedSequence(seed).generate_state(2, np.uint64))
    answers = [[Answer([], np.empty(0, np.float32), False)] * per_prompt for _ in prompts]
    done = 0
    lengths = {place: len(ids) + limits[place] for place, ids in enumerate(prompts) if limits[place] > 0}
    with torch.inference_mode():
        for group in grouped(lengths, together, max_tokens):
            longest = lengths[group[0]]
            at_once = computed_together(longest, together, max_tokens)
            waiting = deque(
                _Prompt(
                    place,
                    place if numbers is None else numbers[place],
                    list(prompts[place]),
                    limits[place],
                    deque(range(per_prompt)),
                )
                for place in group
            )
            for sequence, ended in _Batch(weights, adapter, waiting, at_once, longest, draws):
                answer = Answer(sequence.ids, np.array(sequence.logprobs, np.float32), ended)
                answers[sequence.prompt.place][sequence.number] = answer
                done += 1
                progress(done)
    return answers


def computed_together(longest: int, together: int = TOGETHER, max_tokens: int = TOKENS) -> int:
    """Returns how many sequences a pass computes where the longest has so many tokens."""
    return min(together, max(1, max_tokens // longest))


def grouped(lengths: dict[int, int], together: int, max_tokens: int) -> list[list[int]]:
    """Splits prompts into groups, longest first, since each sequence of a group has room for the longest. Where
    `max_tokens` limits the sequences of a pass, a group ends before a prompt of half its longest length."""
    groups: list[list[int]] = []
    for place in sorted(lengths, key=lambda place: -lengths[place]):
        longest = lengths[groups[-1][0]] if groups else 0
        limited = together * longest > max_tokens
        if not groups or (limited and 2 * lengths[place] <= longest):
            groups.append([])
        groups[-1].append(place)
    return groups


class _Batch:
    """Computes one group. Iterating yields each sequence when it is complete, and whether a stop token ended it."""

    def __init__(
        self,
        weights: Weights,
        adapter: str | None,
        waiting: deque[_Prompt],
        at_once: int,
        longest: int,
        draws: _Draws,
    ):
        """`longest`: most tokens of a sequence."""
        self._weights, self._adapter, self._draws = weights, adapter, draws
        self._per_prompt = per_prompt = len(waiting[0].waiting)
        self._at_once = at_once if weights.divides else max(at_once, per_prompt)
        # A prompt whose answers do not all fit keeps a row of its own beside them.
        rows = min(self._at_once, len(waiting) * per_prompt) + (per_prompt > self._at_once)
        self._new_kv = weights.kv_maker(rows, longest)
        self._waiting = waiting
        self._started: list[_Prompt] = []  # partly computed, or with answers that have not started
        self._running: list[_Sequence] = []

    def __iter__(self) -> Iterator[tuple[_Sequence, bool]]:
        while self._waiting or self._started or self._running:
            self._admit()
            rows = self._compute()
            yield from self._draw(torch.cat(rows + self._start_answers()))

    def _admit(self) -> None:
        """Starts prompts while there is room for all their answers, one at least. Sequences that cannot be divided
        start together, because those that are padded in one batch always advance together."""
        if not self._weights.divides and self._running:
            return
        promised = len(self._running) + sum(len(prompt.waiting) for prompt in self._started)
        while self._waiting and (not promised or promised + self._per_prompt <= self._at_once):
            prompt = self._waiting.popleft()
            prompt.kv = self._new_kv()
            promised += self._per_prompt
            self._started.append(prompt)

    def _compute(self) -> list[torch.Tensor]:
        """One forward pass: the last token of each answer, and tokens of prompts. Returns the answers' logits."""
        parts = [Part(sequence.kv, sequence.at, sequence.ids[-1:], True) for sequence in self._running]
        room, complete = PREFILL_TOKENS, []
        for prompt in self._started:
            left = len(prompt.ids) - prompt.at
            count = min(left, room) if self._weights.divides else left
            if count <= 0:
                continue
            room -= count
            parts.append(Part(prompt.kv, prompt.at, prompt.ids[prompt.at : prompt.at + count], count == left))
            prompt.at += count
            complete += [prompt] if count == left else []
        if not parts:
            return []
        logits_NV = self._weights.logits(self._adapter, parts)
        for sequence in self._running:
            sequence.at += 1
        for prompt, logits_V in zip(complete, logits_NV[len(self._running) :]):
            prompt.logits_V = logits_V
        return [logits_NV[: len(self._running)]]

    def _start_answers(self) -> list[torch.Tensor]:
        """Starts answers to computed prompts while there is room. Returns the logits of their first tokens."""
        rows = []
        for prompt in self._started:
            while prompt.logits_V is not None and prompt.waiting and len(self._running) < self._at_once:
                number = prompt.waiting.popleft()
                kv = prompt.kv.head(len(prompt.ids)) if prompt.waiting else prompt.kv  # the last one needs no copy
                uniforms = np.random.Generator(
                    np.random.Philox(key=self._draws.key, counter=[0, number, prompt.number, 0])
                )
                self._running.append(_Sequence(prompt, number, kv, len(prompt.ids), uniforms))
                rows.append(prompt.logits_V[None])
        self._started = [prompt for prompt in self._started if prompt.waiting]
        return rows

    def _draw(self, logits_NV: torch.Tensor) -> Iterator[tuple[_Sequence, bool]]:
        """Adds a token to each sequence. Yields those that are complete with it, and frees their memory."""
        if not self._running:
            return
        if self._draws.temperature:
            uniforms_N = np.array([sequence.uniforms.random() for sequence in self._running])
            ids, logprobs = draw(logits_NV, self._draws.temperature, uniforms_N)
        else:
            ids, logprobs = most_likely(logits_NV)
        incomplete = []
        for sequence, token, logprob in zip(self._running, ids, logprobs):
            sequence.ids.append(token)
            sequence.logprobs.append(logprob)
            ended = token in self._draws.stop_ids
            if ended or len(sequence.ids) == sequence.prompt.max_new_tokens:
                sequence.kv.free()
                yield sequence, ended
            else:
                incomplete.append(sequence)
        self._running = incomplete


def most_likely(logits_NV: torch.Tensor) -> tuple[list[int], list[float]]:
    """The most likely token of each row, and its log-probability."""
    logits_NV = logits_NV.float()
    values_N, ids_N = logits_NV.max(-1)
    return ids_N.tolist(), (values_N - logits_NV.logsumexp(-1)).tolist()


def draw(logits_NV: torch.Tensor, temperature: float, uniforms_N: np.ndarray) -> tuple[list[int], list[float]]:
    """Draws a token of each row, and returns their log-probabilities. It is the first token whose cumulative
    probability exceeds the row's uniform number: all rows at once, without sorting."""
    logits_NV = logits_NV.float() / temperature
    sums_NV = logits_NV.softmax(-1).cumsum(-1, dtype=torch.float64)
    sums_N1 = sums_NV[:, -1:]
    drawn_N1 = torch.from_numpy(uniforms_N).to(sums_NV.device)[:, None] * sums_N1
    drawn_N1 = torch.minimum(drawn_N1, torch.nextafter(sums_N1, torch.zeros_like(sums_N1)))
    ids_N1 = torch.searchsorted(sums_NV, drawn_N1, right=True)
    logprobs_N = logits_NV.gather(1, ids_N1)[:, 0] - logits_NV.logsumexp(-1)
    return ids_N1[:, 0].tolist(), logprobs_N.tolist()
