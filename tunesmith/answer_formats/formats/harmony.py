"""Harmony, as gpt-oss writes it: an answer is messages in channels. analysis is reasoning, final is text, and
commentary to=functions.NAME is a tool call."""

from dataclasses import dataclass
from functools import reduce
from os.path import commonprefix

from tunesmith.answer_formats.calls import (
    PROBE,
    PROBE_TOOLS,
    json_rule,
    object_text,
    parameters_of,
    probe_call,
    written,
)
from tunesmith.answer_formats.format import Call, Format, Part, Thought
from tunesmith.answer_formats.reasoning import ASK, KEYS, THOUGHT
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
    in a message; `marks` the special tokens that are read."""

    call: str
    key: str
    marks: frozenset[int]

    writes_calls = True
    writes_reasoning = True

    def message(self, message: dict) -> dict:
        """Puts reasoning where the template looks for it."""
        if "reasoning_content" not in message:
            return message
        rest = {name: value for name, value in message.items() if name != "reasoning_content"}
        if rest.get("tool_calls") and rest["content"]:
            return rest  # gpt-oss' template takes one of both before a call, and writes either as reasoning
        return {**rest, self.key: message["reasoning_content"]}

    def shown(self, with_tools: bool) -> frozenset[int]:
        return self.marks

    def begin(self, prompt: str, call: bool) -> str:
        return "" if call else FINAL

    def reader(self, prompt: str, begun: bool, tools: list[dict]) -> "HarmonyReader":
        return HarmonyReader(begun, bool(tools))

    def plain(self, tokenizer: Tokenizer, ids: list[int]) -> str:
        """The text of the messages, without their channels."""
        hidden = tokenizer.special_ids - self.marks
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
        rules = [f"start: {' | '.join(f'call{n}' for n in range(len(chosen)))}"]
        for n, tool in enumerate(chosen):
            head = written(tokenizer, self.call.replace(PROBE, tool["function"]["name"]))
            rules.append(f"call{n}: {' '.join(head)} arguments{n}")
            rules.append(f"arguments{n}: {json_rule(parameters_of(tool))}")
        return "\n".join(rules) + "\n"


def find(tokenizer: Tokenizer) -> Format | None:
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


class HarmonyReader(ByState):
    """Reads an answer in channels. `begun`: whether the prompt holds the beginning of the text; `calls`: whether there
    are tools to call."""

    def __init__(self, begun: bool, calls: bool):
        self._state, self._kind = ("body", "text") if begun else ("header", "")
        self._calls = calls
        self._text, self._name = "", ""
        self._said: set[str] = set()  # kinds of messages that said something
        self._first = True  # of this message

    def finish(self) -> list[Part]:
        """The rest. A call that is not complete is text."""
        said: list[Part] = []
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
        if self._first and self._kind in self._said:  # it follows an earlier message of the same kind
            text = "\n\n" + text
        self._first = False
        self._said.add(self._kind)
        said.append(Thought(text) if self._kind == "thought" else text)
