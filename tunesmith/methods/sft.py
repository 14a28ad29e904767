"""Supervised fine-tuning: answers to prompts."""

from typing import Literal

from tunesmith.data.masking import Group, encode_chat
from tunesmith.data.rows import Chat
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.recipe import MethodSettings

reads = (Chat,)


class Settings(MethodSettings):
    """sft: answers to prompts."""

    name: Literal["sft"] = "sft"
    mask: Literal["assistant", "last", "all"] = "assistant"
    """Tokens to learn from: every assistant turn, the last one, or all."""


def encode(tokenizer: Tokenizer, row: Chat, settings: Settings) -> list[Group]:
    return [(example,) for example in encode_chat(tokenizer, row, settings.mask)]
