"""Writes report.html: one self-contained page with the results of a run."""

import math
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tunesmith.data.records import describe
from tunesmith.data.rows import REASONS
from tunesmith.evaluate.charts import Point, Series, line_chart, thin
from tunesmith.evaluate.energy import energy_of
from tunesmith.evaluate.plan_picture import lane_bars, memory_bars
from tunesmith.evaluate.summary import Interval, ending, evaluations, flatten, summary, verdict, warnings
from tunesmith.files import read_json, read_text, write_atomic
from tunesmith.run import Run, settled_speed
from tunesmith.units import JOULES_PER_KWH, NO_VALUE, count, decimals, duration, energy, number, percent, signed, size

TEMPLATE = "report.html"


def write_report(run: Run) -> Path:
    """Writes the run's report.html from those of its files that exist, and returns its path."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_atomic(run.report_file, templates.get_template(TEMPLATE).render(_page(run)))
    return run.report_file


def _page(run: Run) -> dict:
    """Returns the template's variables. Parts that the run does not have are empty."""
    facts, steps, evals = summary(run), run.events("step"), evaluations(run)
    evaluation, plan = read_json(run.eval_file), read_json(run.plan_file) or {}
    predicted = plan.get("predicted") or {}
    return {
        "facts": facts,
        "started": _moment(facts["started"]),
        "verdict": verdict(run),
        "ending": ending(facts),
        "figures": _figures(run, facts, steps),
        "charts": _charts(steps, evals),
        "small_charts": _small_charts(steps),
        "chart_notes": _chart_notes(steps, evals),
        "comparison": _comparison(evaluation) if evaluation else [],
        "rows": evaluation["rows"] if evaluation else 0,
        "samples": [{key: _seen(text) for key, text in s.items()} for s in _samples(run, evaluation)],
        "ledger": _ledger(plan.get("ledger")),
        "warnings": warnings(run),
        "recipe": read_text(run.recipe_file),
        "plan": _facts({key: value for key, value in plan.items() if key not in ("ledger", "predicted")}),
        "memory_bars": memory_bars(predicted, max((step["memory_bytes"] for step in steps), default=None)),
        "lane_bars": lane_bars(predicted),
        "speed_note": _speed_note(predicted, steps),
        "provenance": _facts(
            {key: value for key, value in (read_json(run.provenance_file) or {}).items() if key != "recipe"}
        ),
    }


def _speed_note(predicted: dict, steps: list[dict]) -> str:
    """Compares the speed with the plan's."""
    planned, measured = predicted.get("tokens_per_second"), settled_speed(steps)
    if not planned:
        return ""
    if not measured:
        return f"Predicted: {planned:,.0f} tokens/s."
    share = percent(measured / planned)
    return f"Predicted: {planned:,.0f} tokens/s. Measured: {measured:,.0f} tokens/s, {share} of it."


def _moment(iso: str | None) -> str:
    return f"{datetime.fromisoformat(iso):%-d %B %Y, %H:%M}" if iso else ""


def _figures(run: Run, facts: dict, steps: list[dict]) -> list[tuple[str, str, str]]:
    """Returns (label, value, note) of each key figure."""
    figures = []
    if facts["loss_after"] is not None:
        figures.append(("Held-out loss", number(facts["loss_after"]), f"before {number(facts['loss_before'])}"))
    if facts["exact_match_after"] is not None:
        figures.append(
            ("Exactly right", percent(facts["exact_match_after"]), f"before {percent(facts['exact_match_before'])}")
        )
    if facts["steps"]:
        figures.append(("Steps", f"{facts['steps_done']:,}", f"of {facts['steps']:,}"))
    if facts["seconds"]:
        figures.append(("Time", duration(facts["seconds"]), "evaluation included"))
    if steps:
        tokens, learned = sum(e["tokens"] for e in steps), sum(e["supervised_tokens"] for e in steps)
        figures.append(("Tokens", count(tokens), f"{count(learned)} learned from"))
        seconds = sum(e["seconds"] for e in steps)
        figures.append(("Tokens per second", number(tokens / seconds, 0), "mean over the steps"))
        figures.append(("Peak memory", size(max(e["memory_bytes"] or 0 for e in steps)), "while training"))
    figures += _energy(run)
    return figures + [
        ("Trained", count(start["trainable_parameters"]), f"of {count(start['parameters'])} parameters")
        for start in run.events("start")[-1:]
    ]


def _energy(run: Run) -> list[tuple[str, str, str]]:
    """Returns the figures of what the run took."""
    taken = energy_of(run, run.events())
    if not taken:
        return []
    if taken.kwh is None:
        return [("Energy", "unknown", taken.unknown)]
    note = f"{taken.of_devices}, {taken.power.host_watts:g} W of the host"
    figures = [("Energy", energy(taken.kwh * JOULES_PER_KWH), "; ".join(filter(None, (note, taken.planned))))]
    if taken.joules_per_token is not None:
        figures.append(("Energy per token", f"{number(taken.joules_per_token)} J", "of the devices, in training steps"))
    if taken.price is not None:
        figures.append(("Cost", f"{taken.price:.2f}", f"at {taken.power.price_per_kwh:g} a kWh"))
    return figures


