"""From an API's request to the engine and back: prompt, sampling and constraint in, text, tool calls and an end out."""

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
from tunesmith.inference.interface import Engine, Form, Piece, Refused, Request, Sampling, Served, Token
from tunesmith.serve.options import Options

COLDEST = 1e-3  # a lower temperature takes the likeliest token
OURS = {"messages", "tools", "add_generation_prompt", "chat_template", "conversations"}


@dataclass
class Asked:
    """A conversation to go on with, whichever API it came by. `tool_choice` is auto, none, required or a tool's name;
    `form` what the answer keeps to; `template` more variables for the chat template; `prefill` how the
    answer begins."""

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
        """Whether the answer itself comes at once: one that is held to a form, or begun already, has no reasoning."""
        return self.demands_call or self.form is not None or bool(self.prefill)


@dataclass
class Said:
    """Text that an answer grew by, and its tokens where log probabilities were asked for."""

    text: str
    tokens: list[Token]


@dataclass
class Answer:
    """An answer that is complete. `finish`: stop, length or tool_calls."""

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
    """The answers to one HTTP request, computed at once. `prompt_tokens` counts their prompts. Without `parallel` an
    answer ends with its first tool call."""

    def __init__(self, engine: Engine, requests: list[Request], readers: list[Reader], parallel: bool = True):
        if len(requests) > engine.capacity:
            raise Refused(
                f"{len(requests):,} answers in one request; this server takes {engine.capacity:,} at once "
                "(--batch and --queue): ask for fewer",
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
        """Counted on the reasoning's text, so without its marks."""
        return sum(len(self._tokenizer.encode(answer.reasoning)[0]) for answer in self.done if answer.reasoning)

    def cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    async def events(self) -> AsyncIterator[tuple[int, Said | Thought | Call | Answer]]:
        """(number of the answer, what it grew by), in the end of each the Answer. Computing stops when this does."""
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
        """All answers when they are complete. Stops computing, and raises Refused, if the client goes away."""
        work = asyncio.ensure_future(self._exhaust())
        gone = asyncio.ensure_future(_disconnected(http))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Refused("the client went away", 499)
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
        """Called by the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, piece))
        except RuntimeError:
            if not self._loop.is_closed():  # else the server has ended; nobody waits
                raise

    def _read(self, index: int, piece: Piece) -> list[Said | Thought | Call | Answer]:
        answer, reader = self.done[index], self._readers[index]
        parts = reader.push(piece.text) + (reader.finish() if piece.finish is not None else [])
        events: list = [Said(part, []) if isinstance(part, str) else part for part in parts]
        if piece.tokens:
            first = next((e for e in events if isinstance(e, Said)), None)
            if first is None:
                events.insert(0, first := Said("", []))
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
            raise Refused(f"computing the answer failed: {piece.error}", 500, "engine_failed")
        if piece.finish == "cancelled":
            raise Refused("the answer was cancelled: the server is stopping", 503, "stopping")
        answer.finish = "tool_calls" if answer.calls and piece.finish == "stop" else piece.finish
        answer.stop_text, answer.stop_token = piece.stop_text, piece.stop_token
        return answer


class Service:
    """The engine, and what is known of its models."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.formats = {name: find(served.tokenizer) for name, served in engine.models.items()}

    def served(self, name: str | None) -> Served:
        """A model by its name, the first without one. Raises Refused."""
        models = self.engine.models
        if name is None:
            return next(iter(models.values()))
        if name not in models:
            raise Refused(f"no model {name!r} here; there are: {', '.join(models)}", 404, "model_not_found", "model")
        return models[name]

    def prompt(self, asked: Asked) -> tuple[str, list[int]]:
        """The conversation as the template writes it, and its ids, as the data path makes them. Raises Refused."""
        served = self.served(asked.model)
        format = self.formats[served.name]
        if wrong := sorted(OURS & set(asked.template)):
            raise Refused(f"chat_template_kwargs: {wrong[0]} is set by the server", parameter="chat_template_kwargs")
        try:
            given = [format.message(message) for message in named_results(asked.messages)]
            text = generation_prompt(served.tokenizer, Chat(given, asked.tools or None), **asked.template)
            text += format.begin(text, asked.demands_call) + asked.prefill if asked.begins else ""
            return text, served.tokenizer.encode(text)[0]
        except (RowProblem, UserError) as problem:
            detail = getattr(problem, "detail", None) or str(problem)
            raise Refused(
                f"the model's template refuses this conversation: {detail}",
                code="template_refused",
                parameter="messages",
            ) from None

    async def answers(self, asked: Asked) -> Answers:
        """Submits a conversation. Raises Refused."""
        requests, readers = await run_in_threadpool(self._requests, asked)
        return Answers(self.engine, requests, readers, asked.parallel)

    def _requests(self, asked: Asked) -> tuple[list[Request], list[Reader]]:
        served = self.served(asked.model)
        format = self.formats[served.name]
        if asked.tool_choice == "none":
            asked.tools = []
        if asked.tools and not format.writes_calls:
            raise Refused(
                f"the template of {served.name} does not write tool calls in a form this server reads",
                code="tools_unsupported",
                parameter="tools",
            )
        text, ids = self.prompt(asked)
        constraint = self.constraint(served, asked)
        requests = self.requests(
            served, ids, asked, format.shown(bool(asked.tools)), constraint, continues=bool(asked.prefill)
        )
        begun = asked.begins and not asked.demands_call
        return requests, [format.reader(text, begun, asked.tools) for _ in requests]

    def requests(
        self,
        served: Served,
        ids: list[int],
        asked: Asked,
        shown=frozenset(),
        constraint=None,
        default_tokens: int | None = None,
        continues: bool = False,
    ) -> list[Request]:
        """One for each of the n answers to a prompt. Raises Refused where it leaves no room in the context."""
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
        tokens = min(asked.max_new_tokens or default_tokens or room, room)
        stream = asked.stream or (bool(asked.tools) and not asked.parallel)  # to stop after the first call
        return [
            Request(
                served.name,
                ids,
                tokens,
                sampling_of(served, asked.options, number),
                asked.stop,
                asked.logprobs,
                shown,
                stream,
                constraint,
                continues,
            )
            for number in range(asked.n)
        ]

    def constraint(self, served: Served, asked: Asked):
        """What answers keep to, None for no form. Raises Refused."""
        if asked.demands_call:
            chosen = [t for t in asked.tools if asked.tool_choice in ("required", t["function"]["name"])]
            if not chosen:
                raise Refused(f"tool_choice: no tool {asked.tool_choice!r} is given", parameter="tool_choice")
            lark = self.formats[served.name].grammar(served.tokenizer, chosen, asked.parallel)
            return grammar.from_lark(served.tokenizer, served.stop_ids, lark)
        if asked.form is not None:
            return grammar.from_form(served.tokenizer, served.stop_ids, asked.form)
        return None


def sampling_of(served: Served, options: Options, number: int = 0) -> Sampling:
    """How to sample answer `number`: what was asked for, else the model's own way. Raises Refused."""
    own = served.defaults
    default = own.get("temperature") or 1.0 if own.get("do_sample") else 0.0
    temperature = default if options.temperature is None else options.temperature
    seed = None if options.seed is None else (options.seed + number) % 2**63
    bias = _bias(options.logit_bias or {}, served.tokenizer.vocab_size)
    penalty = _first(options.repetition_penalty, own.get("repetition_penalty"), 1.0)
    common = {
        "repetition_penalty": penalty,
        "frequency_penalty": options.frequency_penalty or 0.0,
        "presence_penalty": options.presence_penalty or 0.0,
        "logit_bias": bias,
        "seed": seed,
    }
    if temperature < COLDEST:
        return Sampling(**common)
    return Sampling(
        temperature=temperature,
        top_k=max(0, _first(options.top_k, own.get("top_k"), 0)),
        top_p=_first(options.top_p, own.get("top_p"), 1.0),
        min_p=_first(options.min_p, own.get("min_p"), 0.0),
        **common,
    )


def _first(*values):
    return next(value for value in values if value is not None)


def _bias(asked: dict[str, float], vocab_size: int) -> dict[int, float]:
    wrong = [key for key in asked if not (key.isascii() and key.isdigit() and int(key) < vocab_size)]
    if wrong:
        raise Refused(f"logit_bias: {wrong[0]!r} is no token id below {vocab_size}", parameter="logit_bias")
    return {int(key): value for key, value in asked.items()}


async def _disconnected(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def named_results(messages: list[dict]) -> list[dict]:
    """Tool messages with the name of the tool that they answer for, which some templates write."""
    names = {call["id"]: call["function"]["name"] for m in messages for call in m.get("tool_calls") or []}
    return [{"name": names.get(m.get("tool_call_id")), **m} if m["role"] == "tool" else m for m in messages]
