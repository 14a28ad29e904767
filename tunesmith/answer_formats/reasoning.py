"""Reasoning before an answer: how a model's template writes it, found by letting it write some, and who reads it.

Qwen 3 writes `<think>` … `</think>` before what it says; some templates open it in the generation prompt already.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.answer_formats.format import Thought
from tunesmith.answer_formats.streaming import ByState, tail_of
from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer

KEYS = ("reasoning_content", "thinking", "reasoning")  # where templates look for it in a message
THOUGHT, ANSWER = "Tunesmith9Thinks", "Tunesmith9Says"
ASK = [{"role": "user", "content": "Ask."}]
MARK = re.compile(r"(?:<[^<>\s]+>|\[[^\[\]\s]+\])\s*$")
IN_PROMPT = re.compile(r"(<(\w+)>)\s*(?:</\2>\s*)?$")


@dataclass(frozen=True)
class Reasoning:
    """`opening` is the mark before reasoning, `closing` the text between it and the answer, with whitespace;
    `key` where the template looks for it in a message, None if it writes none; `shown` the marks' special tokens."""

    opening: str
    closing: str
    key: str | None
    shown: frozenset[int] = frozenset()

    def opened(self, prompt: str) -> bool:
        """Whether an answer to the prompt begins with reasoning."""
        return prompt.rstrip().endswith(self.opening)


def find_reasoning(tokenizer: Tokenizer) -> Reasoning | None:
    """How the template writes reasoning, or None where it writes none between two marks."""
    try:
        return _in_message(tokenizer) or _in_prompt(tokenizer)
    except RowProblem:
        return None


def _in_message(tokenizer: Tokenizer) -> Reasoning | None:
    for key in KEYS:
        before, found, after = _rendered(tokenizer, key).partition(THOUGHT)
        closing, answered, _ = after.partition(ANSWER)
        opening = MARK.search(before)
        if found:
            return _reasoning(tokenizer, opening[0], closing, key) if opening and answered and closing.strip() else None
    return None


def _rendered(tokenizer: Tokenizer, key: str) -> str:
    return tokenizer.render([*ASK, {"role": "assistant", "content": ANSWER, key: THOUGHT}])


def _in_prompt(tokenizer: Tokenizer) -> Reasoning | None:
    """As templates write it that leave it out of messages: in the generation prompt, open or, if unwanted, empty."""
    choices: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": False})
    for wanted in choices:
        tag = IN_PROMPT.search(tokenizer.render(ASK, add_generation_prompt=True, **wanted))
        # A tag that also precedes the answers of earlier turns is the head of a turn.
        if tag and tag[1] not in tokenizer.render([*ASK, {"role": "assistant", "content": ANSWER}, *ASK]):
            return _reasoning(tokenizer, tag[1], f"\n</{tag[2]}>\n\n", None)
    return None


def _reasoning(tokenizer: Tokenizer, opening: str, closing: str, key: str | None) -> Reasoning:
    marks = [mark for mark in tokenizer.special_tokens if mark and mark in opening + closing]
    ids = (tokenizer.added_ids.get(mark) for mark in marks)
    return Reasoning(opening.strip(), closing, key, frozenset(ids) - {None})


class ReasoningReader(ByState):
    """Give it an answer's text as it arrives; it returns reasoning (Thought) and the rest (str), in order.

    `state`: thought if the prompt opened it, start if the answer may, text if the prompt holds the answer's beginning.
    """

    def __init__(self, reasoning: Reasoning, state: Literal["start", "thought", "text"]):
        self._opening, self._closing = reasoning.opening, reasoning.closing.strip()
        self._text, self._state = "", state
        self._thought = False

    def finish(self) -> list[str | Thought]:
        """The rest. Reasoning that is not closed is reasoning."""
        rest, self._text = self._text, ""
        if self._state == "thought":
            return [Thought(rest)] if rest.strip() else []
        return [rest] if rest else []

    def _in_start(self, said: list) -> bool:
        text = self._text.lstrip()
        if text.startswith(self._opening):
            self._text, self._state = text[len(self._opening) :], "thought"
            return True
        if self._opening.startswith(text):
            return False
        self._state = "text"
        return True

    def _in_thought(self, said: list) -> bool:
        text = self._text if self._thought else self._text.lstrip()
        at = text.find(self._closing)
        end = at if at >= 0 else len(text) - tail_of(text, self._closing)
        thought = text[:end].rstrip()  # whitespace may belong to the mark that comes
        if thought:
            said.append(Thought(thought))
            self._thought = True
        self._text = text[len(thought) :] if at < 0 else text[at + len(self._closing) :]
        if at >= 0:
            self._state = "gap"
        return at >= 0

    def _in_gap(self, said: list) -> bool:
        self._text = self._text.lstrip()
        if self._text:
            self._state = "text"
        return bool(self._text)

    def _in_text(self, said: list) -> bool:
        if self._text:
            said.append(self._text)
            self._text = ""
        return False
