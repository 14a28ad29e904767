"""Conversations with served models, and training rows made from them."""

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from tunesmith.errors import UserError
from tunesmith.serve.registry import Entry
from tunesmith.studio import servers, training_rows, uploads
from tunesmith.studio.answers import Answering
from tunesmith.studio.conversations import (
    Answer,
    Conversation,
    ConversationRow,
    Conversations,
    Sampling,
    Turn,
    read_answer,
)
from tunesmith.studio.state import Studio
from tunesmith.studio.training_rows import PREFERRED, RIGHT


class TurnView(BaseModel):
    """A question with its answers as they are now."""

    id: str
    question: str
    images: list[str]
    """Data URLs."""
    asked: float
    sampling: Sampling
    """With the seed, which all its answers have in common."""
    answers: list[Answer]
    marks: dict[str, str]
    """Answers that became training rows: right or corrected."""


class ConversationView(BaseModel):
    """A conversation with all its answers as they are now."""

    id: str
    title: str
    system: str
    created: float
    changed: float
    turns: list[TurnView]


class NewConversation(BaseModel):
    system: str = ""
    """The system prompt; none if empty."""


class ConversationChange(BaseModel):
    title: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    system: str | None = None


class AskedModel(BaseModel):
    """A model of a server."""

    server: str
    model: str


class Question(BaseModel):
    """A question to ask."""

    question: Annotated[str, Field(min_length=1)] | None = None
    """None: that of the turn which is replaced."""
    images: Annotated[list[Annotated[str, Field(pattern="^data:image/")]], Field(max_length=8)] = []
    """Data URLs, for models that take images. Empty: those of the turn which is replaced."""
    models: Annotated[list[AskedModel], Field(min_length=1, max_length=2)]
    """Two are compared: they have the same seed, and neither sees the other's answers."""
    sampling: Sampling = Sampling()
    replaces: str | None = None
    """The turn that is asked again. It and all later ones are removed."""


class Continuation(BaseModel):
    """An answer to continue from where it was stopped or cut off."""

    answer: str
    """One of the last question."""
    server: str
    """A server that has the answer's model."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The longest addition; None: as long as the answer could be."""


class Mark(BaseModel):
    """An answer that becomes training rows."""

    turn: str
    answer: str
    corrected: Annotated[str, Field(min_length=1)] | None = None
    """How it should have been; None: it is right."""
    rejected: str | None = None
    """An answer of the same turn that is worse."""


class WrittenRow(BaseModel):
    """A row in a file."""

    file: str
    line: int
    is_new: bool
    """Whether it was not there before."""


class ChatSettings(BaseModel):
    keep: bool
    """Whether new conversations are kept on this machine's disk when the studio ends."""


