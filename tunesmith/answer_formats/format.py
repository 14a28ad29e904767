"""How a model writes what is not plain text, reasoning and tool calls, and who reads it."""

from dataclasses import dataclass

from tunesmith.answer_formats.calls import Call
from tunesmith.answer_formats.harmony import FINAL, Harmony, HarmonyReader, channel_grammar, find_harmony
from tunesmith.answer_formats.reasoning import Reasoning, ReasoningReader, Thought, find_reasoning
from tunesmith.answer_formats.tool_calls import ToolFormat, ToolReader, find_format, tool_grammar
from tunesmith.data.tokenizer import Tokenizer

Part = str | Thought | Call


class Reader:
    """Give it an answer's text as it comes; it gives back what it is made of, in order. Without reasoning to look for,
    or tools to call, that part is left out."""

    def __init__(self, thoughts: ReasoningReader | None = None, calls: ToolReader | None = None):
        self._thoughts, self._calls = thoughts, calls

    def push(self, text: str) -> list[Part]:
        return self._read([text] if self._thoughts is None else self._thoughts.push(text))

    def finish(self) -> list[Part]:
        """The rest."""
        parts = self._read([] if self._thoughts is None else self._thoughts.finish())
        return parts + ([] if self._calls is None else self._calls.finish())

    def _read(self, parts: list[str | Thought]) -> list[Part]:
        if self._calls is None:
            return [*parts]
        return [said for part in parts for said in (self._calls.push(part) if isinstance(part, str) else [part])]


AnswerReader = Reader | HarmonyReader


@dataclass(frozen=True)
class Format:
    """What of the forms below a model's template writes; with harmony the other two are None."""

    reasoning: Reasoning | None = None
    tools: ToolFormat | None = None
    harmony: Harmony | None = None

    @property
    def writes_calls(self) -> bool:
        return self.tools is not None or self.harmony is not None

    def message(self, message: dict) -> dict:
        """A message with its reasoning where the template looks for it, and its calls where it writes none."""
        if self.tools and self.tools.in_text and message.get("tool_calls"):
            message = self.tools.as_text(message)
        if "reasoning_content" not in message:
            return message
        rest = {name: value for name, value in message.items() if name != "reasoning_content"}
        if self.harmony and rest.get("tool_calls") and rest["content"]:
            return rest  # gpt-oss' template takes one of both before a call, and writes either as reasoning
        key = getattr(self.harmony or self.reasoning, "key", None) or "reasoning_content"
        return {**rest, key: message["reasoning_content"]}

    def shown(self, with_tools: bool) -> frozenset[int]:
        """The special tokens that must stay in the text for a reader."""
        found = (self.harmony, self.reasoning, self.tools if with_tools else None)
        return frozenset().union(*(one.shown for one in found if one))

    def begin(self, prompt: str, call: bool) -> str:
        """What a prompt must go on with for the answer, a `call` or text, to begin without reasoning."""
        if self.harmony:
            return "" if call else FINAL
        return self.reasoning.closing if self.reasoning and self.reasoning.opened(prompt) else ""

    def reader(self, prompt: str, begun: bool, tools: list[dict]) -> AnswerReader:
        """For one answer to a prompt; `begun` says whether that holds the beginning of the answer itself."""
        if self.harmony:
            return HarmonyReader(begun, bool(tools))
        thoughts = None
        if self.reasoning:
            thoughts = ReasoningReader(
                self.reasoning, "thought" if self.reasoning.opened(prompt) else "text" if begun else "start"
            )
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        return Reader(thoughts, ToolReader(self.tools, schemas) if tools else None)

    def plain(self, tokenizer: Tokenizer, ids: list[int]) -> str:
        """A whole answer as people read it: without special tokens, and of channels what is said in them."""
        if self.harmony is None:
            return tokenizer.decode(ids, skip_special_tokens=True)
        hidden = tokenizer.special_ids - self.harmony.shown
        reader = HarmonyReader(begun=False, calls=True)
        parts = reader.push(tokenizer.decode([i for i in ids if i not in hidden])) + reader.finish()
        return "\n\n".join(
            f"{part.name}({part.arguments})"
            if isinstance(part, Call)
            else part.text
            if isinstance(part, Thought)
            else part
            for part in parts
        )

    def grammar(self, tokenizer: Tokenizer, chosen: list[dict], parallel: bool) -> str:
        """A Lark grammar of answers that are calls of these tools and nothing else."""
        if self.harmony:
            return channel_grammar(tokenizer, self.harmony, chosen)
        return tool_grammar(tokenizer, self.tools, chosen, parallel)


def find(tokenizer: Tokenizer) -> Format:
    """What the template writes."""
    if channels := find_harmony(tokenizer):
        return Format(harmony=channels)
    return Format(find_reasoning(tokenizer), find_format(tokenizer))
