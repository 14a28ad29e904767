"""Continued pretraining: every token of plain text; conversations are learned whole."""

from typing import ClassVar, Literal

from tunesmith.data.masking import Group, encode_chat, encode_text
from tunesmith.data.rows import Chat, Row, Text
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.recipe import MethodSettings

reads = (Chat, Text)
splits = True


class Settings(MethodSettings):
    """cpt: continued pretraining on plain text."""

    name: Literal["cpt"] = "cpt"
    has_answers: ClassVar[bool] = False


def encode(tokenizer: Tokenizer, row: Row, settings: Settings) -> list[Group]:
    if isinstance(row, Chat):
        return [(example,) for example in encode_chat(tokenizer, row, "all")]
    return [(encode_text(tokenizer, row.text),)]
