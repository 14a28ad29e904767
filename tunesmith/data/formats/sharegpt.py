"""sharegpt: `conversations` of from and value, and optional `system` and `tools`."""

from tunesmith.data.formats._chat import CHAT_COLUMNS, chat, from_json, is_turns, optional, turns_in
from tunesmith.data.rows import Chat


def recognises(sample: dict) -> bool:
    return any(is_turns(sample.get(column), "from", "value") for column in CHAT_COLUMNS)


def to_row(raw: dict) -> Chat:
    messages = [_message(turn) for turn in turns_in(raw)]
    if system := optional(raw, "system"):
        messages.insert(0, {"role": "system", "content": system})
    return chat(messages, raw.get("tools"))


def _message(turn: dict) -> dict:
    """A turn in OpenAI's words. The value of a function_call is JSON: one call, or a list of them."""
    if turn.get("from") != "function_call":
        return {"role": turn.get("from"), "content": turn.get("value"), "weight": turn.get("weight")}
    calls = from_json(turn.get("value"))
    return {"role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls],
            "weight": turn.get("weight")}
