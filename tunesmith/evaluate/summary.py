"""Summarises a run in a few values and sentences, for `tunesmith runs` and the report."""

import hashlib
import math
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith import recipe_text
from tunesmith.evaluate.energy import energy_of
from tunesmith.files import read_bytes, read_json
from tunesmith.run import Run
from tunesmith.units import decimals, number, percent, signed

# {status: how the run ended}: the text after "The run", with the step in place of {}.
ENDINGS = {
    "done": "finished{}",
    "max_minutes": "stopped{}, at its limit of minutes",
    "max_tokens": "stopped{}, at its limit of tokens",
    "early_stopping": "stopped early{}, because held-out loss no longer fell",
    "interrupted": "was interrupted{}",
    "not_finite": "failed{}, because its loss was no longer a finite number",
    "diverged": "was stopped{}, because its loss had grown far above the loss before training",
    "out_of_memory": "failed{}, because it ran out of memory",
    "error": "failed{} with an error",
    "no_room": "waits{} until more memory is free",
    "running": "is still running{}",
    "paused": "is paused{}",
    "finishing": "has trained{}, and its result is being measured and saved",
    "cut off": "was cut off{}, for an unknown reason",
    "not started": "has not started",
}
FEW_ROWS = 8  # with fewer rows, an interval is not reliable


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, measured: dict) -> "Interval":
        """Reads an interval from eval.json."""
        return cls(*(loss_value(measured[name]) for name in cls._fields))

    @property
    def sign(self) -> int:
        """-1 if the whole interval is below 0, 1 if it is above 0, else 0."""
        return (self.low > 0) - (self.high < 0)


class Verdict(NamedTuple):
    """The result of a run: a sentence, and whether the model is `better`, `worse` or `unclear`."""

    text: str
    tone: str


def loss_value(written: float | None) -> float:
    """Returns a loss from a run's files, where null means a number that is not finite."""
    return math.nan if written is None else written


def summary(run: Run) -> dict:
    """Returns a run's key values; None for values that it does not have (yet)."""
    recipe, events = flatten(recipe_text.read(run.recipe_file)), run.events()
    steps = [e for e in events if e["event"] == "step"]
    start = next((e for e in events if e["event"] == "start"), {})
    before, after = _before_after(run)
    energy = energy_of(run, events)
    return {
        "name": run.name,
        "status": _status(run, events),
        "error": _last_change(events).get("message"),
        "method": recipe.get("method.name"),
        "adapter": recipe.get("adapter.kind"),
        "base_model": recipe.get("model.path"),
        "steps_done": steps[-1]["step"] if steps else 0,
        "steps": start.get("steps"),
        "loss_before": before.get("loss"),
        "loss_after": after.get("loss"),
        "exact_match_before": before.get("exact_match"),
        "exact_match_after": after.get("exact_match"),
        "seconds": _seconds(events),
        "joules": energy and energy.joules,
        "joules_per_token": energy and energy.joules_per_token,
        "kwh": energy and energy.kwh,
        "price": energy and energy.price,
        "started": datetime.fromtimestamp(start["time"]).astimezone().isoformat(timespec="seconds") if start else None,
    }


def verdict(run: Run) -> Verdict:
    """Returns the result of a run in one sentence that claims no more than the intervals show."""
    evaluation = read_json(run.eval_file)
    if not evaluation:
        return _not_compared(run)
    return verdict_on(evaluation)


def verdict_on(evaluation: dict) -> Verdict:
    """Returns the result of an evaluation, in the form of eval.json, in one sentence."""
    return _compared(*_means(evaluation), evaluation["difference"], evaluation["rows"])


def ending(facts: dict) -> str:
    """Returns how, and at which step, the run of a `summary` ended, in one sentence."""
    place = f" at step {facts['steps_done']:,} of {facts['steps']:,}" if facts["steps"] else ""
    return f"The run {ENDINGS[facts['status']].format(place)}."


