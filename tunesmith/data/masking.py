"""Tokenizes conversations and marks the supervised tokens.

`conversation.py` fits a conversation to the chat template, and `learned_turn.py` finds the text that the model must
generate after the prompt. This module tokenizes both, and checks that the supervised tokens decode to the answers.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from tunesmith.data.conversation import Part, accepted
from tunesmith.data.learned_turn import learned_turn
from tunesmith.data.rows import Chat, RowProblem
from tunesmith.data.tokenizer import Tokenizer

Mask = Literal["assistant", "last", "all"]


@dataclass
class Example:
    """One token sequence. `supervised` is parallel to `ids`. `changes` are keys of `rows.REASONS`. `answer` is the
    position of the last answer, [start, end) of `ids`, and `asked` the user message that it answers."""

    ids: list[int]
    supervised: list[bool]
    changes: list[str] = field(default_factory=list)
    answer: tuple[int, int] = (0, 0)
    asked: str = ""

    def cut(self, start: int, end: int) -> "Example":
        """Returns an example with the tokens [start, end) of this one."""
        first, last = (min(max(at - start, 0), end - start) for at in self.answer)
        return Example(self.ids[start:end], self.supervised[start:end], self.changes, (first, last), self.asked)


Group = tuple[Example, ...]
"""Sequences that are learned together, such as two answers of which one is preferred; one for most methods."""


class Draft(NamedTuple):
    """An example before tokenization. `spans` are the learned ranges of `text` in characters, [start, end), and
    `answer` is that of the last answer."""

    text: str
    spans: list[tuple[int, int]]
    changes: list[str]
    answer: tuple[int, int] = (0, 0)
    asked: str = ""


def encode_chat(tokenizer: Tokenizer, chat: Chat, mask: Mask) -> list[Example]:
    """Returns the examples of a conversation: one, or one per learned turn if the template rewrites earlier turns.

    Raises RowProblem if there is nothing to learn, if the template refuses the conversation, or if the supervised
    tokens do not decode to the answers.
    """
    drafts = _drafts(tokenizer, chat, mask)
    try:
        return [_encode(tokenizer, draft) for draft in drafts]
    except RowProblem:
        if mask != "all":
            raise
    # With `all`, every token is learned, so only the answers need the check, each by itself: a tokenizer may change the
    # text around them, as sentencepiece does with "▁".
    encode_chat(tokenizer, chat, "assistant")
    return [_encode(tokenizer, draft, prove=False) for draft in drafts]


def encode_text(tokenizer: Tokenizer, text: str) -> Example:
    """Tokenizes plain text, all of it supervised, with bos before it if the tokenizer adds one, and eos after it."""
    ids, _ = tokenizer.encode(text)
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and ids[:1] != [tokenizer.bos_id] else []
    eos = [tokenizer.eos_id] if tokenizer.eos_id is not None and ids[-1:] != [tokenizer.eos_id] else []
    ids = bos + ids + eos
    return Example(ids, [True] * len(ids))


def _drafts(tokenizer: Tokenizer, chat: Chat, mask: Mask) -> list[Draft]:
    chat, changes = _without_end_tokens(tokenizer, chat)
    messages, forms, unwritten = accepted(tokenizer, chat)
    turns = _learned(messages, "last" if mask == "all" else mask)
    if not turns:
        raise RowProblem("no_supervised_token", "no assistant turn to learn from")
    changes += forms + _unwritten_context(unwritten, range(len(messages)) if mask == "all" else turns)
    drafts = [_draft(tokenizer, messages[: turn + 1], chat.tools) for turn in turns]
    if mask == "all":
        everything = _everything(tokenizer, tokenizer.render(messages, chat.tools), drafts[-1])
        return [_noted(everything, [*changes, *everything.changes])]
    if turns[-1] < len(messages) - 1:
        changes.append("turns_unused")
    whole = drafts[-1]
    if all(whole.text.startswith(draft.text[: draft.answer[1]]) for draft in drafts):
        changes += [change for draft in drafts for change in draft.changes]
        return [_noted(whole._replace(spans=[draft.answer for draft in drafts]), changes)]
    return [_noted(draft, [*changes, *draft.changes, "history_split"]) for draft in drafts]


def _noted(draft: Draft, changes: list[str]) -> Draft:
    return draft._replace(changes=list(dict.fromkeys(changes)))


def _draft(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None) -> Draft:
    """Returns the draft of a conversation whose last turn is learned."""
    turn = learned_turn(tokenizer, messages, tools)
    answer = (len(turn.prompt), len(turn.prompt) + len(turn.written))
    asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    return Draft(turn.prompt + turn.written + turn.rest, [answer], turn.changes, answer, asked)


def _everything(tokenizer: Tokenizer, text: str, last: Draft) -> Draft:
    """Returns a draft in which all text but bos is learned. `last` is the draft in which only the last answer is."""
    spans = [(_bos_length(tokenizer, text), len(text))]
    if text.startswith(last.text[: last.answer[1]]):
        return last._replace(text=text, spans=spans)
    return last._replace(text=text, spans=spans, answer=(0, 0), changes=["prompt_differs"])


def _unwritten_context(unwritten: list[Part], learned: Sequence[int]) -> list[str]:
    """Returns the reasons to record for parts that the template drops. Raises RowProblem if such a part is learned."""
    for part in unwritten:
        if part.message in learned:
            raise RowProblem("part_unwritten", str(part))
    notes = [
        "tools_unwritten" if part.message is None else "context_unwritten"
        for part in unwritten
        if part.message is None or part.message < max(learned)
    ]
    return list(dict.fromkeys(notes))


def _without_end_tokens(tokenizer: Tokenizer, chat: Chat) -> tuple[Chat, list[str]]:
    """Removes end-of-turn tokens from the end of answers, since the template writes its own. Raises RowProblem if a
    text contains another token that the template writes around turns, because it would begin or end a turn."""
    messages, changes = [], []
    for number, message in enumerate(chat.messages, 1):
        for key in ("content", "reasoning_content"):
            text = message.get(key) or ""
            ends = [token for token in _turn_tokens(tokenizer) if text.rstrip().endswith(token)]
            if key == "content" and ends and message["role"] == "assistant":
                text = text.rstrip().removesuffix(max(ends, key=len))
                message, changes = {**message, key: text}, ["end_token_removed"]
                if not text.strip() and not message.get("tool_calls"):
                    raise RowProblem("empty_answer", f"message {number} is {ends[0]} alone")
            if control := next((token for token in _turn_tokens(tokenizer) if token in text), None):
                raise RowProblem("control_tokens", f"{control} in message {number}")
        messages.append(message)
    return Chat(messages, chat.tools), changes


@lru_cache(maxsize=64)
def _turn_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Returns the special tokens that the template writes around the turns of a plain conversation."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    try:
        text = tokenizer.render(talk, add_generation_prompt=True) + tokenizer.render(talk[:2])
    except RowProblem:
        return ()
    return tuple(sorted(token for token in tokenizer.special_tokens if token and token in text))


def _learned(messages: list[dict], mask: Mask) -> list[int]:
    """Returns the indices of the turns to learn. Assistant turns before the first question are context."""
    first = next((i for i, m in enumerate(messages) if m["role"] in ("user", "tool")), len(messages))
    turns = [i for i, m in enumerate(messages) if i > first and m["role"] == "assistant" and m.get("weight", 1) != 0]
    return turns[-1:] if mask == "last" else turns


def _bos_length(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.bos_token) if tokenizer.bos_token and text.startswith(tokenizer.bos_token) else 0


def _encode(tokenizer: Tokenizer, draft: Draft, prove: bool = True) -> Example:
    ids, offsets = _tokenize(tokenizer, draft)
    supervised = [False] * len(ids)
    for start, end in draft.spans:
        first, last = (bisect_left(offsets, at, key=_start) for at in (start, end))
        if prove:
            _prove(tokenizer, ids, first, last, draft.text[start:end])
        supervised[first:last] = [True] * (last - first)
    if not any(supervised):
        raise RowProblem("no_supervised_token")
    begin, end = (bisect_left(offsets, at, key=_start) for at in draft.answer)
    return Example(ids, supervised, draft.changes, (begin, end), draft.asked)


def _start(offset: tuple[int, int]) -> int:
    return offset[0]


def _tokenize(tokenizer: Tokenizer, draft: Draft) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns ids and offsets of the text, with prompts and answers tokenized separately. Tokenized as one text, a
    token could cross the boundary, or the end of the prompt could be split differently than at inference."""
    cuts = sorted({start for start, _ in (*draft.spans, draft.answer) if start > 0})
    ids, offsets = tokenizer.encode(draft.text[: cuts[0]] if cuts else draft.text)
    for start, end in zip(cuts, [*cuts[1:], len(draft.text)]):
        more, places = tokenizer.encode_rest(draft.text[start:end])
        ids = ids + more
        offsets = offsets + [(a + start, b + start) for a, b in places]
    return ids, offsets


def _prove(tokenizer: Tokenizer, ids: list[int], first: int, last: int, text: str) -> None:
    """Raises RowProblem unless the tokens decode to the text, apart from the tokenizer's own normalization."""
    if tokenizer.decode(ids[first:last]) == text:
        return
    # Sentencepiece decoders drop a leading space, so decode the span together with the tokens before it.
    decoded = tokenizer.decode(ids[:last])[len(tokenizer.decode(ids[:first])) :]
    if decoded not in (text, tokenizer.expected(text)):
        raise RowProblem("mask_unproved", f"tokens decode to {decoded[:60]!r} instead of {text[:60]!r}")
