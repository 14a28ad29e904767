"""Connects the APIs with the engine: turns requests into prompts, sampling settings and constraints, and tokens into
text, reasoning and tool calls."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool

from tunesmith.answer_formats.format import Call, Reader, Thought, find
from tunesmith.data.conversation import generation_prompt
from tunesmith.data.rows import Chat, RowProblem
from tunesmith.errors import UserError
from tunesmith.inference import grammar
from tunesmith.inference.interface import Engine, Form, Piece, Refused, Request, Served, Token
from tunesmith.serve.options import Options, sampling_of
from tunesmith.serve.registry import ServedModel

RESERVED = {"messages", "tools", "add_generation_prompt", "chat_template", "conversations"}


@dataclass
class GenerationRequest:
    """A conversation to answer, in the same form for every API. `tool_choice` is auto, none, required or a tool's name.
    `form` constrains the answer, `template` has further variables for the chat template, `prefill` is the beginning of
    the answer."""

    model: str | None
    messages: list[dict]
    options: Options
    tools: list[dict] = field(default_factory=list)
    tool_choice: str = "auto"
    parallel: bool = True
    form: Form | None = None
    template: dict = field(default_factory=dict)
    prefill: str = ""
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    n: int = 1
    stream: bool = False

    @property
    def demands_call(self) -> bool:
        return bool(self.tools) and self.tool_choice not in ("auto", "none")

    @property
    def begins(self) -> bool:
        """Whether the answer starts without reasoning, because it is constrained to a form or already begun."""
        return self.demands_call or self.form is not None or bool(self.prefill)


@dataclass
class TextDelta:
    """A piece of an answer's text, with its tokens if log probabilities were requested."""

    text: str
    tokens: list[Token]


@dataclass
class Answer:
    """An answer. `finish` is stop, length or tool_calls once it is complete."""

    text: str = ""
    reasoning: str = ""
    tokens: list[Token] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish: str = ""
    stop_text: str | None = None
    stop_token: Token | None = None
    generated: int = 0
    cached: int = 0


