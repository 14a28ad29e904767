"""Conversations on the server's disk: a folder each, with its questions, and a file for each answer.

An answer's file has one JSON object a line: `model` and `server` first, then `text` and `reasoning` as they come, and
`end` last. An answer that is continued has `resumed` behind its end, and then more. The file is locked while it is
written. So a reader continues at any offset, and an answer without an end and without a lock was cut off, as by a
studio that was killed.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from tunesmith.errors import UserError
from tunesmith.files import read_json, state_folder, write_json
from tunesmith.jobs.store import Store
from tunesmith.run import process_start, try_lock

KEEP = "keep_conversations"  # the setting
ID = re.compile(r"[0-9a-f]{12}")
TITLE_LENGTH = 60
EXCERPT_LENGTH = 80  # of the text around what was searched for


class Sampling(BaseModel):
    """How answers are computed. None: as the model says."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**53)
    reasoning_effort: str | None = None


class Turn(BaseModel):
    """A question with its answers: one, or one of each model that is compared."""

    id: str
    question: str
    images: list[str] = []
    """Data URLs."""
    asked: float
    """Unix seconds."""
    sampling: Sampling
    answers: list[str]
    marks: dict[str, Literal["right", "corrected"]] = {}
    """Answers that became training rows."""


class Conversation(BaseModel):
    """A conversation, as its file has it."""

    id: str
    title: str
    system: str
    created: float
    changed: float
    turns: list[Turn] = []


class Answer(BaseModel):
    """An answer, as far as it was written."""

    id: str
    server: str
    model: str
    text: str = ""
    reasoning: str = ""
    state: Literal["writing", "done", "stopped", "failed"]
    detail: str = ""
    """Why it failed, or what ended it: stop or length."""
    prompt_tokens: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    offset: int
    """Where its next part begins in its file, in bytes."""

    @property
    def is_cut_off(self) -> bool:
        """Whether it ended before the model ended it."""
        return self.state in ("stopped", "failed") or (self.state == "done" and self.detail == "length")


class ConversationRow(BaseModel):
    """A conversation in the list."""

    id: str
    title: str
    changed: float
    kept: bool
    """Whether it remains when the studio ends."""
    turns: int
    excerpt: str
    """The text around what was searched for."""


class Conversations:
    """All conversations. Only one studio changes them, and one at a time."""

    def __init__(self, store: Store):
        self._store = store
        self._kept, self._unkept = places()
        for folder in self._unkept.parent.glob("*"):  # of studios that were killed
            pid, _, started = folder.name.partition("-")
            if not pid.isdigit() or str(process_start(int(pid))) != started:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def keep(self) -> bool:
        """Whether new conversations remain when the studio ends."""
        return self._store.setting(KEEP) != "no"

    @keep.setter
    def keep(self, value: bool) -> None:
        self._store.set(KEEP, "yes" if value else "no")

    def close(self) -> None:
        shutil.rmtree(self._unkept, ignore_errors=True)

    def create(self, system: str) -> Conversation:
        now = time.time()
        made = Conversation(id=secrets.token_hex(6), title="", system=system, created=now, changed=now)
        folder = (self._kept if self.keep else self._unkept) / made.id
        folder.mkdir(parents=True, mode=0o700)
        self._write(folder, made)
        return made

    def read(self, name: str) -> Conversation:
        """Raises UserError if there is no such conversation."""
        return _read(self._folder(name))

    def save(self, conversation: Conversation) -> None:
        """Writes a changed conversation. Answers that it no longer has are removed."""
        folder = self._folder(conversation.id)
        conversation.changed = time.time()
        if not conversation.title and conversation.turns:
            conversation.title = " ".join(conversation.turns[0].question.split())[:TITLE_LENGTH]
        self._write(folder, conversation)
        kept = {answer for turn in conversation.turns for answer in turn.answers}
        for file in folder.glob("*.jsonl"):
            if file.stem not in kept:
                file.unlink()

    def delete(self, name: str) -> None:
        shutil.rmtree(self._folder(name))

    def answer_file(self, name: str, answer: str) -> Path:
        """The file of an answer, which need not be there yet. Raises UserError if the id is none."""
        if not ID.fullmatch(answer):
            raise UserError(f"there is no answer {answer}")
        return self._folder(name) / f"{answer}.jsonl"

    def search(self, text: str) -> list[ConversationRow]:
        """The conversations in which a text occurs, the last changed first; an empty one occurs in all."""
        found = []
        for folder, kept in self._folders():
            with suppress(UserError, OSError, ValueError):  # it is being deleted
                one = _read(folder)
                excerpt = _excerpt(_texts(folder, one), text.lower()) if text else ""
                if excerpt is not None:
                    facts = {"id": one.id, "title": one.title, "changed": one.changed, "turns": len(one.turns)}
                    found.append(ConversationRow(**facts, kept=kept, excerpt=excerpt))
        return sorted(found, key=lambda one: -one.changed)

    def _folders(self) -> Iterator[tuple[Path, bool]]:
        for place, kept in ((self._kept, True), (self._unkept, False)):
            yield from ((folder, kept) for folder in place.glob("*") if ID.fullmatch(folder.name))

    def _folder(self, name: str) -> Path:
        folders = [place / name for place in (self._kept, self._unkept)] if ID.fullmatch(name) else []
        for folder in folders:
            if folder.is_dir():
                return folder
        raise UserError(f"there is no conversation {name}; it may have been deleted")

    def _write(self, folder: Path, conversation: Conversation) -> None:
        write_json(folder / "conversation.json", conversation.model_dump())
        os.utime(folder.parent)  # tells those who follow that something in it has changed


