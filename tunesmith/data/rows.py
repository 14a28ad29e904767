"""The shapes of one example. Past `to_row` nobody asks which file format a row came from."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple


class Where(NamedTuple):
    """Where a row stands, for messages: line is the 1-based line or row number in its file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Raw:
    """One record as read. `value` is its columns, or None where `problem` says why it could not be read."""

    where: Where
    value: dict | None
    problem: "RowProblem | None" = None


@dataclass(frozen=True)
class Chat:
    """A conversation. Messages are OpenAI-shaped: role system, user, assistant or tool, `content` a string,
    and where there are any `reasoning_content`, `tool_calls` (arguments as a mapping), `tool_call_id`, `name`, and
    `weight` (0: an assistant turn that is not learned)."""

    messages: list[dict]
    tools: list[dict] | None = None

    kind: ClassVar[str] = "a conversation"


@dataclass(frozen=True)
class Text:
    """Plain text, for continued pretraining."""

    text: str

    kind: ClassVar[str] = "plain text"


Row = Chat | Text

# Why a row is dropped or changed. Key: as in the ledger; value: as people read it.
REASONS = {
    "broken_json": "not valid JSON",
    "unreadable": "cannot be read",
    "wrong_shape": "does not have the columns of its format",
    "empty_answer": "an assistant turn is empty",
    "unknown_role": "unknown role",
    "wrong_role_order": "roles in an order that makes no conversation",
    "marked_bad": "marked as an answer not to give",
    "no_supervised_token": "no token to learn from",
    "template_refused": "the model's chat template refuses it",
    "mask_unproved": "its supervised tokens do not decode to the assistant's text",
    "part_unwritten": "the model's chat template does not write a part that is to be learned",
    "control_tokens": "its text holds control tokens of the model; is it written in a chat template already?",
    "too_long": "longer than sequence_length",
    "duplicate": "exact duplicate of an earlier row",
    "duplicate_of_eval": "duplicate of an evaluation row",
    "system_merged": "system turn moved into the user turn, as the template forbids one",
    "systems_joined": "several system turns written as one, as the template takes only one",
    "system_moved": "later system turn moved into the next user turn, as the template takes none there",
    "turns_joined": "neighbouring user turns written as one, as the template wants them to alternate",
    "greeting_dropped": "assistant turn before the first question left out, as the template takes none there",
    "calls_split": "parallel tool calls written one after the other, as the template writes one per turn",
    "reasoning_in_answer": "reasoning written into the answer as <think> text, as the template has no place for it",
    "tools_unwritten": "tools that the template does not write, so the model does not see them",
    "context_unwritten": "a part of the conversation before the answer that the template does not write",
    "prompt_differs": "learned behind another prompt than the one that chat, serve and the report use",
    "indentation_kept": "indentation of an answer, which the template trims, is learned as it stands",
    "end_token_removed": "end-of-turn token at the end of an answer, which the template writes itself",
    "turns_unused": "turns after the last learned answer, which are not used",
    "history_split": "one example per assistant turn, as the template rewrites history",
}


class RowProblem(Exception):
    """A row that cannot be used: `reason` is a key of REASONS, `detail` says what was found."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def digest(row: Row) -> bytes:
    """16 bytes that are equal for rows of equal content."""
    return _hash([row.messages, row.tools] if isinstance(row, Chat) else row.text)


def prompt_digest(row: Row) -> bytes:
    """16 bytes that are equal for rows that ask the same: all before the last assistant turn, or the whole text."""
    if isinstance(row, Text):
        return digest(row)
    last = max((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), default=len(row.messages))
    return _hash([[m["role"], m.get("content")] for m in row.messages[:last] if m["role"] != "system"])


def _hash(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
