"""Reasoning in text: the marks that models and datasets put around it, and whether a prompt opens or closes it."""

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
    """The text before reasoning, and the text between reasoning and the answer, whitespace included."""

    opening: str
    closing: str


def split(content: str) -> tuple[str, str] | None:
    """Splits a content that begins with reasoning into (reasoning, answer). The opening mark may be missing, since a
    prompt may have written it. Returns None if there is no reasoning."""
    text = content.lstrip()
    for opening, closing in SPELLINGS:
        before, mark, after = text.partition(closing)
        if mark and (before.startswith(opening) or (opening not in before and closing == "</think>")):
            return before.removeprefix(opening).strip(), after.lstrip("\n")
    return None


def joined(reasoning: str, answer: str) -> str:
    """Joins reasoning and answer into one text, for templates without a place for reasoning."""
    return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def opened(prompt: str) -> str | None:
    """Returns the text that closes the reasoning opened by a generation prompt, or None if the prompt opens none."""
    text = prompt.rstrip()
    for opening, closing in SPELLINGS:
        if text.endswith(opening):
            space = prompt[len(text) :]
            return f"{space}{closing}{2 * space}"
    return None


def closed(prompt: str) -> bool:
    """Whether a generation prompt ends with closed reasoning, so that the answer has none."""
    return prompt.rstrip().endswith(tuple(closing for _, closing in SPELLINGS))


def without_block(text: str) -> str:
    """Removes the reasoning, with its marks, from the beginning of a text."""
    for opening, closing in SPELLINGS:
        if text.lstrip().startswith((opening, closing)) and closing in text:
            return text.partition(closing)[2].lstrip("\n")
    return text


@lru_cache(maxsize=64)
def has_place(tokenizer: Tokenizer) -> bool:
    """Whether the chat template supports reasoning, in a message or in the generation prompt."""
    prompt = _prompt(tokenizer)
    answer, *_ = _probes(tokenizer)
    return THOUGHT in answer or marks(tokenizer) is not None or opened(prompt) is not None or closed(prompt)


@lru_cache(maxsize=64)
def marks(tokenizer: Tokenizer) -> Marks | None:
    """Returns the marks that the template writes around reasoning, or None if it writes none of the known ones. Some
    templates write reasoning only before a tool call, or write empty marks; an answer then uses the same marks."""
    for text in _probes(tokenizer):
        for opening, closing in SPELLINGS:
            match = re.search(rf"{re.escape(opening)}(\s*)(?:{THOUGHT})?(\s*){re.escape(closing)}(\s*)", text)
            if match and (THOUGHT in match[0] or text[match.end() :].startswith(ANSWER)):
                before, after, trailing = match.groups()
                return Marks(opening + before, after + closing + (trailing if ANSWER in text else ""))
    return None


def switch(tokenizer: Tokenizer) -> str | None:
    """Returns the template variable that turns reasoning on or off, or None if the template has none."""
    return next((name for name in SWITCHES if name in tokenizer.template_variables), None)


def switched(tokenizer: Tokenizer, switch: str, wanted: bool) -> dict:
    """Returns the template variables that turn reasoning on or off; {} where turning it on changes nothing."""
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
    """Renders an answer with reasoning, an answer with reasoning as a part of its content, and a tool call with
    reasoning. A text is "" if the template refuses it."""
    answer = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    parts = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}],
    }
    call = {"role": "assistant", "content": "", "reasoning_content": THOUGHT, "tool_calls": [CALL]}
    texts = []
    for message, tools in ((answer, None), (parts, None), (call, [TOOL])):
        try:
            texts.append(tokenizer.render([ASK, message], tools))
        except RowProblem:
            texts.append("")
    return texts
