"""What became of a run, in a few plain values and words: for `tunesmith runs` and for the report."""

import hashlib
import math
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.files import read_json
from tunesmith.recipe import read_yaml
from tunesmith.run import Run
from tunesmith.units import decimals, number, percent, signed

# How a run ended. Key: its status; value: what follows "The run", with the place of its step.
ENDINGS = {
    "done": "finished{}",
    "max_minutes": "stopped{}, at its limit of minutes",
    "max_tokens": "stopped{}, at its limit of tokens",
    "early_stopping": "stopped early{}, as held-out loss no longer fell",
    "interrupted": "was interrupted{}",
    "not_finite": "broke off{}, as its loss was no longer a finite number",
    "diverged": "was stopped{}, as its loss had grown far beyond that before training",
    "out_of_memory": "broke off{}, as memory was not enough",
    "error": "broke off{} by an error",
    "running": "is going on{}",
    "cut off": "was cut off{}, without saying why",
    "not started": "has not started",
}
FEW_ROWS = 8  # an interval from fewer says more than is known


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, found: dict) -> "Interval":
        """From eval.json."""
        return cls(*(loss_value(found[name]) for name in cls._fields))

    @property
    def sign(self) -> int:
        """-1 or 1 where the whole interval is below or above 0, else 0."""
        return (self.low > 0) - (self.high < 0)


class Verdict(NamedTuple):
    """What came of a run: a sentence, and whether it is `better`, `worse` or `unclear`."""

    text: str
    tone: str


def loss_value(written: float | None) -> float:
    """A loss as a run's files hold it, in which null stands for a number that is not finite."""
    return math.nan if written is None else written


def summary(run: Run) -> dict:
    """A run in plain values; None for what it does not have (yet)."""
    asked, events = flatten(read_yaml(run.recipe_file)), run.events()
    steps = [e for e in events if e["event"] == "step"]
    start = next((e for e in events if e["event"] == "start"), {})
    before, after = _before_after(run)
    return {
        "name": run.name,
        "status": _status(run, events),
        "error": _last_word(events).get("message"),
        "method": asked.get("method.name"),
        "adapter": asked.get("adapter.kind"),
        "base_model": asked.get("model.path"),
        "steps_done": steps[-1]["step"] if steps else 0,
        "steps": start.get("steps"),
        "loss_before": before.get("loss"),
        "loss_after": after.get("loss"),
        "exact_match_before": before.get("exact_match"),
        "exact_match_after": after.get("exact_match"),
        "seconds": _seconds(events),
        "started": datetime.fromtimestamp(start["time"]).astimezone().isoformat(timespec="seconds") if start else None,
    }


def verdict(run: Run) -> Verdict:
    """What came of a run, in one plain sentence; it claims nothing that the intervals do not carry."""
    evaluation = read_json(run.eval_file)
    if not evaluation:
        return _not_compared(run)
    return verdict_on(evaluation)


def verdict_on(evaluation: dict) -> Verdict:
    """What an evaluation like eval.json says, in one plain sentence."""
    return _compared(*_means(evaluation), evaluation["difference"], evaluation["rows"])


def ending(facts: dict) -> str:
    """How the run of a `summary` ended and where, in one sentence."""
    place = f" at step {facts['steps_done']:,} of {facts['steps']:,}" if facts["steps"] else ""
    return f"The run {ENDINGS[facts['status']].format(place)}."


def incomparable(runs: list[Run]) -> list[str]:
    """Why losses of these runs do not compare, in a sentence each."""
    notes = []
    tokenizers = {_digest(run.tokenizer / "tokenizer.json") for run in runs}
    if len(tokenizers) > 1:
        notes.append(
            "Losses do not compare: the runs have different tokenizers, so a token is not the same amount of "
            "text. Compare exact match, or answers."
        )
    held_out = {(read_json(run.eval_file) or {}).get("held_out") for run in runs} - {None}
    if len(held_out) > 1:
        notes.append(
            "Losses do not compare: the runs were measured on different held-out rows. Give them the same data.eval."
        )
    return notes


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def warnings(run: Run) -> dict[str, int]:
    """Each warning of a run once, and how often it came."""
    counts: dict[str, int] = {}
    for event in run.events("warning"):
        counts[event["message"]] = counts.get(event["message"], 0) + 1
    return counts