class Chats:
    """The conversations and the answers that are being written."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.all = Conversations(studio.store)
        self.answering = Answering(studio)

    def view(self, name: str) -> ConversationView:
        one = self.all.read(name)
        return ConversationView(
            **one.model_dump(exclude={"turns"}),
            turns=[
                TurnView(**turn.model_dump(exclude={"answers"}), answers=self._answers(one, turn)) for turn in one.turns
            ],
        )

    def _answers(self, one: Conversation, turn: Turn) -> list[Answer]:
        files = [self.all.answer_file(one.id, answer) for answer in turn.answers]
        return [read_answer(file) for file in files if file.exists()]

    async def ask(self, name: str, asked: Question) -> ConversationView:
        """Asks a question. Raises UserError before anything is changed."""
        one = self.all.read(name)
        entries = [_served(model, with_images=bool(asked.images)) for model in asked.models]
        replaced = one.turns[_place(one, asked.replaces) :] if asked.replaces else []
        question = asked.question or (replaced[0].question if replaced else None)
        if not question:
            raise UserError("question: write one")
        if not replaced and any(answer.state == "writing" for answer in self._last(one)):
            raise UserError("an answer is still being written; wait for it, or stop it")
        await self.stop(name, [answer for turn in replaced for answer in turn.answers])
        one = self.all.read(name)  # it may have changed meanwhile
        place = _place(one, asked.replaces) if asked.replaces else len(one.turns)
        sampling = asked.sampling
        if sampling.seed is None:
            sampling = sampling.model_copy(update={"seed": secrets.randbelow(2**31)})
        answers = [secrets.token_hex(6) for _ in entries]
        images = asked.images or (replaced[0].images if replaced else [])
        turn = Turn(
            id=secrets.token_hex(6),
            question=question,
            images=images,
            asked=time.time(),
            sampling=sampling,
            answers=answers,
        )
        one.turns[place:] = [turn]
        self.all.save(one)
        for side, (answer, model) in enumerate(zip(answers, asked.models)):
            body = _request(model.model, self._prompt(one, turn, model.model, side), sampling)
            self.answering.begin(self.all.answer_file(name, answer), entries[side], body)
        return self.view(name)

    async def resume(self, name: str, asked: Continuation) -> ConversationView:
        """Continues an answer with the sampling of its question. The server gets its text as the beginning of the
        answer, without the reasoning. Raises UserError."""
        one = self.all.read(name)
        answer = next((answer for answer in self._last(one) if answer.id == asked.answer), None)
        if answer is None:
            raise UserError(f"the last question has no answer {asked.answer}; only its answers can be continued")
        if answer.state == "writing":
            raise UserError("the answer is still being written")
        if not answer.is_cut_off:
            raise UserError("the answer is complete; ask the next question, or regenerate it")
        if not answer.text:
            raise UserError("the answer has no text to continue from; regenerate it")
        turn = one.turns[-1]
        entry = _served(AskedModel(server=asked.server, model=answer.model))
        prompt = self._prompt(one, turn, answer.model, turn.answers.index(answer.id))
        begun = _said("assistant", answer.text) | {"prefix": True}
        sampling = turn.sampling.model_copy(update=asked.model_dump(include={"max_tokens"}, exclude_none=True))
        body = _request(answer.model, [*prompt, begun], sampling)
        await self.answering.resume(self.all.answer_file(name, answer.id), answer, entry, body)
        return self.view(name)

    def _last(self, one: Conversation) -> list[Answer]:
        return self._answers(one, one.turns[-1]) if one.turns else []

    def _prompt(self, one: Conversation, until: Turn, model: str, side: int) -> list[dict[str, Any]]:
        """The messages before an answer, with the earlier answers of the same model, or else of the same side. A turn
        whose answer is empty is left out."""
        messages = [{"role": "system", "content": one.system}] if one.system else []
        for turn in one.turns:
            if turn.id == until.id:
                break
            answers = self._answers(one, turn)
            own = next((answer for answer in answers if answer.model == model), None)
            chosen = own or (answers[min(side, len(answers) - 1)] if answers else None)
            if chosen and chosen.text:
                messages += [_asked(turn), _said("assistant", chosen.text)]
        return [*messages, _asked(until)]

    async def stop(self, name: str, answers: list[str] | None = None) -> None:
        """Stops answers, or all of a conversation."""
        chosen = [answer for turn in self.all.read(name).turns for answer in turn.answers]
        for answer in chosen if answers is None else answers:
            await self.answering.stop(self.all.answer_file(name, answer))

    async def mark(self, name: str, marked: Mark) -> list[WrittenRow]:
        """Writes training rows. Raises UserError."""
        one = self.all.read(name)
        turn = one.turns[_place(one, marked.turn)]
        answers = {answer.id: answer for answer in self._answers(one, turn)}
        try:
            answer, worse = answers[marked.answer], answers[marked.rejected] if marked.rejected else None
        except KeyError as error:
            raise UserError(f"the turn has no answer {error.args[0]}") from None
        good = _message(answer) if marked.corrected is None else _said("assistant", marked.corrected)
        if marked.corrected is None and (answer.state != "done" or answer.is_cut_off or not answer.text):
            raise UserError("the answer is not complete, so it cannot be marked as right; write how it should be")
        bad = worse or (answer if marked.corrected is not None else None)
        side = turn.answers.index(answer.id)
        prompt = self._prompt(one, turn, answer.model, side)
        if not all(isinstance(message["content"], str) for message in prompt):
            raise UserError("the conversation has images, which training rows cannot have")
        written = [await self._append(RIGHT, training_rows.right(prompt, good))]
        if bad and bad.text and bad.text != good["content"]:
            written.append(await self._append(PREFERRED, training_rows.preferred(prompt, good, _message(bad))))
        one = self.all.read(name)  # it may have changed meanwhile
        turn = one.turns[_place(one, marked.turn)]
        turn.marks[answer.id] = "right" if marked.corrected is None else "corrected"
        self.all.save(one)
        return written

    async def _append(self, name: str, row: dict[str, Any]) -> WrittenRow:
        """Writes a row into a file of the folder of uploads. It may be long, or locked by another process."""
        folder = self.studio.roots.folders[0] / uploads.FOLDER
        line, is_new = await run_in_threadpool(training_rows.append, folder / name, row)
        return WrittenRow(file=f"{uploads.FOLDER}/{name}", line=line, is_new=is_new)


def _request(model: str, messages: list[dict[str, Any]], sampling: Sampling) -> dict[str, Any]:
    """A request of OpenAI's API, streamed."""
    body = {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    return body | sampling.model_dump(exclude_none=True)


def _served(asked: AskedModel, with_images: bool = False) -> Entry:
    entry = servers.entry_of(asked.server)
    model = next((model for model in entry.models if model.name == asked.model), None)
    if model is None:
        raise UserError(f"the server {entry.id} has no model {asked.model}")
    if with_images and not model.images:
        raise UserError(f"{asked.model} takes text only; send the question without the image")
    return entry


def _place(one: Conversation, name: str) -> int:
    for place, turn in enumerate(one.turns):
        if turn.id == name:
            return place
    raise UserError(f"the conversation has no turn {name}; it may have been replaced")


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _asked(turn: Turn) -> dict[str, Any]:
    if not turn.images:
        return _said("user", turn.question)
    images = [{"type": "image_url", "image_url": {"url": url}} for url in turn.images]
    return {"role": "user", "content": [{"type": "text", "text": turn.question}, *images]}


def _message(answer: Answer) -> dict[str, Any]:
    return _said("assistant", answer.text) | ({"reasoning_content": answer.reasoning} if answer.reasoning else {})


def routes(studio: Studio) -> APIRouter:
    chats = Chats(studio)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await chats.answering.close()
        chats.all.close()

    router = APIRouter(tags=["conversations"], lifespan=lifespan)

    @router.get("/conversations", name="conversations")
    def search(text: Annotated[str, Query(alias="search")] = "") -> list[ConversationRow]:
        return chats.all.search(text)

    @router.post("/conversations")
    async def new_conversation(asked: NewConversation) -> ConversationView:
        return chats.view(chats.all.create(asked.system).id)

    @router.get("/conversations/{name}")
    def conversation(name: str) -> ConversationView:
        return chats.view(name)

    @router.post("/conversations/{name}")
    async def change_conversation(name: str, change: ConversationChange) -> ConversationView:
        one = chats.all.read(name)
        chats.all.save(one.model_copy(update=change.model_dump(exclude_none=True)))
        return chats.view(name)

    @router.delete("/conversations/{name}")
    async def delete_conversation(name: str) -> None:
        await chats.stop(name)
        chats.all.delete(name)

    @router.post("/conversations/{name}/ask")
    async def ask(name: str, asked: Question) -> ConversationView:
        return await chats.ask(name, asked)

    @router.post("/conversations/{name}/continue")
    async def continue_answer(name: str, asked: Continuation) -> ConversationView:
        return await chats.resume(name, asked)

    @router.post("/conversations/{name}/stop")
    async def stop_answers(name: str) -> ConversationView:
        await chats.stop(name)
        return chats.view(name)

    @router.get("/conversations/{name}/answers/{answer}", response_class=StreamingResponse)
    async def follow_answer(name: str, answer: str, offset: Annotated[int, Query(ge=0)] = 0) -> StreamingResponse:
        file = chats.all.answer_file(name, answer)
        read_answer(file)
        return StreamingResponse(chats.answering.follow(file, offset), media_type="text/event-stream")

    @router.post("/conversations/{name}/rows")
    async def add_rows(name: str, marked: Mark) -> list[WrittenRow]:
        return await chats.mark(name, marked)

    @router.get("/chat/settings")
    def chat_settings() -> ChatSettings:
        return ChatSettings(keep=chats.all.keep)

    @router.post("/chat/settings")
    def set_chat(settings: ChatSettings) -> ChatSettings:
        chats.all.keep = settings.keep
        return settings

    return router