def places() -> tuple[Path, Path]:
    """The folder of the conversations that are kept, and that of those which end with this process. The time of each
    folder changes with each change of a conversation."""
    folder = state_folder()
    return folder / "conversations", folder / "unkept" / f"{os.getpid()}-{process_start(os.getpid())}"


def changed(folder: Path | None) -> float | None:
    """When a conversation was changed, in Unix seconds; None if it was deleted or is damaged."""
    with suppress(UserError):
        return _read(folder).changed if folder else None
    return None


def read_answer(file: Path) -> Answer:
    """Reads an answer as far as it was written. Raises UserError if it is not there."""
    state = "writing" if is_locked(file) else "stopped"  # first, as it may end meanwhile
    values = {"text": "", "reasoning": "", "model": "", "server": ""}
    events, offset = read_events(file, 0)
    for event in events:
        for name in ("text", "reasoning"):
            values[name] += event.get(name, "")
        values |= {name: event[name] for name in ("model", "server") if name in event}
    end = events[-1].get("end") if events else None
    return Answer(**{"id": file.stem, "state": state, "offset": offset} | values | (end or {}))


def read_events(file: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of an answer's file from an offset on, and the offset behind them. Raises UserError."""
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            data = opened.read()
    except OSError:
        raise UserError(f"there is no answer {file.stem}; it may have been deleted") from None
    whole = data[: data.rfind(b"\n") + 1]
    return _parsed(whole), offset + len(whole)


def _parsed(data: bytes) -> list[dict[str, Any]]:
    """The objects of lines. One that a full disk cut short is left out."""
    found = []
    for line in data.split(b"\n"):
        with suppress(ValueError):
            event = json.loads(line)
            found += [event] if isinstance(event, dict) else []
    return found


def is_locked(file: Path) -> bool:
    """Whether a process writes the answer."""
    with suppress(OSError), file.open("rb") as opened:
        return try_lock(opened, fcntl.LOCK_SH) is False
    return False


def _read(folder: Path) -> Conversation:
    values = read_json(folder / "conversation.json")
    if values is None:
        raise UserError(f"there is no conversation {folder.name}; it may have been deleted")
    return Conversation(**values)


def _texts(folder: Path, conversation: Conversation) -> Iterator[str]:
    yield conversation.title
    for turn in conversation.turns:
        yield turn.question
        for answer in turn.answers:
            with suppress(UserError):
                events, _ = read_events(folder / f"{answer}.jsonl", 0)
                yield "".join(event.get("text", "") for event in events)


def _excerpt(texts: Iterator[str], wanted: str) -> str | None:
    for text in texts:
        place = text.lower().find(wanted)
        if place >= 0:
            return text[max(0, place - EXCERPT_LENGTH // 2) : place + len(wanted) + EXCERPT_LENGTH // 2]
    return None
