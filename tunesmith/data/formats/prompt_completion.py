"""prompt_completion: `prompt` and `completion` (or `response`, `chosen`), each text or a list of messages, and optional
`system` and `tools`.

A completion whose messages begin with another turn than an assistant's is taken for the whole conversation.
"""

from typing import Any

from tunesmith.data.formats._chat import ROLES, chat, has_turns, is_turns, optional, shown, turns_of
from tunesmith.data.rows import Chat, RowProblem

ANSWERS = ("completion", "response", "chosen")


def recognises(sample: dict) -> bool:
    return "prompt" in sample and any(column in sample for column in ANSWERS) and not has_turns(sample)


def to_row(raw: dict) -> Chat:
    prompt = _messages(raw.get("prompt"), "user", "prompt")
    column = next((column for column in ANSWERS if raw.get(column) is not None), ANSWERS[0])
    completion = _messages(raw.get(column), "assistant", column)
    if _role(completion[0]) != "assistant":
        prompt = []
    system = optional(raw, "system")
    start = [{"role": "system", "content": system}] if system else []
    return chat(start + prompt + completion, raw.get("tools"))


def _messages(value: Any, role: str, column: str) -> list[dict]:
    if is_turns(value, "role"):
        return turns_of(value)
    if not isinstance(value, str):
        raise RowProblem("wrong_shape", f"{column}: text or messages expected, found {shown(value)}")
    return [{"role": role, "content": value}]


def _role(message: dict) -> str | None:
    role = message.get("role")
    return ROLES.get(role) if isinstance(role, str) else None
