"""What the model has to write for one assistant turn, behind the very prompt that chat, serving and the report use.

The turn is rendered as the end of its conversation, once as it is, once with a sentinel for its content, once as a
generation prompt. What the model writes is everything behind that prompt, up to the token that ends the turn.
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
    """`written` is what the model has to write behind `prompt`, `rest` what the template puts behind that. `head` is
    what `written` begins with, up to the content: there reasoning stands."""

    prompt: str
    written: str
    rest: str
    head: str
    changes: list[str]


def learned_turn(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None) -> Turn:
    """The last of the messages, an assistant turn; `changes` are keys of `rows.REASONS`. Raises RowProblem if the
    template refuses the conversation, or what it writes cannot be shown to be the turn."""
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
    """A turn of text."""
    message, changes = messages[-1], []
    probe = [*messages[:-1], {**message, "content": SENTINEL}]
    behind, marked = (_behind(tokenizer, talk, tools, prompt) for talk in (messages, probe))
    if behind is None or marked is None:
        behind, marked, changes = tokenizer.render(messages, tools), tokenizer.render(probe, tools), ["prompt_differs"]
        prompt = marked.partition(SENTINEL)[0]
        behind, marked = behind[len(prompt) :], marked[len(prompt) :]
    head, *after = marked.split(SENTINEL)
    if len(after) != 1:
        raise RowProblem("mask_unproved", f"the template writes the assistant's text {len(after)} times")
    content = behind[len(head) : len(behind) - len(after[0])]
    exact = behind.startswith(head) and behind.endswith(after[0]) and len(head + after[0]) <= len(behind)
    if not exact or content not in message["content"] or content.strip() != message["content"].strip():
        raise RowProblem("mask_unproved", "the template does not write the assistant's text as it stands")
    if indentation := _trimmed_indentation(content, message["content"]):
        content, changes = indentation + content, [*changes, "indentation_kept"]
    end = _end_of_turn(tokenizer, after[0])
    if end is None:
        followed = tokenizer.render([*probe, {"role": "user", "content": NEXT}], tools)
        end = _end_by_next_turn(tokenizer, followed.partition(SENTINEL)[2], after[0])
    rest = after[0][len(end) :] if after[0].startswith(end) else ""
    return Turn(prompt, head + content + end, rest, head, changes)


def _calls(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, prompt: str) -> Turn:
    """A turn with tool calls, and text beside them if there is any."""
    behind = _behind(tokenizer, messages, tools, prompt)
    if behind is None:
        raise RowProblem("mask_unproved", "the turn with tool calls does not follow the generation prompt")
    _prove_calls(behind, messages[-1])
    written = behind.rstrip()
    if written.endswith(tuple(tokenizer.special_tokens)):
        return Turn(prompt, written, behind[len(written) :], written, [])
    results = [
        {"role": "tool", "content": NEXT} | ({"tool_call_id": call["id"]} if call.get("id") else {})
        for call in messages[-1]["tool_calls"]
    ]
    followed = tokenizer.render([*messages, *results], tools)
    last = written[-40:]
    after = followed[followed.rfind(last) + len(last) :] if last in followed else ""
    return Turn(prompt, written + _end_by_next_turn(tokenizer, after, written[-20:]), "", written, [])


def _behind(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, prompt: str) -> str | None:
    """What the template writes for the last turn behind the generation prompt. Templates that write the conversation
    before it differently once it is there are compared from the end of the message before it on. None if the turn does
    not follow the prompt."""
    text = tokenizer.render(messages, tools)
    if text.startswith(prompt):
        return text[len(prompt) :]
    context = [*messages[:-2], {**messages[-2], "content": (messages[-2]["content"] or "") + NEXT}]
    asked = tokenizer.render(context, tools, add_generation_prompt=True).split(NEXT)
    told = tokenizer.render([*context, messages[-1]], tools).split(NEXT)
    if len(asked) != 2 or len(told) != 2:
        return None
    if (end := _end_of_same(asked[1], told[1])) is not None:
        return told[1][end:]
    common = _whole_marks(commonprefix([asked[1], told[1]]))  # noqa: RUF071  texts, not paths
    if reasoning.opened(asked[1]) is None and not reasoning.closed(asked[1]):
        return None
    return reasoning.without_block(told[1][len(common) :])


def _end_of_same(asked: str, told: str) -> int | None:
    """Where `asked` ends in `told`, which begins with it up to whitespace; None if it does not."""
    if told.startswith(asked):
        return len(asked)
    pattern = r"\s*".join(map(re.escape, "".join(asked.split()))) + (r"\s*" if asked[-1:].isspace() else "")
    same = re.match(pattern, told)
    return same.end() if same else None


def _whole_marks(text: str) -> str:
    """Text without a mark that it ends within, or with which reasoning begins at its end."""
    at = max(text.rfind("<"), text.rfind("["))
    is_cut = at >= 0 and ">" not in text[at:] and "]" not in text[at:]
    return text[:at] if at >= 0 and (is_cut or reasoning.opened(text) is not None) else text


def _trimmed_indentation(written: str, content: str) -> str:
    """The indentation of the first line, as code has it, if the template does not write it."""
    before = content[: len(content) - len(content.lstrip())].rpartition("\n")[2]
    is_code = INDENTATION.fullmatch(before) and content.strip()
    return before if is_code and not written[:1].isspace() else ""


@lru_cache(maxsize=1024)
def _end_of_turn(tokenizer: Tokenizer, after: str) -> str | None:
    """The end-of-turn token that `after` begins with, whitespace before it included, or None."""
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
    """The token that ends a turn where nothing but the next turn does, as GLM's role tokens. `followed`: what the
    template writes behind the answer when a turn follows; `alone`: when none does."""
    end = _end_of_turn(tokenizer, followed)
    if end is None:
        raise RowProblem("mask_unproved", f"no special token ends the assistant's turn, only {alone[:20]!r}")
    return end


def _with_reasoning(tokenizer: Tokenizer, prompt: str, written: str, thought: str) -> str:
    """A turn with its reasoning, where the template does not write that itself: R1's opens it in the prompt, and leaves
    it out of turns that are over."""
    closing = reasoning.opened(prompt)
    if closing is not None:
        is_closed = written.lstrip().startswith(closing.strip())
        return thought + ("" if is_closed else closing) + written
    if not thought:
        return written
    if reasoning.closed(prompt):
        raise RowProblem("part_unwritten", "the generation prompt leaves no place for reasoning")
    marks = reasoning.marks(tokenizer)
    if marks is None:
        raise RowProblem("part_unwritten", "its reasoning")
    return marks.opening + thought + marks.closing + reasoning.without_block(written)


def _prove_calls(written: str, message: dict) -> None:
    """Raises RowProblem unless the text beside the calls and every name, key and value of theirs is written."""
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
    """A text as it stands, and as JSON writes it."""
    return leaf, leaf.strip(), json.dumps(leaf, ensure_ascii=False)[1:-1], json.dumps(leaf)[1:-1]
