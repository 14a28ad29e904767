"""Shows a prediction: memory by part with each limit, the time of a step, and other plans."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from tunesmith.cli.terminal import COLOURS
from tunesmith.planner.beside_steps import ANSWERING, EVALUATING
from tunesmith.planner.disk import TOKEN_BYTES
from tunesmith.recipe import Power
from tunesmith.units import count, duration, number, percent, size

WHEN = {
    "before the layers": "in the embedding",
    "forward of layer": "in the forward pass of a layer",
    "loss": "in the output layer and the loss",
    "backward of the loss": "in the backward pass of the loss or the last layer",
    "backward of layer": "in the backward pass of a layer",
    "backward before the layers": "in the backward pass of the embedding",
    "update": "in the optimizer step",
    EVALUATING: "while held-out rows are evaluated",
    ANSWERING: "while held-out prompts are answered",
    "": "by the sizes of weights",
}
BOUND = {
    "compute": "computing",
    "launches": "launching kernels",
    "link": "copies from and to host memory",
    "host memory": "reading host memory",
}
LEAST_SHARE = 0.01  # of a run's time; parts with less are not shown
MANY_BYTES = 10**9  # of the encoded data; fewer are not shown
BAR = 40  # characters of a GPU's memory
RESTS = "░"  # free memory
LABEL, WIDTH = 8, 80  # columns of a line's label, and of a line


def memory_lines(found: Mapping[str, Any]) -> list[Text]:
    """A bar of each device's memory by part, and a legend with the bytes of the tightest."""
    if found["needs"] is None:
        return [Text(f"memory  not predicted: {found['not_predicted']}")]
    groups: dict[str, list[Mapping]] = {}
    for need in found["needs"]:
        groups.setdefault(f"{need['place']['name']} {need['needed_bytes']}", []).append(need)
    colours = dict(zip(_parts(found["needs"]), COLOURS))
    lines = []
    for alike in groups.values():
        need, free = alike[0], alike[0]["place"]["free_bytes"]
        name = f"{len(alike)} × {need['place']['name']}" if len(alike) > 1 else need["place"]["name"]
        verdict = "" if need["fits"] else "  does not fit"
        lines.append(
            Text.assemble(
                (f"{'memory' * (not lines):<8}{name}, {size(need['needed_bytes'])} of {size(free)} free"),
                (verdict, "bold red"),
            )
        )
        lines.append(Text("        ") + _bar(need["parts"], free, colours))
    if found["host_bytes"]:
        lines.append(Text(f"        host memory for layers: {size(found['host_bytes'])}"))
    tightest = max(found["needs"], key=lambda need: need["needed_bytes"] / max(1, need["place"]["free_bytes"]))
    if len(groups) > 1:
        lines.append(Text(f"        on the {tightest['place']['name']}:"))
    for part, nbytes in tightest["parts"].items():
        if nbytes:
            share = percent(nbytes / tightest["needed_bytes"])
            lines.append(Text.assemble("        ", ("█ ", colours[part]), f"{size(nbytes):>9}  {share:>6}  {part}"))
    lines.append(Text(f"        the most is needed {WHEN[tightest['stage']]}; a tenth is left alone"))
    return lines


def _parts(needs: Sequence[Mapping]) -> list[str]:
    return [*dict.fromkeys(part for need in needs for part in need["parts"])]


def _bar(parts: Mapping[str, int], free_bytes: int, colours: Mapping[str, str]) -> Text:
    """Memory by part, drawn to the scale of what is free; more than that is drawn behind the limit."""
    whole = max(free_bytes, sum(parts.values()))
    bar, drawn, total = Text(), 0, 0
    for part, nbytes in parts.items():
        total += nbytes
        cells = round(total / whole * BAR) - drawn
        bar.append("█" * cells, colours[part])
        drawn += cells
    bar.append(RESTS * (BAR - drawn), "dim")
    limit = round(free_bytes / whole * BAR)
    return bar[:limit] + Text("│", "bold") + bar[limit:]


def time_lines(found: Mapping[str, Any], power: Power) -> list[Text]:
    """Tokens per second; the time, energy and price of the whole run."""
    speed, training, cost = found["speed"], found["training"], found["cost"]
    if found["needs"] is None:
        return []
    if not speed:
        return [Text("time    not predicted: `tunesmith doctor --measure` measures how fast this machine is")]
    step = f"{duration(speed['step_seconds'])} a step of {speed['tokens']:,.0f} tokens"
    lines = [f"{speed['tokens_per_second']:,.0f} tokens/s, {step}, most of it {BOUND[speed['bound']]}"]
    if len(speed["lanes"]) > 1:
        lines.append(f"of the tokens {', '.join(percent(lane['tokens'] / speed['tokens']) for lane in speed['lanes'])}")
    if cost:
        about = "about " * training["is_estimate"]
        amount = f"{about}{training['steps']:,} steps, {count(training['tokens'])} tokens"
        lines.append(f"{amount}: {_time(cost['parts'])}")
        lines += _unknown(found)
        if cost["kwh"] is not None:
            at = f", {cost['price']:.2f} at {power.price_per_kwh:g} a kWh" if cost["price"] is not None else ""
            lines.append(f"{number(cost['kwh'], 2)} kWh at full power, {power.host_watts:g} W of the host among it{at}")
    else:
        lines.append(f"hours unknown: {found['no_training']}")
    if found["rates_from"] == "estimated":
        lines.append("estimated from published rates; better after `tunesmith doctor --measure`")
    return [Text(f"{'time' * (not index):<8}{line}") for index, line in enumerate(lines)]