def flatten(value: dict, prefix: str = "") -> dict:
    """A nested mapping as one of dotted keys; lists of plain values become text, others are counted from 1."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, list):
            plain = not any(isinstance(item, dict | list) for item in inner)
            inner = ", ".join(map(str, inner)) if plain else dict(enumerate(inner, 1))
        flat |= flatten(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return flat


def _compared(before: dict, after: dict, difference: dict, rows: int) -> Verdict:
    if not math.isfinite(after["loss"]):
        return Verdict("Training broke the model: its held-out loss is no longer a finite number.", "worse")
    text, signs = _loss_text(before["loss"], after["loss"], Interval.of(difference["loss"]))
    if "exact_match" in difference:
        exact, sign = _exact_text(before["exact_match"], after["exact_match"], Interval.of(difference["exact_match"]))
        text, signs = f"{text}; {exact}", signs | sign
    if rows < FEW_ROWS:
        few = f"{rows} held-out rows are" if rows > 1 else "One held-out row is"
        return Verdict(f"{text}. {few} too few to be sure.", "unclear")
    tones = signs - {"unclear"}
    return Verdict(text + ".", tones.pop() if len(tones) == 1 else "unclear")


def _loss_text(before: float, after: float, change: Interval) -> tuple[str, set[str]]:
    digits = decimals(*change)
    interval = (
        f"{signed(change.mean, digits)}, 95 % interval {signed(change.low, digits)} … {signed(change.high, digits)}"
    )
    values = f"from {number(before, digits)} to {number(after, digits)}"
    return {
        -1: (f"Held-out loss fell {values} ({interval})", {"better"}),
        0: (f"Held-out loss did not clearly change: {values} ({interval}, which includes 0)", {"unclear"}),
        1: (f"Held-out loss got worse, {values} ({interval})", {"worse"}),
    }[change.sign]


def _exact_text(before: float, after: float, change: Interval) -> tuple[str, set[str]]:
    values = f"{percent(after)} of held-out answers are exactly right, before {percent(before)}"
    return {
        1: (values, {"better"}),
        0: (f"{values}, no clear change", {"unclear"}),
        -1: (f"only {values}", {"worse"}),
    }[change.sign]


def _not_compared(run: Run) -> Verdict:
    steps, (before, after) = run.events("step"), _before_after(run)
    if not steps:
        return Verdict("Nothing has been trained yet: the run has no step.", "unclear")
    first, last = steps[0], steps[-1]
    if not math.isfinite(loss_value(last["loss"])):
        return Verdict(
            f"Training broke the model: at step {last['step']:,} the loss was no longer a finite number.", "worse"
        )
    if _last_word(run.events()).get("reason") == "diverged":
        kind, old, new = ("held-out", before, after) if before and after else ("training", first, last)
        return Verdict(
            f"Training diverged: {kind} loss went from {number(old['loss'])} to "
            f"{number(new['loss'])} at step {new['step']:,}.",
            "worse",
        )
    if before and after:
        text = (
            f"Held-out loss was {number(before['loss'])} before and {number(after['loss'])} at step "
            f"{after['step']:,}; with no final evaluation, nothing says how sure that is."
        )
    elif len(steps) > 1:
        text = (
            f"Training loss went from {number(first['loss'])} to {number(last['loss'])}; with no evaluation, "
            "nothing says whether the model got better."
        )
    else:
        text = f"Training loss was {number(last['loss'])} at the only step; that says nothing about the model yet."
    return Verdict(text, "unclear")


def _before_after(run: Run) -> tuple[dict, dict]:
    """Means by measure: of the final evaluation or, without one, the evaluation at step 0 and the latest after it."""
    evaluation = read_json(run.eval_file)
    if evaluation:
        return _means(evaluation)
    evals = evaluations(run)
    before = next((e for e in evals if e["step"] == 0), {})
    return before, next((e for e in reversed(evals) if e["step"] > 0), {})


def _means(evaluation: dict) -> tuple[dict, dict]:
    before, after = (
        {name: loss_value(found["mean"]) for name, found in evaluation[side].items()} for side in ("before", "after")
    )
    return before, after


def evaluations(run: Run) -> list[dict]:
    """Those while training; a loss that is not finite is NaN."""
    return [event | {"loss": loss_value(event["loss"])} for event in run.events("eval")]


def _last_word(events: list[dict]) -> dict:
    """The last event that says whether the run goes on."""
    return next((e for e in reversed(events) if e["event"] in ("start", "resume", "stop")), {})


def _status(run: Run, events: list[dict]) -> str:
    if not events:
        return "not started"
    if not run.is_held:
        return _last_word(events).get("reason") or "cut off"
    paused = next((e["event"] for e in reversed(events) if e["event"] in ("pause", "continue", "resume")), None)
    return _last_word(events).get("reason") or ("paused" if paused == "pause" else "running")


def _seconds(events: list[dict]) -> float | None:
    """Wall-clock time in which the run was at work, without pauses and the time before a resume."""
    idle = ("start", "resume", "continue")
    gaps = (later["time"] - e["time"] for e, later in pairwise(events) if later["event"] not in idle)
    return round(sum(gaps), 3) if events else None
