"""text: plain text in the column `text` or `content`, for continued pretraining."""

from tunesmith.data.formats._chat import string
from tunesmith.data.rows import RowProblem, Text

OTHER_FORMATS = {"messages", "conversation", "conversations", "instruction", "prompt", "question"}


def recognises(sample: dict) -> bool:
    has_text = isinstance(sample.get("text"), str) or isinstance(sample.get("content"), str)
    return has_text and not OTHER_FORMATS & sample.keys()


def to_row(raw: dict) -> Text:
    text = string(raw, "text", "content")
    if not text:
        raise RowProblem("no_supervised_token", "the text is empty")
    return Text(text)
