"""messages: OpenAI's chat format, `messages` (or `conversation`, `conversations`) of role and content, and `tools`.

The answer to a conversation that ends with the user may stand beside it as `chosen` (or `completion`, `response`).
"""

from tunesmith.data.formats._chat import CHAT_COLUMNS, conversation, is_turns
from tunesmith.data.rows import Chat


def recognises(sample: dict) -> bool:
    return any(is_turns(sample.get(column), "role") for column in CHAT_COLUMNS)


def to_row(raw: dict) -> Chat:
    return conversation(raw)