class Answers:
    """The answers to one HTTP request, generated together. `prompt_tokens` counts the tokens of all prompts. Without
    `parallel`, an answer ends after its first tool call."""

    def __init__(self, engine: Engine, requests: list[Request], readers: list[Reader], parallel: bool = True):
        if len(requests) > engine.capacity:
            raise Refused(
                f"{len(requests):,} answers in one request; this server takes {engine.capacity:,} at once "
                "(--batch and --queue): request fewer",
                code="too_many_answers",
            )
        self.prompt_tokens = sum(len(ids) for ids in {id(r.ids): r.ids for r in requests}.values())
        self.done = [Answer() for _ in requests]
        self._readers, self._parallel = readers, parallel
        self._tokenizer = engine.models[requests[0].model].tokenizer
        self._queue: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._tickets = []
        try:
            for index, request in enumerate(requests):
                self._tickets.append(engine.submit(request, lambda piece, index=index: self._arrive(index, piece)))
        except Refused:
            self.cancel()
            raise

    @property
    def generated(self) -> int:
        return sum(answer.generated for answer in self.done)

    @property
    def cached(self) -> int:
        return max(answer.cached for answer in self.done)

    @property
    def reasoning_tokens(self) -> int:
        """The number of tokens in the text of the reasoning, without its marks."""
        return sum(len(self._tokenizer.encode(answer.reasoning)[0]) for answer in self.done if answer.reasoning)

    def cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, TextDelta | Thought | Call | Answer]]:
        """Yields (index of the answer, event). The last event of each answer is its Answer. Ending the iteration
        cancels the generation."""
        left = len(self._tickets)
        try:
            while left:
                index, piece = await self._queue.get()
                if self.done[index].finish:  # it has ended with a call
                    continue
                for event in self._read(index, piece):
                    yield index, event
                left -= bool(self.done[index].finish)
        finally:
            self.cancel()

    async def collect(self, http: HttpRequest) -> list[Answer]:
        """Returns all answers when they are complete. If the client disconnects, cancels them and raises Refused."""
        work = asyncio.ensure_future(self._exhaust())
        gone = asyncio.ensure_future(_disconnected(http))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Refused("the client disconnected", 499)
            return work.result()
        finally:
            self.cancel()
            work.cancel()
            gone.cancel()

    async def _exhaust(self) -> list[Answer]:
        async for _ in self.events():
            pass
        return self.done

    def _arrive(self, index: int, piece: Piece) -> None:
        """Queues a piece of an answer. Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))
        except RuntimeError:
            if not self._loop.is_closed():  # a closed loop means that the server has ended
                raise

    def _read(self, index: int, piece: Piece) -> list[TextDelta | Thought | Call | Answer]:
        answer, reader = self.done[index], self._readers[index]
        parts = reader.push(piece.text) + (reader.finish() if piece.finish is not None else [])
        events: list = [TextDelta(part, []) if isinstance(part, str) else part for part in parts]
        if piece.tokens:
            first = next((e for e in events if isinstance(e, TextDelta)), None)
            if first is None:
                events.insert(0, first := TextDelta("", []))
            first.tokens = piece.tokens
        events = [e for e in events if isinstance(e, Call) or e.text or e.tokens]
        first_call = next((n for n, e in enumerate(events) if isinstance(e, Call)), None)
        ends = first_call is not None and not self._parallel
        if ends:
            events = events[: first_call + 1]
        for event in events:
            if isinstance(event, Call):
                answer.calls.append(event)
            elif isinstance(event, Thought):
                answer.reasoning += event.text
            else:
                answer.text += event.text
                answer.tokens += event.tokens
        answer.generated, answer.cached = max(answer.generated, piece.generated), piece.cached
        if ends:
            answer.finish = "tool_calls"
            self._tickets[index].cancel()
            events.append(answer)
        elif piece.finish is not None:
            events.append(self._ended(answer, piece))
        return events

    @staticmethod
    def _ended(answer: Answer, piece: Piece) -> Answer:
        if piece.finish == "error":
            raise Refused(f"generating the answer failed: {piece.error}", 500, "engine_failed")
        if piece.finish == "cancelled":
            raise Refused("the answer was cancelled: the server is stopping", 503, "stopping")
        answer.finish = "tool_calls" if answer.calls and piece.finish == "stop" else piece.finish
        answer.stop_text, answer.stop_token = piece.stop_text, piece.stop_token
        return answer


class Service:
    """The engine and the answer format of each of its models."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.formats = {name: find(served.tokenizer) for name, served in engine.models.items()}

    def served(self, name: str | None) -> Served:
        """Returns a model by its name, or the first if the name is None. Raises Refused if there is no such model."""
        models = self.engine.models
        if name is None:
            return next(iter(models.values()))
        if name not in models:
            raise Refused(
                f"this server has no model {name!r}, only {', '.join(models)}", 404, "model_not_found", "model"
            )
        return models[name]

    def facts(self) -> tuple[ServedModel, ...]:
        """The models for clients. None takes images: the prompt is text."""
        return tuple(
            ServedModel(one.name, one.kind, one.base, one.context, format.writes_calls, format.writes_reasoning)
            for one, format in ((one, self.formats[name]) for name, one in self.engine.models.items())
        )

    def prompt(self, generation: GenerationRequest) -> tuple[str, list[int]]:
        """Returns the prompt as text and as ids, rendered and tokenized as in training. Raises Refused if the template
        refuses the conversation."""
        served = self.served(generation.model)
        format = self.formats[served.name]
        if wrong := sorted(RESERVED & set(generation.template)):
            raise Refused(f"chat_template_kwargs: {wrong[0]} is set by the server", parameter="chat_template_kwargs")
        try:
            given = [format.message(message) for message in named_results(generation.messages)]
            text = generation_prompt(served.tokenizer, Chat(given, generation.tools or None), **generation.template)
            text += format.begin(text, generation.demands_call) + generation.prefill if generation.begins else ""
            return text, served.tokenizer.encode(text)[0]
        except (RowProblem, UserError) as problem:
            detail = getattr(problem, "detail", None) or str(problem)
            raise Refused(
                f"the model's template refuses this conversation: {detail}",
                code="template_refused",
                parameter="messages",
            ) from None

    async def answers(self, generation: GenerationRequest) -> Answers:
        """Submits a conversation to the engine. Raises Refused."""
        requests, readers = await run_in_threadpool(self._requests, generation)
        return Answers(self.engine, requests, readers, generation.parallel)

    def _requests(self, generation: GenerationRequest) -> tuple[list[Request], list[Reader]]:
        served = self.served(generation.model)
        format = self.formats[served.name]
        if generation.tool_choice == "none":
            generation.tools = []
        if generation.tools and not format.writes_calls:
            raise Refused(
                f"the template of {served.name} does not write tool calls in a form that this server reads",
                code="tools_unsupported",
                parameter="tools",
            )
        text, ids = self.prompt(generation)
        constraint = self.constraint(served, generation)
        requests = self.requests(
            served,
            ids,
            generation,
            format.shown(bool(generation.tools)),
            constraint,
            continues=bool(generation.prefill),
        )
        begun = generation.begins and not generation.demands_call
        return requests, [format.reader(text, begun, generation.tools) for _ in requests]

    def requests(
        self,
        served: Served,
        ids: list[int],
        generation: GenerationRequest,
        shown=frozenset(),
        constraint=None,
        default_tokens: int | None = None,
        continues: bool = False,
    ) -> list[Request]:
        """Returns one engine request for each of the n answers. Raises Refused if the prompt fills the context."""
        room = served.context - len(ids)
        if not ids:
            raise Refused("the prompt is empty", parameter="prompt")
        if room < 1:
            raise Refused(
                f"the prompt has {len(ids):,} tokens; {served.name} takes {served.context:,}, answer "
                "included: shorten it",
                code="context_length_exceeded",
                parameter="messages",
            )
        tokens = min(generation.max_new_tokens or default_tokens or room, room)
        ends_early = bool(generation.tools) and not generation.parallel  # streamed, to stop after the first call
        stream = generation.stream or ends_early
        return [
            Request(
                served.name,
                ids,
                tokens,
                sampling_of(served, generation.options, number),
                generation.stop,
                generation.logprobs,
                shown,
                stream,
                constraint,
                continues,
            )
            for number in range(generation.n)
        ]

    def constraint(self, served: Served, generation: GenerationRequest):
        """Returns the grammar that constrains the answers, or None. Raises Refused."""
        if generation.demands_call:
            chosen = [t for t in generation.tools if generation.tool_choice in ("required", t["function"]["name"])]
            if not chosen:
                raise Refused(f"tool_choice: no tool {generation.tool_choice!r} is given", parameter="tool_choice")
            lark = self.formats[served.name].grammar(served.tokenizer, chosen, generation.parallel)
            return grammar.from_lark(served.tokenizer, served.stop_ids, lark)
        if generation.form is not None:
            return grammar.from_form(served.tokenizer, served.stop_ids, generation.form)
        return None


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def named_results(messages: list[dict]) -> list[dict]:
    """Adds the name of the tool to tool messages, because some templates write it."""
    names = {call["id"]: call["function"]["name"] for m in messages for call in m.get("tool_calls") or []}
    return [{"name": names.get(m.get("tool_call_id")), **m} if m["role"] == "tool" else m for m in messages]
