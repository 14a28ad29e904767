"""Which tokens are learned: worked out from the chat template, and proved.

Nothing here knows a model family. Each assistant turn is rendered as the end of its conversation, once as it is, once
with a sentinel for its content, once as a generation prompt; what differs is what the model has to write.
"""

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from tunesmith.data.rows import Chat, RowProblem
from tunesmith.data.tokenizer import Tokenizer

Mask = Literal["assistant", "last", "all"]
SENTINEL = "Tunesmith9Answer4Goes7Here"


@dataclass
class Example:
    """One token sequence. `supervised` is parallel to `ids`; `changes` are keys of `rows.REASONS`; `answer` is where
    its last answer stands, as [start, end) of ids, and `asked` what that answers, as people read it."""

    ids: list[int]
    supervised: list[bool]
    changes: list[str] = field(default_factory=list)
    answer: tuple[int, int] = (0, 0)
    asked: str = ""

    def cut(self, start: int, end: int) -> "Example":
        """Its tokens [start, end)."""
        first, last = (min(max(at - start, 0), end - start) for at in self.answer)
        return Example(self.ids[start:end], self.supervised[start:end], self.changes, (first, last), self.asked)


class Draft(NamedTuple):
    """An example before it is tokenised: text, which of its characters [start, end) are learned, its last answer."""

    text: str
    spans: list[tuple[int, int]]
    changes: list[str]
    answer: tuple[int, int] = (0, 0)
    asked: str = ""


def encode_chat(tokenizer: Tokenizer, chat: Chat, mask: Mask) -> list[Example]:
    """The examples of a conversation: one, or one per learned turn where the template rewrites history.

    Raises RowProblem if there is nothing to learn, the template refuses, or the mask cannot be proved.
    """
    drafts = _drafts(tokenizer, chat, mask)
    try:
        return [_encode(tokenizer, draft) for draft in drafts]
    except RowProblem:
        if mask != "all":
            raise
    # With `all` there is no question which tokens are learned. What has to be proved are the answers, each by itself:
    # a tokenizer may change what stands around them, as sentencepiece does "▁".
    encode_chat(tokenizer, chat, "assistant")
    return [_encode(tokenizer, draft, prove=False) for draft in drafts]


def encode_text(tokenizer: Tokenizer, text: str) -> Example:
    """Plain text, all learned, between bos, if the tokenizer puts one, and eos."""
    ids, _ = tokenizer.encode(text)
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and ids[:1] != [tokenizer.bos_id] else []
    eos = [tokenizer.eos_id] if tokenizer.eos_id is not None and ids[-1:] != [tokenizer.eos_id] else []
    ids = bos + ids + eos
    return Example(ids, [True] * len(ids))


def thinking_kwargs(tokenizer: Tokenizer, has_reasoning: bool) -> dict:
    """Template variables under which the generation prompt is what training on this data saw."""
    return {"enable_thinking": False} if not has_reasoning and "enable_thinking" in tokenizer.chat_template else {}


def _drafts(tokenizer: Tokenizer, chat: Chat, mask: Mask) -> list[Draft]:
    messages, changes = accepted(tokenizer, chat)
    turns = _learned(messages, "last" if mask == "all" else mask)
    if not turns:
        raise RowProblem("no_supervised_token", "no assistant turn to learn from")
    drafts = [_draft(tokenizer, messages[:turn + 1], chat.tools, changes) for turn in turns]
    if mask == "all":
        return [_everything(tokenizer, tokenizer.render(messages, chat.tools), drafts[-1])]
    if turns[-1] < len(messages) - 1:
        changes.append("turns_unused")
    if any(_loses_reasoning(messages[turn], draft) for turn, draft in zip(turns, drafts)):
        changes.append("reasoning_dropped")
    whole = drafts[-1].text
    if all(whole.startswith(draft.text[:draft.spans[0][1]]) for draft in drafts):
        return [drafts[-1]._replace(spans=[draft.answer for draft in drafts])]
    return [draft._replace(changes=[*changes, "history_split"]) for draft in drafts]


def _draft(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None, changes: list[str]) -> Draft:
    """Of a conversation whose last turn is learned."""
    text, spans = _answer(tokenizer, messages, tools)
    asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    return Draft(text, spans, changes, spans[0], asked)


def _everything(tokenizer: Tokenizer, text: str, last: Draft) -> Draft:
    """All of a conversation learned but bos; its last answer is where it is when only that is learned."""
    answer = last.answer if text.startswith(last.text[:last.answer[1]]) else (0, 0)
    return last._replace(text=text, spans=[(_bos_length(tokenizer, text), len(text))], answer=answer)


def _loses_reasoning(message: dict, draft: Draft) -> bool:
    return message.get("reasoning_content", "").strip() not in draft.text[slice(*draft.answer)]


def accepted(tokenizer: Tokenizer, chat: Chat) -> tuple[list[dict], list[str]]:
    """The messages, with the system turn merged where the template has no place for it, and what was changed."""
    if [m["role"] for m in chat.messages[:2]] != ["system", "user"] or _keeps_system(tokenizer, chat):
        return chat.messages, []
    system, user, *rest = chat.messages
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest], ["system_merged"]


