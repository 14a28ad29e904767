"""The parity gate: what an exported model does, beside what the trained model does.

Both are asked the same (probes.py): token ids must be identical, logits within the bound of the format, generation
must stop where it should, and the run's own measure is taken again. T tokens of a row, V tokens of the vocabulary.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tunesmith.export.parity.probes import POSITIONS, Probes
from tunesmith.export.parity.subject import Engine


class Bound(NamedTuple):
    """The most that rounding of weights may change: mean KL divergence in nats, and the share of equal top tokens."""

    kl: float
    top1: float


# KL grows with the square of the weights' relative error: 2^-9 of bfloat16, 2^-12 of float16, about 0.4 % at 8 bits
# and twice that for each bit less. int4 has one scale for 128 weights, where q4_k_m has scale and least for 32: of
# normally distributed ones, 128 span 1.27 times what 32 do, so the squared error is 1.6 times as much. llama.cpp rounds
# the inputs of a product as it rounds the weights, in bfloat16 too. SmolLM2-135M, trained in float32, is 6.3e-3 nats
# from itself with its weights in bfloat16 and 6.8e-3 with its activations too, so bfloat16 has the bound of 8 bits.
BOUNDS = {
    "f32": Bound(1e-6, 0.99),
    "f16": Bound(1e-3, 0.97),
    "bf16": Bound(1e-2, 0.95),
    "fp8": Bound(5e-2, 0.85),
    "q8_0": Bound(1e-2, 0.95),
    "q6_k": Bound(2e-2, 0.92),
    "q5_k_m": Bound(5e-2, 0.88),
    "q4_k_m": Bound(0.15, 0.8),
    "int4": Bound(0.25, 0.75),
    "q3_k_m": Bound(0.5, 0.7),
    "q2_k": Bound(1.5, 0.5),
}
TIE = 0.05  # nats within which two tokens are equally likely
MISSED_SHARE = 0.1  # of the answers that the trained model ended, that rounding may leave without an end
CHANCE = 0.01  # below which more missed ends are no chance


@dataclass
class Observation:
    """An engine's results for the probes. `texts` and `log_probs` are empty for an engine without log-probabilities."""

    texts: list[list[int]]
    conversations: list[list[int] | None]
    log_probs: list[np.ndarray]  # (T - 1, V) for each row, as long as POSITIONS lasts
    loss: float | None  # nats a supervised token
    answers: list[str]
    stopped: list[bool]
    stop_ids: set[int]
    exact_match: float | None
    expresses_all: bool
    excused: list[bool]  # for each text


def observe(engine: Engine, probes: Probes, decode, progress=lambda done, of: None) -> Observation:
    """Asks an engine everything. `decode(ids)` gives an answer's text."""
    conversations = [engine.conversation(messages, tools) for _, messages, tools in probes.conversations]
    log_probs, nats, count, left = [], 0.0, 0, POSITIONS
    texts, rows = (probes.texts, probes.rows) if engine.tells_likelihoods else ([], [])
    steps = len(rows) + len(probes.prompts)
    for number, (ids, supervised) in enumerate(rows):
        row = engine.log_probs([int(i) for i in ids])
        learned = np.flatnonzero(supervised[1:])
        nats -= float(row[learned, ids[1:][learned]].sum(dtype=np.float64))
        count += len(learned)
        log_probs += [row[:left].copy()] if left else []
        left -= min(left, len(row))
        progress(number + 1, steps)
    generated = engine.generate(probes.prompts, probes.max_new_tokens, lambda done: progress(len(rows) + done, steps))
    answers = [decode(answer.ids) for answer in generated]
    right = [a == r for a, r in zip(answers, probes.references)]
    return Observation(
        [engine.encode(text) for text in texts],
        conversations,
        log_probs,
        nats / max(count, 1) if rows else None,
        answers,
        [answer.stopped for answer in generated],
        set(engine.stop_ids),
        float(np.mean(right)) if probes.exact_match else None,
        engine.expresses_all,
        [engine.excuses(text) for text in texts],
    )


def compare(trained: Observation, exported: Observation, probes: Probes, precision: str) -> dict:
    """parity.json: `passed`, `problem` (the first difference, or None), `from_rounding` (whether finer weights may mend
    it) and what was measured; `logits` None if the exported model's engine tells no likelihoods."""
    found = {
        "precision": precision,
        "rows": len(probes.rows),
        "rows_from": probes.source,
        "tokens": {
            "texts": len(exported.texts),
            "conversations": sum(ids is not None for ids in exported.conversations),
            "not_expressed": _not_expressed(trained, exported, probes),
            "excused": _excused(trained, exported, probes),
        },
        "logits": distance(trained.log_probs, exported.log_probs) if exported.log_probs else None,
        "bound": BOUNDS[precision]._asdict(),
        "answers": _endings(trained, exported) | {"bound": 1 - MISSED_SHARE},
        "measure": measures(trained, exported),
    }
    other_ids = _first_other_ids(trained, exported, probes, found)
    problem = other_ids or _first_other_answer(found)
    return {"passed": problem is None, "problem": problem, "from_rounding": bool(problem and not other_ids)} | found