def _time(parts: Mapping[str, float]) -> str:
    """The time of a run, and of its parts beside training that take some of it."""
    whole = sum(parts.values())
    beside = {part: seconds for part, seconds in parts.items() if part != "training" and seconds >= LEAST_SHARE * whole}
    named = [
        f"{duration(seconds)}{' of it' * (not index)} {part}" for index, (part, seconds) in enumerate(beside.items())
    ]
    return ", ".join([duration(whole), *named])


def _unknown(found: Mapping[str, Any]) -> list[str]:
    """The parts of a run whose time is not known, and why."""
    if found["not_beside"]:
        return [f"without evaluation, answers and checkpoints: {found['not_beside']}"]
    return [f"without evaluation and answers: {why}"] if (why := found["training"]["no_held_out"]) else []


def disk_lines(disk: Mapping[str, Any] | None, data_tokens: float = 0) -> list[Text]:
    """The bytes on disk that a run leaves, and the most that it takes, beside what is free. `data_tokens`: those that
    are encoded before training."""
    if not disk:
        return []
    count, most = disk["checkpoints"], ""
    if disk["needed_bytes"] > disk["left_bytes"]:
        most = f", {size(disk['needed_bytes'])} at most"
    free = "" if disk["free_bytes"] is None else f", {size(disk['free_bytes'])} free"
    verdict = "  does not fit" if disk["fits"] is False else ""
    whole = f"{size(disk['left_bytes'])} for {count} checkpoint{'s' * (count > 1)} and the result{most}{free}"
    lines = [Text.assemble(f"{'disk':<{LABEL}}{whole}", (verdict, "bold red"))]
    if (encoded := data_tokens * TOKEN_BYTES) >= MANY_BYTES:
        lines.append(_line(f"{size(encoded)} for the encoded data in the cache, unless it is there"))
    return lines


def other_lines(found: Mapping[str, Any]) -> list[Text]:
    """Slower plans, and changes of a recipe that does not fit."""
    lines = []
    for title, others in (("instead", found["alternatives"]), ("fits", found["remedies"])):
        for index, other in enumerate(others):
            facts = [f"{other['tokens_per_second']:,.0f} tokens/s"] if other["tokens_per_second"] else []
            facts += [size(other["needed_bytes"])] if other["needed_bytes"] else []
            facts += [other["quality"]] if other["quality"] else []
            lines.append(Text(f"{title * (not index):<8}with {other['change']}: {', '.join(facts)}"))
    return lines


def most_lines(found: Mapping[str, Any]) -> list[Text]:
    """The longest examples, the largest rank and the fewest GPUs that fit."""
    if found["not_predicted"]:
        return [Text(f"most    not predicted: {found['not_predicted']}")]
    if found["refusal"]:
        return [Text("most    nothing fits, not even the shortest examples", style="bold red"), _line(found["refusal"])]
    longest, rank, length = found["sequence_length"], found["rank"], found["rank_length"]
    lines = [Text("most    that fits, one example in a pass and all activations recomputed")]
    lines += _largest("length", "{:,} tokens", longest)
    if found["positions"] and found["positions"] == (longest["streaming"] or longest["resident"])["value"]:
        lines.append(_line("the model has no more positions"))
    at = f" at {length:,} tokens"
    if rank:
        lines += _largest("rank", "{}" + at, rank) or [_line(f"none fits{at}", "rank")]
    sets = [" + ".join(names) for names in found["gpus"]]
    if sets:
        count = len(found["gpus"][0])
        lines.append(_line(f"{count}{at}: {', or '.join(sets)}", "GPUs"))
    return lines


def _largest(label: str, unit: str, found: Mapping[str, Any]) -> list[Text]:
    """The largest value with all layers on the GPU, and a larger one with layers in host memory."""
    lines = []
    for fit in filter(None, (found["resident"], found["streaming"])):
        text = unit.format(fit["value"])
        if fit["kept_layers"] is not None:
            kept = ", ".join(map(str, fit["kept_layers"]))
            text += f" with layers in host memory, {kept} kept on the GPU"
        text += f": {size(fit['needed_bytes'])} of {size(fit['free_bytes'])}"
        if fit["tokens_per_second"]:
            text += f", {fit['tokens_per_second']:,.0f} tokens/s"
        lines.append(_line(text, label * (not lines)))
    return lines


def _line(text: str, label: str = "") -> Text:
    return Text(f"{label:<{LABEL}}{text}")


def indented(line: Text, console: Console) -> list[Text]:
    """The line in pieces that fit on the screen, all behind the column of labels."""
    width = min(WIDTH, console.width)
    pieces = line[LABEL:].wrap(console, max(LABEL, width - LABEL))
    for piece in pieces:
        piece.rstrip()
    return [(Text(" " * LABEL) if place else line[:LABEL]) + piece for place, piece in enumerate(pieces)]


def summary_lines(predicted: Mapping[str, Any]) -> list[str]:
    """A few lines of what plan.json keeps, before training starts."""
    needs = dict.fromkeys(
        f"{size(need['bytes'])} of {size(need['free_bytes'])} on {need['name']}" for need in predicted["needs"]
    )
    host = f"; {size(predicted['host_bytes'])} in the host for layers" if predicted["host_bytes"] else ""
    lines = [f"memory  {', '.join(needs)}{host}"] if needs else []
    if predicted["seconds"]:
        kwh = f", {number(predicted['kwh'], 2)} kWh" if predicted["kwh"] is not None else ""
        estimated = ", estimated from published rates" if predicted["rates_from"] == "estimated" else ""
        lines.append(f"time    {_time(predicted['seconds_by_part'])}")
        lines.append(f"        {predicted['tokens_per_second']:,.0f} tokens/s{kwh}{estimated}")
    lines += [line.plain for line in disk_lines(predicted["disk"])]
    return [f"        {line}" for line in lines]
