"""Tool calls: how a model's template writes them, found by letting it write some, and read out of its answers.

A call is enclosed in marks, and several calls may share a section with marks of its own. The text between the marks of
a call has one of these forms, each a file in markups/:

| who | section | mark | call |
|---|---|---|---|
| Qwen, Hermes, Granite 4 | | `<tool_call>` | JSON: {"name": …, "arguments": {…}} |
| Mistral to 2024, Cohere, Nemotron | | `[TOOL_CALLS]` | a list of such JSON |
| Llama 3 | | | such JSON alone |
| Mistral from 2025 | | `[TOOL_CALLS]` | a name and JSON: NAME[ARGS]{…} |
| DeepSeek, Kimi K2 | `<|tool_calls_begin|>` | `<|tool_call_begin|>` | NAME<|tool_sep|>{…} |
| Qwen3-Coder, GLM, MiniMax, Seed-OSS | | `<tool_call>` | tags: <function=…><parameter=…>…</parameter></function> |
| LFM2, Llama 4 | | `<|tool_call_start|>` | Python: [NAME(key="value")] |
| Gemma 4 | | `<|tool_call>` | quoted strings: call:NAME{key:<|"|>value<|"|>} |
"""

import re
from dataclasses import dataclass
from typing import Any

from tunesmith.answer_formats.calls import OTHER, PROBE, PROBE_TOOLS, flexible, probe_call, written
from tunesmith.answer_formats.format import Call
from tunesmith.answer_formats.markups.python_calls import PythonCalls
from tunesmith.answer_formats.streaming import MARK, ByState, common_end, common_start, tail_of
from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.registry import Registry

MARKUPS = Registry("tunesmith.answer_formats.markups", "tunesmith.tool_markups")
# Tried in this order after every other markup: named_calls takes JSON as well.
LAST = ("json_calls", "named_calls", "xml_calls", "python_calls", "quoted_calls")
USER = {"role": "user", "content": "Call it."}
SAID = "Tunesmith9Says"
MOST_SPACES = 32  # that a model may write among the marks before a call


@dataclass(frozen=True)
class ToolFormat:
    """`opening` and `closing` are the marks before and after a call, `begins` and `ends` those of a section of calls,
    whitespace included; `shown` the special tokens among them and within calls; `form` how a call is written.
    `in_text`: the template writes no calls, so they are part of a message's text."""

    form: Any  # a CallForm; PythonCalls also writes calls
    opening: str
    closing: str
    begins: str = ""
    ends: str = ""
    shown: frozenset[int] = frozenset()
    in_text: bool = False

    def as_text(self, message: dict) -> dict:
        """A message with its calls in its text."""
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
        text = f"{message.get('content') or ''}{self.opening}{self.form.write(calls)}{self.closing}"
        return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": text}


def find_tools(tokenizer: Tokenizer) -> ToolFormat | None:
    """How the template writes a call, or None where it writes none, or none in these forms."""
    try:
        prompt = tokenizer.render([USER], PROBE_TOOLS, add_generation_prompt=True)
        if PROBE not in prompt:
            return None
        plain = tokenizer.render([USER, {"role": "assistant", "content": SAID}], PROBE_TOOLS)
    except RowProblem:
        return None
    for content in ("", None):  # a template may want no content beside calls, or arguments as text
        for as_text in (False, True):
            one, two = (
                _turn(tokenizer, names, content, as_text, (plain, prompt)) for names in ([PROBE], [PROBE, OTHER])
            )
            if one and (found := _format(tokenizer, one, two, plain)):
                return found
    return _in_vocabulary(tokenizer)


def _in_vocabulary(tokenizer: Tokenizer) -> ToolFormat | None:
    """Calls whose marks are tokens, in a template that shows tools to the model but writes no calls (LFM2)."""
    ids = tokenizer.added_ids
    for opening in ids:
        closing = opening.replace("start", "end")
        if "tool_call_start" in opening and closing in ids:
            shown = frozenset({ids[opening], ids[closing]})
            return ToolFormat(PythonCalls(), opening, closing, shown=shown, in_text=True)
    return None


def _turn(tokenizer: Tokenizer, names: list[str], content: str | None, as_text: bool, others: tuple) -> str | None:
    """The text that the template writes for calls of these tools, without the beginning that it shares with `others`.
    None if the template refuses."""
    calls = [probe_call(name, as_text) for name in names]
    try:
        text = tokenizer.render([USER, {"role": "assistant", "content": content, "tool_calls": calls}], PROBE_TOOLS)
    except RowProblem:
        return None
    return text[max(len(common_start(text, other)) for other in others) :]


def _format(tokenizer: Tokenizer, one: str, two: str | None, plain: str) -> ToolFormat | None:
    """From a turn with one call, one with two, and one with text."""
    names = (*(name for name in MARKUPS if name not in LAST), *LAST)
    found = next(((MARKUPS[name], place) for name in names if (place := MARKUPS[name].find(one, PROBE))), None)
    if found is None:
        return None
    markup, (start, end, form) = found
    before, after = one[:start], _until_end(tokenizer, one[end:], plain)
    if PROBE in before:
        return None
    places = [markup.find(two, name) for name in (PROBE, OTHER)] if two else [None]
    opening, closing = before, after
    if None not in places and places[0][:2] != places[1][:2]:  # else one call, or a list of them
        between = two[places[0][1] : places[1][0]]
        opening = common_end(before, between)
        rest = between.removesuffix(opening)
        closing = common_start(rest, after) if rest.strip() else ""
    begins, ends = before.removesuffix(opening), after.removeprefix(closing)
    special = [token for token in tokenizer.special_tokens if token and token in before + one[start:end] + after]
    ids = frozenset(tokenizer.added_ids[token] for token in special if token in tokenizer.added_ids)
    return ToolFormat(form, opening.lstrip() if not begins.strip() else opening, closing, begins.lstrip(), ends, ids)