def _first_other_ids(trained: Observation, exported: Observation, probes: Probes, found: dict) -> str | None:
    for text, ours, theirs in zip(probes.texts, trained.texts, exported.texts):
        if ours != theirs and text not in found["tokens"]["excused"]:
            return f"text {text[:40]!r}: {_where(ours, theirs)}"
    for (name, *_), ours, theirs in zip(probes.conversations, trained.conversations, exported.conversations):
        if ours != theirs and name not in found["tokens"]["not_expressed"]:
            refused = f"the {'exported' if theirs is None else 'trained'} model's template refuses it"
            return f"conversation “{name}”: {refused if None in (ours, theirs) else _where(ours, theirs)}"
    missing = trained.stop_ids - exported.stop_ids
    if missing:
        return f"generation does not stop at token {min(missing)}, which ends answers of the trained model"
    return None


def _first_other_answer(found: dict) -> str | None:
    logits, bound = found["logits"], found["bound"]
    if logits and not logits["mean_kl"] <= bound["kl"]:
        return f"logits: mean KL {logits['mean_kl']:.2e} nats, bound {bound['kl']:g}"
    if logits and logits["top1_agreement"] < bound["top1"]:
        return f"logits: the top token is the same at {logits['top1_agreement']:.1%}, bound {bound['top1']:.0%}"
    ends = found["answers"]
    if chance(ends["stopped_trained"] - ends["stopped_of_them"], ends["stopped_trained"]) < CHANCE:
        return f"of {ends['stopped_trained']} answers that the trained model ended, {ends['stopped_of_them']} ended"
    return None


def chance(missed: int, of: int) -> float:
    """How likely at least as many of so many answers miss their end where each does with MISSED_SHARE: of a few answers
    of a model that is hardly sure, one or two do."""
    return sum(math.comb(of, k) * MISSED_SHARE**k * (1 - MISSED_SHARE) ** (of - k) for k in range(missed, of + 1))


def _not_expressed(trained: Observation, exported: Observation, probes: Probes) -> list[str]:
    """Conversations that the export's own kind of template cannot write, and says so."""
    pairs = zip(probes.conversations, trained.conversations, exported.conversations)
    return [
        name for (name, *_), ours, theirs in pairs if ours is not None and theirs is None and not exported.expresses_all
    ]


def _excused(trained: Observation, exported: Observation, probes: Probes) -> list[str]:
    """Texts that get other ids, as the engine is known to do with such text."""
    each = zip(probes.texts, trained.texts, exported.texts, exported.excused)
    return [text for text, ours, theirs, excused in each if excused and ours != theirs]


def _where(ours: list[int], theirs: list[int]) -> str:
    at = next((n for n, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), min(len(ours), len(theirs)))
    one, other = (ids[at] if at < len(ids) else "none" for ids in (ours, theirs))
    return f"token {at} is {one} in training, {other} here"


def distance(trained: list[np.ndarray], exported: list[np.ndarray]) -> dict:
    """Compares log-probabilities: mean KL(trained, exported) in nats, share of equal top tokens (ties of the trained
    model count as equal), and the largest drift of one over the spread of the trained ones at a position.

    Tokens without a reported log-probability count as one token, which makes KL a lower bound."""
    kl, same, drift, count = 0.0, 0, 0.0, 0
    for ours, theirs in zip(trained, exported):
        width = min(ours.shape[1], theirs.shape[1])  # rows without a token may be missing
        p, q = _of_first(ours, width), _of_first(theirs, width)
        told = q > -np.inf
        told |= np.isnan(q)  # which then is what comes out
        kl += float((np.exp(p) * (p - q))[told].sum()) + _of_the_rest(p, q, told)
        same += int((p[np.arange(len(p)), q.argmax(1)] >= p.max(1) - TIE).sum())
        drift = max(drift, float(np.abs(p - q)[told].max() / p.std(1).mean()))
        count += len(p)
    return {"positions": count, "mean_kl": max(kl, 0.0) / count, "top1_agreement": same / count, "largest_drift": drift}


def _of_first(log_TW: np.ndarray, width: int) -> np.ndarray:
    """Returns the log-probabilities if only the first tokens are possible; float64."""
    log_TV = log_TW[:, :width].astype(np.float64)
    return log_TV - np.logaddexp.reduce(log_TV, 1, keepdims=True) if width < log_TW.shape[1] else log_TV


def _of_the_rest(p: np.ndarray, q: np.ndarray, told: np.ndarray) -> float:
    """Summed part in KL of all tokens together that are not told."""
    some = ~told.all(1)
    p, q = (np.clip(1 - (np.exp(log) * told).sum(1)[some], 1e-12, 1) for log in (p, q))
    return float((p * np.log(p / q)).sum())


def measures(trained: Observation, exported: Observation) -> dict:
    """The run's own measure of both."""
    return {
        name: {"trained": getattr(trained, name), "exported": getattr(exported, name)}
        for name in ("loss", "exact_match")
        if getattr(trained, name) is not None
    }


def _endings(trained: Observation, exported: Observation) -> dict:
    both = [a and b for a, b in zip(trained.stopped, exported.stopped)]
    same = [a == b for a, b in zip(trained.answers, exported.answers)]
    return {
        "asked": len(same),
        "identical": sum(same),
        "stopped_trained": sum(trained.stopped),
        "stopped_of_them": sum(both),
    }