def _keeps_system(tokenizer: Tokenizer, chat: Chat) -> bool:
    """Whether the template writes the system turn; some refuse one, some skip it without a word."""
    system, *others = chat.messages
    try:
        text = tokenizer.render(chat.messages, chat.tools)
    except RowProblem:
        return False
    return system["content"].strip() in text or text != tokenizer.render(others, chat.tools)


def _learned(messages: list[dict], mask: Mask) -> list[int]:
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1) != 0]
    return turns[-1:] if mask == "last" else turns


def _answer(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as text, and the span of its last turn that the model has to write."""
    text = tokenizer.render(messages, tools)
    prompt = tokenizer.render(messages[:-1], tools, add_generation_prompt=True)
    if messages[-1].get("tool_calls"):
        return text, [(_after(text, prompt), _last_special_end(tokenizer, text))]
    before, after = _around(tokenizer, messages, tools)
    content_end = len(text) - len(after)
    end = content_end + len(_closing(tokenizer, after))
    led = text.startswith(prompt)
    exact = text.startswith(before) and text.endswith(after) and content_end >= len(before)
    if exact and _is_trimmed(text[len(before):content_end], messages[-1]["content"]):
        if not led and messages[-1].get("reasoning_content"):
            raise RowProblem("mask_unproved", "the generation prompt leaves no place for reasoning")
        return text, [(len(prompt) if led else len(before), end)]
    # Templates take `<think>` out of the content and write it anew, with other whitespace.
    if led and text.endswith(after) and _squeezed(text[len(prompt):content_end]) == _squeezed(messages[-1]["content"]):
        return text, [(len(prompt), end)]
    raise RowProblem("mask_unproved", "the template does not write the assistant's text as it stands")


def _around(tokenizer: Tokenizer, messages: list[dict], tools: list[dict] | None) -> tuple[str, str]:
    """What the template writes before and after the content of the last turn."""
    before, *after = tokenizer.render([*messages[:-1], {**messages[-1], "content": SENTINEL}], tools).split(SENTINEL)
    if len(after) != 1:
        raise RowProblem("mask_unproved", f"the template writes the assistant's text {len(after)} times")
    return before, after[0]


def _after(text: str, prompt: str) -> int:
    if not text.startswith(prompt):
        raise RowProblem("mask_unproved", "the turn with tool calls does not go on from the generation prompt")
    return len(prompt)


def _last_special_end(tokenizer: Tokenizer, text: str) -> int:
    text = text.rstrip()
    if not text.endswith(tuple(tokenizer.special_tokens)):
        raise RowProblem("mask_unproved", f"no special token ends the turn, only {text[-20:]!r}")
    return len(text)


@lru_cache(maxsize=1024)
def _closing(tokenizer: Tokenizer, after: str) -> str:
    """The end-of-turn token that `after` begins with, whitespace before it included."""
    rest = after.lstrip()
    token = max((t for t in tokenizer.special_tokens if rest.startswith(t)), key=len, default=None)
    if token is None or token == tokenizer.bos_token != tokenizer.eos_token:
        raise RowProblem("mask_unproved", f"no special token ends the assistant's turn, only {after[:20]!r}")
    return after[:len(after) - len(rest) + len(token)]


def _is_trimmed(written: str, content: str) -> bool:
    return written in content and written.strip() == content.strip()


def _squeezed(text: str) -> str:
    return "".join(text.split())


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
    answer = tuple(bisect_left(offsets, at, key=_start) for at in draft.answer)
    return Example(ids, supervised, draft.changes, answer, draft.asked)


def _start(offset: tuple[int, int]) -> int:
    return offset[0]


def _tokenize(tokenizer: Tokenizer, draft: Draft) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of the text, prompt and answer apart: as one text a token may reach over where they meet, or the
    end of the prompt be split in another way than it is when the model is asked."""
    cuts = sorted({start for start, _ in (*draft.spans, draft.answer) if start > 0})
    ids, offsets = tokenizer.encode(draft.text[:cuts[0]] if cuts else draft.text)
    for start, end in zip(cuts, [*cuts[1:], len(draft.text)]):
        more, places = tokenizer.encode_rest(draft.text[start:end])
        ids = ids + more
        offsets = offsets + [(a + start, b + start) for a, b in places]
    return ids, offsets


def _prove(tokenizer: Tokenizer, ids: list[int], first: int, last: int, text: str) -> None:
    """Raises RowProblem unless the tokens decode to the text, up to what the tokenizer itself changes."""
    if tokenizer.decode(ids[first:last]) == text:
        return
    # Sentencepiece decoders drop a space at the start, so look at it within what stands before.
    decoded = tokenizer.decode(ids[:last])[len(tokenizer.decode(ids[:first])):]
    if decoded not in (text, tokenizer.expected(text)):
        raise RowProblem("mask_unproved", f"tokens decode to {decoded[:60]!r} instead of {text[:60]!r}")
