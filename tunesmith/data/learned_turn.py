"""Finds the text that the model must generate for one assistant turn, after the same prompt that inference uses.

The conversation is rendered up to this turn three times: with the turn, with a sentinel as the turn's content, and
without the turn as a generation prompt. The model must generate everything after that prompt, up to and including the
end-of-turn token.
"""

import json
import re
from collections import Counter
from functools import lru_cache
from os.path import commonprefix
from typing import NamedTuple

from tunesmith.data import reasoning
from tunesmith.data.conversation import leaves
from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer

SENTINEL = "Tunesmith9Answer4Goes7Here"
NEXT = "Tunesmith9Next4Turn7Here"
INDENTATION = re.compile(r"[ \t]{2,}|\t")


class Turn(NamedTuple):
    """An assistant turn as text. The model must generate `written` after `prompt`; the template puts `rest` after it.
    `head` is the beginning of `written` up to the content, which may contain reasoning."""

    prompt: str
    written: str
    rest: str
    head: str
    changes: list[str]


def learned_turn(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None) -> Turn:
    """Returns the last message, an assistant turn, as a Turn. `changes` are keys of `rows.REASONS`. Raises RowProblem
    if the template refuses the conversation, or if the turn cannot be found in its output with certainty."""
    prompt = tokenizer.render(messages[:-1], tools, add_generation_prompt=True)
    if messages[-1].get("tool_calls"):
        turn = _calls(tokenizer, messages, tools, prompt)
    else:
        turn = _answer(tokenizer, messages, tools, prompt)
    thought = (messages[-1].get("reasoning_content") or "").strip()
    if thought and thought in turn.head:
        return turn
    return turn._replace(written=_with_reasoning(tokenizer, turn.prompt, turn.written, thought))


def _answer(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, prompt: str) -> Turn:
    """Returns a turn that is text only."""
    message, changes = messages[-1], []
    probe = [*messages[:-1], {**message, "content": SENTINEL}]
    completion, marked = (_after_prompt(tokenizer, talk, tools, prompt) for talk in (messages, probe))
    if completion is None or marked is None:
        completion, marked, changes = (
            tokenizer.render(messages, tools),
            tokenizer.render(probe, tools),
            ["prompt_differs"],
        )
        prompt = marked.partition(SENTINEL)[0]
        completion, marked = completion[len(prompt) :], marked[len(prompt) :]
    head, *after = marked.split(SENTINEL)
    if len(after) != 1:
        raise RowProblem("mask_unproved", f"the template writes the assistant's text {len(after)} times")
    content = completion[len(head) : len(completion) - len(after[0])]
    exact = completion.startswith(head) and completion.endswith(after[0]) and len(head + after[0]) <= len(completion)
    if not exact or content not in message["content"] or content.strip() != message["content"].strip():
        raise RowProblem("mask_unproved", "the template changes the assistant's text")
    if indentation := _trimmed_indentation(content, message["content"]):
        content, changes = indentation + content, [*changes, "indentation_kept"]
    end = _end_of_turn(tokenizer, after[0])
    if end is None:
        followed = tokenizer.render([*probe, {"role": "user", "content": NEXT}], tools)
        end = _end_by_next_turn(tokenizer, followed.partition(SENTINEL)[2], after[0])
    rest = after[0][len(end) :] if after[0].startswith(end) else ""
    return Turn(prompt, head + content + end, rest, head, changes)


def _calls(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, prompt: str) -> Turn:
    """Returns a turn with tool calls, and with text beside them if there is any."""
    completion = _after_prompt(tokenizer, messages, tools, prompt)
    if completion is None:
        raise RowProblem("mask_unproved", "the turn with tool calls does not follow the generation prompt")
    _prove_calls(completion, messages[-1])
    written = completion.rstrip()
    if written.endswith(tuple(tokenizer.special_tokens)):
        return Turn(prompt, written, completion[len(written) :], written, [])
    results = [
        {"role": "tool", "content": NEXT} | ({"tool_call_id": call["id"]} if call.get("id") else {})
        for call in messages[-1]["tool_calls"]
    ]
    followed = tokenizer.render([*messages, *results], tools)
    last = written[-40:]
    after = followed[followed.rfind(last) + len(last) :] if last in followed else ""
    return Turn(prompt, written + _end_by_next_turn(tokenizer, after, written[-20:]), "", written, [])