def incomparable(runs: list[Run]) -> list[str]:
    """Returns the reasons why the losses of these runs cannot be compared, one sentence each."""
    notes = []
    tokenizers = {_digest(run.tokenizer / "tokenizer.json") for run in runs}
    if len(tokenizers) > 1:
        notes.append(
            "Losses are not comparable: the runs have different tokenizers, so a token is not the same amount of "
            "text. Compare exact match or answers."
        )
    held_out = {(read_json(run.eval_file) or {}).get("held_out") for run in runs} - {None}
    if len(held_out) > 1:
        notes.append(
            "Losses are not comparable: the runs were measured on different held-out rows. Use the same data.eval."
        )
    return notes


def _digest(file: Path) -> str | None:
    return hashlib.sha256(read_bytes(file)).hexdigest() if file.exists() else None


def warnings(run: Run) -> dict[str, int]:
    """Returns {warning: times} of a run."""
    counts: dict[str, int] = {}
    for event in run.events("warning"):
        counts[event["message"]] = counts.get(event["message"], 0) + 1
    return counts


def flatten(value: dict, prefix: str = "") -> dict:
    """Flattens a nested mapping to dotted keys. Lists of plain values become text; other lists are numbered from 1."""
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
    if _last_change(run.events()).get("reason") == "diverged":
        which, old, new = ("held-out", before, after) if before and after else ("training", first, last)
        return Verdict(
            f"Training diverged: {which} loss went from {number(old['loss'])} to "
            f"{number(new['loss'])} at step {new['step']:,}.",
            "worse",
        )
    if before and after:
        text = (
            f"Held-out loss was {number(before['loss'])} before and {number(after['loss'])} at step "
            f"{after['step']:,}; without a final evaluation, the uncertainty is unknown."
        )
    elif len(steps) > 1:
        text = (
            f"Training loss went from {number(first['loss'])} to {number(last['loss'])}; without an evaluation, "
            "it is unknown whether the model improved."
        )
    else:
        text = f"Training loss was {number(last['loss'])} at the only step, which shows no trend."
    return Verdict(text, "unclear")


def _before_after(run: Run) -> tuple[dict, dict]:
    """Returns the means by measure, before and after training: from the final evaluation or, without one, from the
    evaluations at step 0 and at the latest step."""
    evaluation = read_json(run.eval_file)
    if evaluation:
        return _means(evaluation)
    evals = evaluations(run)
    before = next((e for e in evals if e["step"] == 0), {})
    return before, next((e for e in reversed(evals) if e["step"] > 0), {})


def _means(evaluation: dict) -> tuple[dict, dict]:
    before, after = (
        {name: loss_value(measured["mean"]) for name, measured in evaluation[side].items()}
        for side in ("before", "after")
    )
    return before, after


def evaluations(run: Run) -> list[dict]:
    """Returns the evaluations during training. A loss that is not finite is NaN."""
    return [event | {"loss": loss_value(event["loss"])} for event in run.events("eval")]


def _last_change(events: list[dict]) -> dict:
    """Returns the last event that started, resumed or stopped the run."""
    return next((e for e in reversed(events) if e["event"] in ("start", "resume", "stop")), {})


def _status(run: Run, events: list[dict]) -> str:
    if not events:
        return "not started"
    if reason := _last_change(events).get("reason"):
        return reason
    if not run.is_held:
        return "cut off"
    last = next((e["event"] for e in reversed(events) if e["event"] in ("pause", "continue", "resume")), None)
    return "paused" if last == "pause" else "running"


def _seconds(events: list[dict]) -> float | None:
    """Returns the seconds in which the run was active, without pauses and the time before a resume."""
    idle = ("start", "gpu_check", "resume", "continue")  # gpu_check comes before a resume
    events = [e for e in events if e["event"] != "energy"]  # the last one comes after the stop
    gaps = (later["time"] - e["time"] for e, later in pairwise(events) if later["event"] not in idle)
    return round(sum(gaps), 3) if events else None
