"""How a model writes reasoning and tool calls: what an answer is made of, the format that reads and writes it, and how
the format of a model is found from its chat template."""

import secrets
from dataclasses import dataclass, field
from typing import Protocol

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.registry import Registry

FORMATS = Registry("tunesmith.answer_formats.formats", "tunesmith.answer_formats")
LAST = ("harmony", "tagged")  # tried in this order after every other format; tagged fits every template


@dataclass(frozen=True)
class Thought:
    """Reasoning that an answer grew by."""

    text: str


@dataclass(frozen=True)
class Call:
    """A tool call as the model made it; `arguments` is the text of a JSON object. The id has nine characters, as
    Mistral demands."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: secrets.token_hex(5)[:9])


Part = str | Thought | Call


class Reader(Protocol):
    """Reads one answer: give it the text as it arrives, and it returns the parts that are certain, in order."""

    def push(self, text: str) -> list[Part]: ...

    def finish(self) -> list[Part]:
        """The rest."""
        ...


class Format(Protocol):
    """The answer format of one model."""

    @property
    def writes_calls(self) -> bool:
        """Whether the model can be given tools."""
        ...

    @property
    def writes_reasoning(self) -> bool:
        """Whether answers may begin with reasoning that is read apart."""
        ...

    def message(self, message: dict) -> dict:
        """A message as the template takes it. Reasoning comes as `reasoning_content`, calls as `tool_calls`."""
        ...

    def shown(self, with_tools: bool) -> frozenset[int]:
        """The special tokens that must stay in the text for a reader."""
        ...

    def begin(self, prompt: str, call: bool) -> str:
        """Text to add to a prompt so that the answer, a `call` or text, begins without reasoning."""
        ...

    def reader(self, prompt: str, begun: bool, tools: list[dict]) -> Reader:
        """For one answer to a prompt; `begun` says whether the prompt holds the beginning of the answer itself."""
        ...

    def plain(self, tokenizer: Tokenizer, ids: list[int]) -> str:
        """A whole answer as people read it, without special tokens."""
        ...

    def grammar(self, tokenizer: Tokenizer, chosen: list[dict], parallel: bool) -> str:
        """A Lark grammar of answers that are calls of these tools and nothing else."""
        ...


def find(tokenizer: Tokenizer) -> Format:
    """The first format whose `find(tokenizer)` recognises the chat template."""
    names = (*(name for name in FORMATS if name not in LAST), *LAST)
    return next(format for name in names if (format := FORMATS[name].find(tokenizer)))
