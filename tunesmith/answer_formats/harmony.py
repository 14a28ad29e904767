"""Harmony, as gpt-oss writes: messages of an answer with a channel each, analysis being reasoning, final what is said,
and commentary to=functions.NAME a tool call."""

from dataclasses import dataclass
from functools import reduce
from os.path import commonprefix

from tunesmith.answer_formats.calls import (
    PROBE,
    PROBE_TOOLS,
    Call,
    json_rule,
    object_text,
    parameters_of,
    probe_call,
    written,
)
from tunesmith.answer_formats.reasoning import ASK, KEYS, THOUGHT, Thought
from tunesmith.answer_formats.streaming import ByState, tail_of
from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", START)
MARKS = (CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
FINAL = f"{CHANNEL}final{MESSAGE}"


@dataclass(frozen=True)
class Harmony:
    """`call` is what the template writes before the arguments of a call of PROBE; `key` where it looks for reasoning
    in a message; `shown` the special tokens that are read."""

    call: str
    key: str
    shown: frozenset[int]


def find_harmony(tokenizer: Tokenizer) -> Harmony | None:
    """How the template writes messages in channels, or None where it does not."""
    turn = {"role": "assistant", "content": "", "tool_calls": [probe_call(PROBE, as_text=False)]}
    try:
        prompt = tokenizer.render(ASK, PROBE_TOOLS, add_generation_prompt=True)
        text = tokenizer.render([*ASK, turn], PROBE_TOOLS)
        told = text[len(commonprefix([text, prompt])) :]  # noqa: RUF071  texts, not paths
        reasons = {key: tokenizer.render([*ASK, {**turn, key: THOUGHT}], PROBE_TOOLS) for key in KEYS}
    except RowProblem:
        return None
    key = next((key for key in KEYS if f"{CHANNEL}analysis{MESSAGE}{THOUGHT}{ENDS[0]}" in reasons[key]), None)
    call = told[: told.find(MESSAGE) + len(MESSAGE)] if MESSAGE in told else ""
    if key is None or f"to=functions.{PROBE}" not in call:
        return None
    return Harmony(call, key, frozenset(tokenizer.added_ids[mark] for mark in MARKS if mark in tokenizer.added_ids))


def channel_grammar(tokenizer: Tokenizer, harmony: Harmony, tools: list[dict]) -> str:
    """A Lark grammar of answers that are a call of one of these tools and nothing else."""
    rules = [f"start: {' | '.join(f'call{n}' for n in range(len(tools)))}"]
    for n, tool in enumerate(tools):
        function = tool["function"]
        head = written(tokenizer, harmony.call.replace(PROBE, function["name"]))
        rules.append(f"call{n}: {' '.join(head)} arguments{n}")
        rules.append(f"arguments{n}: {json_rule(parameters_of(tool))}")
    return "\n".join(rules) + "\n"


class HarmonyReader(ByState):
    """Give it an answer's text as it comes; it gives back reasoning (Thought), text (str) and calls (Call), in order.

    `begun`: whether the prompt holds the beginning of what is said; `calls`: whether there are tools to call.
    """

    def __init__(self, begun: bool, calls: bool):
        self._state, self._kind = ("body", "text") if begun else ("header", "")
        self._calls = calls
        self._text, self._name = "", ""
        self._said: set[str] = set()  # kinds of messages that said something
        self._first = True  # of this message

    def finish(self) -> list[str | Thought | Call]:
        """The rest. A call that is not complete is text."""
        said: list[str | Thought | Call] = []
        if self._state == "body":
            self._end(self._text, said)
        elif self._state == "header" and CHANNEL not in self._text:  # a model that writes no channels
            self._kind = "text"
            self._say(reduce(lambda text, mark: text.replace(mark, ""), MARKS, self._text), said)
        self._text = ""
        return said

    def _in_header(self, said: list) -> bool:
        header, found, rest = self._text.partition(MESSAGE)
        if not found:
            return False
        words = header.replace(CHANNEL, f" {CHANNEL} ").replace(CONSTRAIN, " ").split()
        channel = words[words.index(CHANNEL) + 1 :][:1] if CHANNEL in words else []
        to = next((word[3:] for word in words if word.startswith("to=")), "")
        author = words[0] if words and words[0] != CHANNEL and not words[0].startswith("to=") else "assistant"
        self._name = to.removeprefix("functions.")
        if author != "assistant":  # what a tool would answer, made up
            self._kind = "skipped"
        elif to and self._calls:
            self._kind = "call"
        else:
            self._kind = "thought" if channel == ["analysis"] else "text"
        self._text, self._state, self._first = rest, "body", True
        return True

    def _in_body(self, said: list) -> bool:
        at, mark = min(((self._text.find(mark), mark) for mark in ENDS if mark in self._text), default=(-1, ""))
        if at < 0:
            if self._kind != "call":  # which is read as a whole
                end = len(self._text) - max(tail_of(self._text, mark) for mark in ENDS)
                self._say(self._text[:end], said)
                self._text = self._text[end:]
            return False
        self._end(self._text[:at], said)
        self._text = self._text[at + len(mark) :]
        self._state = "header" if mark == START else "between"
        return True

    def _in_between(self, said: list) -> bool:
        before, found, after = self._text.partition(START)
        self._text = after if found else before[len(before) - tail_of(before, START) :]
        if found:
            self._state = "header"
        return bool(found)

    def _end(self, rest: str, said: list) -> None:
        """The end of a message."""
        if self._kind != "call":
            self._say(rest, said)
        elif rest.strip() and (arguments := object_text(rest)) is not None:
            said.append(Call(self._name, arguments))
        else:
            self._kind = "text"
            self._say(rest, said)

    def _say(self, text: str, said: list) -> None:
        if not text or self._kind == "skipped":
            return
        if self._first and self._kind in self._said:  # an earlier message of the same kind stands before it
            text = "\n\n" + text
        self._first = False
        self._said.add(self._kind)
        said.append(Thought(text) if self._kind == "thought" else text)
