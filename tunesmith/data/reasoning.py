"""Reasoning in text: the marks that models and datasets put around it, and whether a prompt begins or ends it."""

import re
from functools import lru_cache
from typing import Any, NamedTuple

from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer

SPELLINGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
)
SWITCHES = ("enable_thinking", "thinking")  # template variables that say whether the model reasons
THOUGHT, ANSWER = "Tunesmith9Thinks", "Tunesmith9Says"
ASK = {"role": "user", "content": "Ask."}
CALL = {"id": "tunesmit1", "type": "function", "function": {"name": "probe", "arguments": {"probe": "a"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {"probe": {"type": "string", "description": "A text."}},
            "required": ["probe"],
        },
    },
}


class Marks(NamedTuple):
    """What stands before reasoning and between it and the answer, whitespace included."""

    opening: str
    closing: str


def split(content: str) -> tuple[str, str] | None:
    """(reasoning, the answer) of an answer that begins with reasoning between marks, also where only the closing one
    is there because the prompt opened it; None if there is none."""
    text = content.lstrip()
    for opening, closing in SPELLINGS:
        before, found, after = text.partition(closing)
        if found and (before.startswith(opening) or (opening not in before and closing == "</think>")):
            return before.removeprefix(opening).strip(), after.lstrip("\n")
    return None


def joined(reasoning: str, answer: str) -> str:
    """Reasoning and answer as one text, for templates that write no reasoning."""
    return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def opened(prompt: str) -> str | None:
    """What closes the reasoning that a generation prompt opens, or None if it opens none."""
    text = prompt.rstrip()
    for opening, closing in SPELLINGS:
        if text.endswith(opening):
            space = prompt[len(text) :]
            return f"{space}{closing}{2 * space}"
    return None


def closed(prompt: str) -> bool:
    """Whether a generation prompt ends with reasoning that is over, so that the answer has none."""
    return prompt.rstrip().endswith(tuple(closing for _, closing in SPELLINGS))


def without_block(text: str) -> str:
    """Text without the reasoning, marks included, that it begins with."""
    for opening, closing in SPELLINGS:
        if text.lstrip().startswith((opening, closing)) and closing in text:
            return text.partition(closing)[2].lstrip("\n")
    return text


@lru_cache(maxsize=64)
def has_place(tokenizer: Tokenizer) -> bool:
    """Whether the chat template has a form of its own for reasoning, in a message or in the generation prompt."""
    prompt = _prompt(tokenizer)
    answer, *_ = _probes(tokenizer)
    return THOUGHT in answer or marks(tokenizer) is not None or opened(prompt) is not None or closed(prompt)


@lru_cache(maxsize=64)
def marks(tokenizer: Tokenizer) -> Marks | None:
    """The marks in which the template writes reasoning, if they are known ones. Some templates write it only before a
    tool call, or leave an empty place for it; the same marks hold before an answer."""
    for text in _probes(tokenizer):
        for opening, closing in SPELLINGS:
            found = re.search(rf"{re.escape(opening)}(\s*)(?:{THOUGHT})?(\s*){re.escape(closing)}(\s*)", text)
            if found and (THOUGHT in found[0] or text[found.end() :].startswith(ANSWER)):
                before, after, behind = found.groups()
                return Marks(opening + before, after + closing + (behind if ANSWER in text else ""))
    return None


def switch(tokenizer: Tokenizer) -> str | None:
    """The template variable that says whether the model reasons, if the template has one."""
    return next((name for name in SWITCHES if name in tokenizer.template_variables), None)


def switched(tokenizer: Tokenizer, switch: str, wanted: bool) -> dict:
    """The value of the switch under which the generation prompt asks for reasoning, or for none; {} where that is so
    without it."""
    if not wanted:
        return {switch: False}
    default, on, off = (_prompt(tokenizer, **values) for values in ({}, {switch: True}, {switch: False}))
    return {switch: True} if default == off != on else {}


def _prompt(tokenizer: Tokenizer, **variables: Any) -> str:
    try:
        return tokenizer.render([ASK], add_generation_prompt=True, **variables)
    except RowProblem:
        return ""


def _probes(tokenizer: Tokenizer) -> list[str]:
    """An answer with reasoning, one with both as parts of its content, and a tool call with reasoning, as the template
    writes them; "" where it refuses."""
    answer = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    parts = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}],
    }
    call = {"role": "assistant", "content": "", "reasoning_content": THOUGHT, "tool_calls": [CALL]}
    found = []
    for message, tools in ((answer, None), (parts, None), (call, [TOOL])):
        try:
            found.append(tokenizer.render([ASK, message], tools))
        except RowProblem:
            found.append("")
    return found
