"""prompt_completion: `prompt` and `completion` (or `response`, `chosen`), each text or a list of messages, and optional
`system`, `history` and `tools`.

A completion whose first message is not an assistant's is the whole conversation, and needs no prompt. `label: false`
marks an undesirable answer (KTO).
"""

from tunesmith.data.formats._chat import (
    chat,
    has_turns,
    history,
    is_turns,
    optional,
    refuse_bad,
    role_of,
    turns_or_text,
)
from tunesmith.data.rows import Chat

ANSWERS = ("completion", "response", "chosen")


def recognises(sample: dict) -> bool:
    answered = "prompt" in sample and any(column in sample for column in ANSWERS)
    return (answered or is_turns(sample.get("chosen"))) and not has_turns(sample)


def to_row(raw: dict) -> Chat:
    refuse_bad(raw, "label")
    column = next((column for column in ANSWERS if raw.get(column) is not None), ANSWERS[0])
    completion = turns_or_text(raw, column, "assistant")
    if role_of(completion[0]) != "assistant":
        return chat(raw, completion)
    prompt = [*history(raw), *turns_or_text(raw, "prompt", "user")]
    if reasoning := optional(raw, "reasoning_content"):
        completion[0].setdefault("reasoning_content", reasoning)
    return chat(raw, prompt + completion)