def _after_prompt(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, prompt: str) -> str | None:
    """Returns the template's text after the generation prompt for the last turn, or None if the text does not continue
    the prompt. Some templates write the earlier turns differently once an answer follows. For those, only the text
    after the previous message is compared."""
    text = tokenizer.render(messages, tools)
    if text.startswith(prompt):
        return text[len(prompt) :]
    context = [*messages[:-2], {**messages[-2], "content": (messages[-2]["content"] or "") + NEXT}]
    prompted = tokenizer.render(context, tools, add_generation_prompt=True).split(NEXT)
    answered = tokenizer.render([*context, messages[-1]], tools).split(NEXT)
    if len(prompted) != 2 or len(answered) != 2:
        return None
    if (end := _prefix_end(prompted[1], answered[1])) is not None:
        return answered[1][end:]
    common = _whole_marks(commonprefix([prompted[1], answered[1]]))  # noqa: RUF071  texts, not paths
    if reasoning.opened(prompted[1]) is None and not reasoning.closed(prompted[1]):
        return None
    return reasoning.without_block(answered[1][len(common) :])


def _prefix_end(prefix: str, text: str) -> int | None:
    """Returns where `prefix` ends in `text`, ignoring whitespace, or None if `text` does not begin with it."""
    if text.startswith(prefix):
        return len(prefix)
    pattern = r"\s*".join(map(re.escape, "".join(prefix.split()))) + (r"\s*" if prefix[-1:].isspace() else "")
    same = re.match(pattern, text)
    return same.end() if same else None


def _whole_marks(text: str) -> str:
    """Removes from the end of text a mark that is cut off, or one that opens reasoning."""
    at = max(text.rfind("<"), text.rfind("["))
    is_cut = at >= 0 and ">" not in text[at:] and "]" not in text[at:]
    return text[:at] if at >= 0 and (is_cut or reasoning.opened(text) is not None) else text


def _trimmed_indentation(written: str, content: str) -> str:
    """Returns the indentation of the answer's first line, as in code, if the template trims it, else ""."""
    before = content[: len(content) - len(content.lstrip())].rpartition("\n")[2]
    is_code = INDENTATION.fullmatch(before) and content.strip()
    return before if is_code and not written[:1].isspace() else ""


@lru_cache(maxsize=1024)
def _end_of_turn(tokenizer: Tokenizer, after: str) -> str | None:
    """Returns the end-of-turn token at the beginning of `after`, with the whitespace before it, or None."""
    rest = after.lstrip()
    token = max((t for t in tokenizer.special_tokens if t and rest.startswith(t)), key=len, default=None)
    if token is None or token == tokenizer.bos_token != tokenizer.eos_token:
        return None
    end = len(after) - len(rest) + len(token)
    close = after[end:].split(None, 1)[0] if after[end:].strip() and not after[end].isspace() else ""
    if tokenizer.eos_token and tokenizer.eos_token in close:  # Cohere's ends the text, then the turn
        end += close.index(tokenizer.eos_token) + len(tokenizer.eos_token)
    return after[:end]


def _end_by_next_turn(tokenizer: Tokenizer, followed: str, alone: str) -> str:
    """Returns the token that ends a turn when only the next turn does so, such as GLM's role tokens. `followed` is the
    template's text after the answer when a turn follows, `alone` when none follows."""
    end = _end_of_turn(tokenizer, followed)
    if end is None:
        raise RowProblem("mask_unproved", f"no special token ends the assistant's turn, only {alone[:20]!r}")
    return end


def _with_reasoning(tokenizer: Tokenizer, prompt: str, written: str, thought: str) -> str:
    """Adds the reasoning to a turn if the template does not write it. R1's template, for one, opens reasoning in the
    prompt, and drops it from completed turns."""
    closing = reasoning.opened(prompt)
    if closing is not None:
        is_closed = written.lstrip().startswith(closing.strip())
        return thought + ("" if is_closed else closing) + written
    if not thought:
        return written
    if reasoning.closed(prompt):
        raise RowProblem("part_unwritten", "the generation prompt has no place for reasoning")
    marks = reasoning.marks(tokenizer)
    if marks is None:
        raise RowProblem("part_unwritten", "its reasoning")
    return marks.opening + thought + marks.closing + reasoning.without_block(written)


def _prove_calls(written: str, message: dict) -> None:
    """Raises RowProblem unless `written` has the text beside the calls and every name, key and value of the calls."""
    content = message["content"] or ""
    if content.strip() not in written:
        raise RowProblem("part_unwritten", f"the text beside its tool calls, {content[:60]!r}")
    names = Counter(call["function"]["name"] for call in message["tool_calls"])
    for name, count in names.items():
        if written.count(name) < count:
            raise RowProblem("part_unwritten", f"a call of {name}")
    for call in message["tool_calls"]:
        for leaf in leaves(call["function"]["arguments"]):
            if not any(form in written for form in _spellings(leaf)):
                raise RowProblem("part_unwritten", f"{leaf[:60]!r} of its call of {call['function']['name']}")


def _spellings(leaf: str) -> tuple[str, ...]:
    """Returns a text unchanged, and as JSON escapes it."""
    return leaf, leaf.strip(), json.dumps(leaf, ensure_ascii=False)[1:-1], json.dumps(leaf)[1:-1]
