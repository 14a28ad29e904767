"""Reasoning between two marks, then text, and tool calls between marks of their own: what most templates write.

It fits every template. A template that writes no reasoning, or no tool calls, has None in that place.
"""

from dataclasses import dataclass

from tunesmith.answer_formats.format import Format, Part, Thought
from tunesmith.answer_formats.reasoning import Reasoning, ReasoningReader, find_reasoning
from tunesmith.answer_formats.tool_calls import ToolFormat, ToolReader, find_tools, tool_grammar
from tunesmith.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Tagged:
    reasoning: Reasoning | None
    tools: ToolFormat | None

    @property
    def writes_calls(self) -> bool:
        return self.tools is not None

    @property
    def writes_reasoning(self) -> bool:
        return self.reasoning is not None

    def message(self, message: dict) -> dict:
        """Puts reasoning where the template looks for it, and calls into the text where the template writes none."""
        if self.tools and self.tools.in_text and message.get("tool_calls"):
            message = self.tools.as_text(message)
        if self.reasoning is None or self.reasoning.key is None or "reasoning_content" not in message:
            return message
        rest = {name: value for name, value in message.items() if name != "reasoning_content"}
        return {**rest, self.reasoning.key: message["reasoning_content"]}

    def shown(self, with_tools: bool) -> frozenset[int]:
        found = (self.reasoning, self.tools if with_tools else None)
        return frozenset().union(*(part.shown for part in found if part))

    def begin(self, prompt: str, call: bool) -> str:
        return self.reasoning.closing if self.reasoning and self.reasoning.opened(prompt) else ""

    def reader(self, prompt: str, begun: bool, tools: list[dict]) -> "TaggedReader":
        thoughts = None
        if self.reasoning:
            opened = self.reasoning.opened(prompt)
            thoughts = ReasoningReader(self.reasoning, "thought" if opened else "text" if begun else "start")
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        return TaggedReader(thoughts, ToolReader(self.tools, schemas) if tools else None)

    def plain(self, tokenizer: Tokenizer, ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    def grammar(self, tokenizer: Tokenizer, chosen: list[dict], parallel: bool) -> str:
        return tool_grammar(tokenizer, self.tools, chosen, parallel)


def find(tokenizer: Tokenizer) -> Format:
    return Tagged(find_reasoning(tokenizer), find_tools(tokenizer))


class TaggedReader:
    """Reads reasoning first, and calls out of the rest. None leaves that part out."""

    def __init__(self, thoughts: ReasoningReader | None, calls: ToolReader | None):
        self._thoughts, self._calls = thoughts, calls

    def push(self, text: str) -> list[Part]:
        return self._read([text] if self._thoughts is None else self._thoughts.push(text))

    def finish(self) -> list[Part]:
        parts = self._read([] if self._thoughts is None else self._thoughts.finish())
        return parts + ([] if self._calls is None else self._calls.finish())

    def _read(self, parts: list[str | Thought]) -> list[Part]:
        if self._calls is None:
            return [*parts]
        return [found for part in parts for found in (self._calls.push(part) if isinstance(part, str) else [part])]
