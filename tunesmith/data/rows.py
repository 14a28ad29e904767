"""The types of one example. After `to_row`, no code depends on the file format of a row."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple


class Where(NamedTuple):
    """The place of a row, for messages. `line` is the 1-based line or row number in the file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Raw:
    """One record as read. `value` is its columns, or None if it could not be read; `problem` then says why."""

    where: Where
    value: dict | None
    problem: "RowProblem | None" = None


@dataclass(frozen=True)
class Chat:
    """A conversation. Messages have OpenAI's shape: a role (system, user, assistant or tool), `content` as a string,
    and optional `reasoning_content`, `tool_calls` (arguments as a mapping), `tool_call_id`, `name`, and `weight` (0 for
    an assistant turn that is not learned)."""

    messages: list[dict]
    tools: list[dict] | None = None

    kind: ClassVar[str] = "a conversation"


@dataclass(frozen=True)
class Text:
    """Plain text, for continued pretraining."""

    text: str

    kind: ClassVar[str] = "plain text"


Row = Chat | Text

# Why a row is dropped or changed: {key in the ledger: text for people}.
REASONS = {
    "broken_json": "not valid JSON",
    "unreadable": "cannot be read",
    "wrong_shape": "does not have the columns of its format",
    "empty_answer": "an assistant turn is empty",
    "unknown_role": "unknown role",
    "wrong_role_order": "its roles are in an order that is no conversation",
    "marked_bad": "its answer is marked as undesirable",
    "no_supervised_token": "no token to learn from",
    "template_refused": "the model's chat template refuses it",
    "mask_unproved": "its supervised tokens do not decode to the assistant's text",
    "part_unwritten": "the model's chat template drops a part that is to be learned",
    "control_tokens": "its text contains control tokens of the model; is a chat template already applied?",
    "too_long": "longer than sequence_length",
    "duplicate": "exact duplicate of an earlier row",
    "duplicate_of_eval": "duplicate of an evaluation row",
    "system_merged": "system turn moved into the user turn, because the template accepts no system turn",
    "systems_joined": "several system turns joined, because the template accepts only one",
    "system_moved": "later system turn moved into the next user turn, because the template accepts it only first",
    "turns_joined": "consecutive user turns joined, because the template wants roles to alternate",
    "greeting_dropped": "assistant turn before the first question dropped, because the template accepts none there",
    "calls_split": "parallel tool calls split into turns, because the template writes one call per turn",
    "reasoning_in_answer": "reasoning moved into the answer as <think> text, because the template has no place for it",
    "tools_unwritten": "the template drops the tools, so the model does not see them",
    "context_unwritten": "the template drops a part of the conversation before the answer",
    "prompt_differs": "learned after a different prompt than chat, serve and the report use",
    "indentation_kept": "indentation of an answer is learned although the template trims it",
    "end_token_removed": "end-of-turn token removed from the end of an answer, because the template writes its own",
    "turns_unused": "turns after the last learned answer are not used",
    "history_split": "one example per assistant turn, because the template rewrites earlier turns",
}


class RowProblem(Exception):
    """A row that cannot be used. `reason` is a key of REASONS; `detail` describes the problem."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def digest(row: Row) -> bytes:
    """Returns a 16-byte hash that is equal for rows of equal content."""
    return _hash([row.messages, row.tools] if isinstance(row, Chat) else row.text)


def prompt_digest(row: Row) -> bytes:
    """Returns a 16-byte hash that is equal for rows with the same prompt: the messages before the last assistant turn,
    without system turns, or the whole text."""
    if isinstance(row, Text):
        return digest(row)
    last = max((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), default=len(row.messages))
    return _hash([[m["role"], m.get("content")] for m in row.messages[:last] if m["role"] != "system"])


def _hash(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
