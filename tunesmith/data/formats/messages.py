"""messages: OpenAI's chat format, `messages` (or `conversation`, `conversations`) of role and content, and `tools`.

If the conversation ends with the user, the answer may be in the column `chosen` (or `completion`, `response`).
"""

from tunesmith.data.formats._chat import CHAT_COLUMNS, conversation, is_turns
from tunesmith.data.rows import Chat


def recognises(sample: dict) -> bool:
    return any(is_turns(sample.get(column), "role") for column in CHAT_COLUMNS)


def to_row(raw: dict) -> Chat:
    return conversation(raw)
