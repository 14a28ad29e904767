"""alpaca: `instruction` and `output` (or `response`), and optional `input` (or `context`), `system` and `history`.

The input follows the instruction after an empty line. `history` is a list of earlier [instruction, output] pairs.
"""

from typing import Any

from tunesmith.data.formats._chat import exchange, from_json, has_turns, optional, shown, string
from tunesmith.data.rows import Chat, RowProblem


def recognises(sample: dict) -> bool:
    return "instruction" in sample and bool({"output", "response"} & sample.keys()) and not has_turns(sample)


def to_row(raw: dict) -> Chat:
    instruction, extra = string(raw, "instruction"), optional(raw, "input", "context")
    prompt = f"{instruction}\n\n{extra}" if extra else instruction
    history = _history(from_json(raw.get("history") or []))
    return exchange(optional(raw, "system"), history, prompt, string(raw, "output", "response"))


def _history(pairs: Any) -> list:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RowProblem("wrong_shape", f"history: a list of pairs expected, found {shown(pairs)}")
    return pairs
