"""alpaca: `instruction` and `output` (or `response`, `chosen`), and optional `context`, `input` (or `question`),
`system`, `history` and `tools`.

Context and input follow the instruction, separated by empty lines.
"""

from tunesmith.data.formats._chat import exchange, has_turns, optional, string
from tunesmith.data.rows import Chat

ANSWERS = ("output", "response", "chosen")


def recognises(sample: dict) -> bool:
    return "instruction" in sample and any(column in sample for column in ANSWERS) and not has_turns(sample)


def to_row(raw: dict) -> Chat:
    parts = [string(raw, "instruction"), optional(raw, "context"), optional(raw, "input", "question")]
    return exchange(raw, "\n\n".join(filter(None, parts)), string(raw, *ANSWERS))
