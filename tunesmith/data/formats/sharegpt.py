"""sharegpt: `conversations` of `from` and `value`, otherwise the same as `messages`."""

from tunesmith.data.formats._chat import CHAT_COLUMNS, conversation, is_turns
from tunesmith.data.rows import Chat


def recognises(sample: dict) -> bool:
    return any(is_turns(sample.get(column), "from", "value") for column in CHAT_COLUMNS)


def to_row(raw: dict) -> Chat:
    return conversation(raw)