def _until_end(tokenizer: Tokenizer, after: str, plain: str) -> str:
    """The text that the template writes after a call, without the end of the turn."""
    after = after.removesuffix(common_end(after, plain[plain.rfind(SAID) + len(SAID) :]))
    end = after.find(tokenizer.eos_token) if tokenizer.eos_token else -1
    return after[: end if end >= 0 else len(after)].rstrip()


class ToolReader(ByState):
    """Give it an answer's text as it arrives; it returns text (str) and calls (Call), in order. `tools`: their
    parameters' schemas by name."""

    def __init__(self, format: ToolFormat, tools: dict[str, dict]):
        self._form, self._tools = format.form, tools
        opening, begins = format.opening.strip(), format.begins.strip()
        self._marks = [MARK.match(text)[0] for text in (begins, opening) if text]
        self._ends = [*format.closing.split(), *format.ends.split()]
        section = f"(?:{flexible(begins)})" + ("?" if opening else "")
        self._begin = re.compile(rf"\s*{section}\s*{flexible(opening)}\s*")
        self._longest = len(begins + opening) + MOST_SPACES
        self._bare_next = not opening and bool(begins)  # whether calls of a section follow one another without marks
        self._text = ""
        self._state = "text" if self._marks else "bare"
        self._called = False
        self._tried = 0  # characters of a call that were there at the last attempt to read it

    def finish(self) -> list[str | Call]:
        """The rest. What began like a call and is none is text."""
        if self._state == "bare" and (calls := self._bare_calls()):
            return [*calls]
        said: list[str | Call] = []
        while self._state == "call":
            if not self._read_call(said):
                self._give_up(said)
            said += self.push("")
        rest, self._text = self._text, ""
        return said + ([rest] if rest and not (self._called and (self._state == "after" or not rest.strip())) else [])

    def _in_text(self, said: list) -> bool:
        at = min((at for mark in self._marks if (at := self._text.find(mark)) >= 0), default=-1)
        end = at if at >= 0 else len(self._text) - max(tail_of(self._text, mark) for mark in self._marks)
        text = self._text[:end].rstrip()  # whitespace may belong to a call that comes
        if text:
            said.append(text)
            self._text = self._text[len(text) :]
        if at >= 0:
            self._state, self._tried = "call", 0
        return at >= 0

    def _in_call(self, said: list) -> bool:
        new, self._tried = self._text[self._tried :], len(self._text)
        return any(char in self._form.last for char in new) and self._read_call(said)

    def _read_call(self, said: list) -> bool:
        """Whether the call is complete, or is found to be none."""
        begin = self._begin.match(self._text)
        if begin is None:
            if len(self._text.lstrip()) > self._longest:
                self._give_up(said)
            return self._state == "text"
        found = self._form.read(self._text[begin.end() :], self._tools)
        if found is None:
            return False
        calls, end = found
        if not calls:
            self._give_up(said)
            return True
        said += [Call(name, arguments) for name, arguments in calls]
        self._called = True
        self._text, self._state = self._text[begin.end() + end :], "after"
        return True

    def _give_up(self, said: list) -> None:
        """Returns at least the first mark as text, because no call follows it."""
        at = min(at + len(mark) for mark in self._marks if (at := self._text.find(mark)) >= 0)
        said.append(self._text[:at])
        self._text, self._state = self._text[at:], "text"

    def _in_after(self, said: list) -> bool:
        text = self._text.lstrip()
        for mark in self._ends:
            if text.startswith(mark):
                text = text[len(mark) :].lstrip()
            elif mark.startswith(text):
                return False
        if not text:
            return False
        if self._bare_next and text == self._text.lstrip() and self._form.may_begin(text, self._tools):
            return any(char in self._form.last for char in text) and self._read_next(text, said)
        self._text, self._state = text, "text"
        return True

    def _read_next(self, text: str, said: list) -> bool:
        """One more call of a section whose calls have no marks."""
        calls, end = self._form.read(text, self._tools) or ([], 0)
        said += [Call(name, arguments) for name, arguments in calls]
        self._text = text[end:]
        return bool(calls)

    def _in_bare(self, said: list) -> bool:
        text = self._text.lstrip()
        if text and not self._form.may_begin(text, self._tools):
            said.append(self._text)
            self._text = ""
        return False

    def _bare_calls(self) -> list[Call]:
        """The calls that all of the text is, by the names of tools that were given."""
        text, found = self._text.strip(), []
        while text:
            calls, end = self._form.read(text, self._tools) or ([], 0)
            if not calls or any(name not in self._tools for name, _ in calls):
                return []
            found += [Call(name, arguments) for name, arguments in calls]
            text = text[end:].lstrip(" \n;")
        return found


def tool_grammar(tokenizer: Tokenizer, format: ToolFormat, tools: list[dict], parallel: bool) -> str:
    """A Lark grammar of answers that are calls of these tools and nothing else."""
    before = written(tokenizer, format.begins + format.opening)
    after = written(tokenizer, format.closing + format.ends)
    return f"start: {' '.join([*before, 'call', *after])}\n{format.form.rules(tokenizer, tools, parallel)}\n"
