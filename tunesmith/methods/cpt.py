"""Continued pretraining: every token of plain text; conversations are learned whole."""

from tunesmith.data.masking import Example, encode_chat, encode_text
from tunesmith.data.rows import Chat, Row
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.recipe import Method

splits = True


def encode(tokenizer: Tokenizer, row: Row, settings: Method) -> list[Example]:
    if isinstance(row, Chat):
        return encode_chat(tokenizer, row, "all")
    return [encode_text(tokenizer, row.text)]
