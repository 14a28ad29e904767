"""Supervised fine-tuning: answers to prompts."""

from tunesmith.data.masking import Example, encode_chat
from tunesmith.data.rows import Chat, Row, RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.recipe import Method

splits = False


def encode(tokenizer: Tokenizer, row: Row, settings: Method) -> list[Example]:
    if not isinstance(row, Chat):
        raise RowProblem("wrong_shape", "plain text has no answer to learn; use method.name: cpt")
    return encode_chat(tokenizer, row, settings.mask)