def _charts(steps: list[dict], evals: list[dict]) -> list[Markup]:
    if not steps and not evals:
        return []
    series = [
        Series("Training", thin(_points(steps, "loss"))[0], "training"),
        Series("Held-out", _points(evals, "loss"), "heldout"),
    ]
    return [line_chart("Loss per token, in nats", [s for s in series if s.points], number, 260, from_zero=False)]


def _small_charts(steps: list[dict]) -> list[Markup]:
    charts = (
        ("Learning rate", "learning_rate", "{:.2g}".format),
        ("Tokens per second", "tokens_per_second", "{:,.0f}".format),
        ("Peak memory", "memory_bytes", size),
        ("Watts", "watts", "{:,.0f}".format),
    )
    steps = [step | {"watts": step["joules"] / step["seconds"]} if step.get("joules") else step for step in steps]
    return [
        line_chart(title, [Series(title, thin(_points(steps, key))[0], "plain")], show, 110)
        for title, key, show in charts
        if _points(steps, key)
    ]


def _chart_notes(steps: list[dict], evals: list[dict]) -> list[str]:
    notes = []
    if len(steps) == 1:
        notes.append("There is a single step, so there is no curve yet.")
    _, size = thin(_points(steps, "loss"))
    if size > 1:
        notes.append(f"Each point of the training curve is the mean of {size} steps.")
    measured = [e for e in evals if math.isfinite(e["loss"])]
    if not measured:
        notes.append("Held-out loss was not measured while training.")
    elif len(measured) > 2:
        best, last = min(measured, key=lambda e: e["loss"]), measured[-1]
        later = f", and {number(last['loss'])} at step {last['step']:,}" if last is not best else ""
        notes.append(f"Held-out loss was lowest, {number(best['loss'])}, at step {best['step']:,}{later}.")
    return notes


def _points(events: list[dict], key: str) -> list[Point]:
    return [(e["step"], e[key]) for e in events if e.get(key) is not None]


def _comparison(evaluation: dict) -> list[tuple]:
    """Returns the rows of the table: measure, then (value, interval) before, after, and of the difference."""
    before, after, difference = evaluation["before"], evaluation["after"], evaluation["difference"]
    digits = decimals(*Interval.of(difference["loss"]))
    rows = [
        (
            "Loss, nats per token",
            _cell(before["loss"], digits),
            _cell(after["loss"], digits),
            _cell(difference["loss"], digits, signed),
        ),
        ("Perplexity", _cell(before["perplexity"], 2), _cell(after["perplexity"], 2), ("", "")),
    ]
    if "exact_match" in difference:
        before, after, difference = (_percents(side["exact_match"]) for side in (before, after, difference))
        rows.append(("Exactly right, %", _cell(before, 1), _cell(after, 1), _cell(difference, 1, signed)))
    return rows


def _cell(measured: dict, digits: int, show: Callable[..., str] = number) -> tuple[str, str]:
    mean, low, high = (show(value, digits) for value in Interval.of(measured))
    return mean, f"{low} … {high}"


def _percents(share: dict) -> dict:
    return {name: 100 * value for name, value in share.items()}


def _samples(run: Run, evaluation: dict | None) -> list[dict]:
    """Returns the samples of the final evaluation or, without one, the first and the latest answer to each prompt."""
    if evaluation:
        return evaluation["samples"]
    rounds = [event["samples"] for event in run.events("samples")]
    if not rounds:
        return []
    first = {sample["prompt"]: sample["answer"] for sample in rounds[0]} if len(rounds) > 1 else {}
    return [
        {
            "prompt": s["prompt"],
            "reference": s["reference"],
            "before": first.get(s["prompt"], NO_VALUE),
            "after": s["answer"],
        }
        for s in rounds[-1]
    ]


def _seen(text: str) -> str:
    """Replaces runs of empty lines, which an untrained model may write, by a note."""
    return re.sub(r"\n{4,}", lambda match: f"\n[{len(match[0])} line breaks]\n", text)


def _ledger(ledger: dict | None) -> dict | None:
    """Returns the ledger's counts, and for each reason the action and the number of rows."""
    if not ledger:
        return None
    happened = [
        (verb, REASONS.get(reason, reason), count)
        for verb in ("dropped", "shortened", "changed")
        for reason, count in sorted(ledger.get(verb, {}).items(), key=lambda item: -item[1])
    ]
    return {
        "read": ledger["read"],
        "kept": ledger["kept"],
        "dropped": sum(ledger.get("dropped", {}).values()),
        "share": 100 * ledger["kept"] / max(1, ledger["read"]),
        "happened": happened,
        "unread": describe(ledger.get("unread", {}), most=100),
    }


def _facts(values: dict) -> list[tuple[str, str]]:
    return [(key, _fact(key, value)) for key, value in flatten(values).items()]


def _fact(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and key.endswith("_bytes"):
        return size(value)
    return NO_VALUE if value is None or value == "" else f"{value:,}" if isinstance(value, int) else str(value)
