"""messages: OpenAI's chat format, `messages` (or `conversation`, `conversations`) of role and content, and `tools`."""

from tunesmith.data.formats._chat import CHAT_COLUMNS, chat, is_turns, turns_in
from tunesmith.data.rows import Chat


def recognises(sample: dict) -> bool:
    return any(is_turns(sample.get(column), "role") for column in CHAT_COLUMNS)


def to_row(raw: dict) -> Chat:
    return chat(turns_in(raw), raw.get("tools") or raw.get("functions"))
