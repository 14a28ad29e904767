"""Talking to a run's result in the terminal. The engine is the one of `serve`, without HTTP."""

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from queue import SimpleQueue

from rich.console import Console
from transformers.utils import logging

from tunesmith.answer_formats.format import Reader, Thought, find
from tunesmith.cli.message_input import MessageInput
from tunesmith.data.conversation import generation_prompt
from tunesmith.data.rows import Chat, RowProblem
from tunesmith.errors import UserError, first_line
from tunesmith.finetune.prepared import Prepared
from tunesmith.finetune.result import require_result
from tunesmith.inference.interface import Engine, Piece, Request, Served, Ticket
from tunesmith.inference.scheduler import BatchingEngine
from tunesmith.leases import using
from tunesmith.run import Run
from tunesmith.serve.open_models import open_base, open_tuned
from tunesmith.serve.options import Options, sampling_of
from tunesmith.serve.placement import placed

COMMANDS = "/base and /tuned switch the model, /system TEXT sets the system prompt, /new starts over, /quit ends"
NO_SYSTEM = "none"  # what to give instead of a system prompt to have none
SHOWN_CHARACTERS = 300  # of a system prompt
ROOM_SHARE = 4  # at least a quarter of the context is for the answer, if it may be as long
CONTEXT = sys.maxsize  # of a model whose config does not say; the engine lowers it to what its memory holds


def talk(
    run: Run, base: bool, system: str | None, max_new_tokens: int, temperature: float, seed: int, cpu: bool = False
) -> None:
    """Answers messages until /quit or the end of input. `system`: the system prompt, None for the one that most
    training rows had. `cpu`: no GPU is used. Raises UserError."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(highlight=False)
    with closing(Models(run, cpu)) as models:
        session = Session(console, models, base, Options(temperature=temperature, seed=seed), max_new_tokens)
        for line in models.engine(session.model).description:
            console.print(f"engine  {line}", style="dim", markup=False)
        console.print(f"{run.name}. {COMMANDS}.", style="dim", markup=False)
        session.begin(system)
        typed = MessageInput(console)
        while (message := typed.read(session.model)) is not None and session.take(message):
            pass


class Models:
    """The engines of the tuned and the base model. An adapter and its base share one. The base of a full fine-tune has
    its own, which is opened when it is first used. Close it at the end, because engines have threads."""

    def __init__(self, run: Run, cpu: bool = False):
        """`cpu`: no GPU is used. Raises UserError."""
        self.run, self._prepared = run, Prepared.open(run)
        self.tokenizer = self._prepared.tokenizer
        self.format = find(self.tokenizer)
        self._engines: dict[str, BatchingEngine] = {}
        self._leases = ExitStack()
        require_result(run)  # before minutes of loading
        with placed([run.folder], "chat", cpu) as self._placement:
            base = None if run.recipe.adapter.kind == "full" else open_base(self._prepared, "base", CONTEXT)
            tuned = open_tuned(self._prepared, base, CONTEXT)
            self._start({"tuned": tuned} | ({"base": base} if base else {}))

    def engine(self, model: str) -> Engine:
        """Returns the engine of a model, `tuned` or `base`. Raises UserError."""
        if model not in self._engines:
            self._start({model: open_base(self._prepared, model, CONTEXT)})
        return self._engines[model]

    def close(self) -> None:
        for engine in set(self._engines.values()):
            engine.close()
        self._leases.close()

    def _start(self, models: dict[str, Served]) -> None:
        engine = BatchingEngine(models, batch=1, kv_bytes=self._placement.kv_bytes)
        self._engines |= dict.fromkeys(models, engine)
        self._leases.enter_context(using(engine.device_bytes, "chat", self.run.folder))


@dataclass
class Conversation:
    """Exchanges of a question and its answer, oldest first; `forgotten` counts those the context has no room for."""

    exchanges: list[list[dict]] = field(default_factory=list)
    forgotten: int = 0


class Session:
    """A conversation with each of the two models: what one has said is never shown to the other."""

    def __init__(self, console: Console, models: Models, base: bool, options: Options, max_new_tokens: int):
        self.console, self.models, self.base = console, models, base
        self.system: str | None = None
        self._options, self._max_new_tokens = options, max_new_tokens
        self._questions = 0  # so far, each of which has draws of its own
        self._start_over()

    @property
    def model(self) -> str:
        return "base" if self.base else "tuned"

    def begin(self, system: str | None) -> None:
        """Sets the system prompt to the given one, or to that of most training rows, and shows it."""
        shares = self.models.run.plan.system_prompts
        prompt = next((prompt for prompt, share in shares.items() if share > 0.5), None)
        if system is not None:
            self._set_system(system)
        elif prompt:
            self.system = prompt
            self._note(f"system prompt of {shares[prompt]:.0%} of the training rows: {_shortened(prompt)}")
        elif prompt is None and shares:
            self._note(
                "The training rows have different system prompts, so none is used. One of them: "
                + _shortened(max(shares, key=lambda one: (one != "", shares[one])))
            )

    def take(self, message: str) -> bool:
        """Answers a message or obeys a command; False once the session has ended."""
        if message.startswith("/"):
            return self._obey(*(*message.split(maxsplit=1), "")[:2])
        try:
            self._answer(message.strip())
        except KeyboardInterrupt:  # before there was an answer to stop
            self._note("stopped")
        return True

    def _obey(self, command: str, text: str) -> bool:
        if command in ("/quit", "/exit"):
            return False
        if command in ("/base", "/tuned"):
            self.base = command == "/base"
            asked = len(self._conversation.exchanges)
            self._note(f"{self.model} model, in a conversation of its own" + (f" ({asked} so far)" if asked else ""))
        elif command == "/new":
            self._start_over()
            self._note("Both conversations start over.")
        elif command == "/system" and text:
            self._set_system(text.strip())
            self._start_over()
        elif command == "/system":
            self._note("no system prompt" if self.system is None else f"system prompt: {self.system}")
        else:
            self._note(f"{COMMANDS}. A message that begins with / needs a space before it.")
        return True

    def _set_system(self, text: str) -> None:
        self.system = None if text in ("", NO_SYSTEM) else text
        self._note("no system prompt" if self.system is None else f"system prompt: {_shortened(text)}")

    def _start_over(self) -> None:
        self._conversations = {"base": Conversation(), "tuned": Conversation()}

    @property
    def _conversation(self) -> Conversation:
        return self._conversations[self.model]

    def _answer(self, question: str) -> None:
        """Prints the answer as it comes, and adds both to the conversation."""
        try:
            engine = self.models.engine(self.model)
        except Exception as error:  # torch and transformers raise many kinds
            return self._fail(f"the {self.model} model cannot be opened: {first_line(error)}")
        served, format = engine.models[self.model], self.models.format
        asked = {"role": "user", "content": question}
        try:
            text, ids = self._prompt(asked, served.context)
        except RowProblem as problem:
            return self._fail(f"the model's template refuses this: {problem.detail}")
        except UserError as problem:
            return self._fail(str(problem))
        limit = min(self._max_new_tokens, served.context - len(ids))
        sampling = sampling_of(served, self._options, self._questions)
        self._questions += 1
        answer = Answer(self.console, format.reader(text, False, []))
        last = generate(engine, Request(self.model, ids, limit, sampling, shown=format.shown(False)), answer.add)
        message = answer.finish()
        if last.finish == "error":
            self._fail(f"generation failed: {last.error}")
        elif last.finish == "cancelled":
            self._note("stopped")
        elif last.finish == "length":
            full = f"the context of {served.context:,} tokens is full"
            why = "--max-new-tokens" if limit == self._max_new_tokens else full
            self._note(f"cut off after {limit:,} tokens: {why}")
        if message["content"].strip():
            self._conversation.exchanges.append([asked, message])
        else:
            self._note("There is no answer, so the conversation continues without this question.")

    def _prompt(self, asked: dict, context: int) -> tuple[str, list[int]]:
        """The conversation with a question as text and ids, without the oldest exchanges that leave no room for an
        answer. Raises RowProblem, and UserError for a question that is too long by itself."""
        conversation = self._conversation
        text, ids = self._rendered(conversation.exchanges, asked)
        room, forgotten = min(self._max_new_tokens, context // ROOM_SHARE), 0
        while len(ids) + room > context and forgotten < len(conversation.exchanges):
            forgotten += 1
            text, ids = self._rendered(conversation.exchanges[forgotten:], asked)
        if len(ids) >= context:
            raise UserError(
                f"this message is too long: with it the prompt has {len(ids):,} tokens, and the model's "
                f"context is {context:,}, answer included"
            )
        if forgotten:
            del conversation.exchanges[:forgotten]
            conversation.forgotten += forgotten
            self._note(
                f"The context of {context:,} tokens is full: the model no longer sees the oldest "
                f"{conversation.forgotten} of your messages and their answers. /new starts over."
            )
        return text, ids

    def _rendered(self, exchanges: list[list[dict]], asked: dict) -> tuple[str, list[int]]:
        tokenizer, format = self.models.tokenizer, self.models.format
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *(message for exchange in exchanges for message in exchange), asked]
        text = generation_prompt(tokenizer, Chat(list(map(format.message, messages))))
        return text, tokenizer.encode(text)[0]

    def _note(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False)

    def _fail(self, text: str) -> None:
        self.console.print(text, style="red", markup=False)


def generate(engine: Engine, request: Request, show: Callable[[str], None]) -> Piece:
    """Shows an answer as it comes, and returns its last piece. Ctrl-C cancels it."""
    pieces: SimpleQueue[Piece] = SimpleQueue()
    ticket: Ticket | None = None
    stopped = False

    def stop(*_):
        nonlocal stopped
        stopped = True
        if ticket is not None:
            ticket.cancel()

    # A KeyboardInterrupt could come between two lines of what follows, and a piece would be lost.
    before = signal.signal(signal.SIGINT, stop)
    try:
        ticket = engine.submit(request, pieces.put)
        if stopped:
            ticket.cancel()
        while True:
            piece = pieces.get()
            show(piece.text)
            if piece.finish is not None:
                return piece
    finally:
        signal.signal(signal.SIGINT, before)


class Answer:
    """Prints an answer as its text arrives, with reasoning dimmed."""

    def __init__(self, console: Console, reader: Reader):
        self._console, self._reader = console, reader
        self._message = {"role": "assistant", "content": ""}

    def add(self, text: str) -> None:
        self._show(self._reader.push(text))

    def finish(self) -> dict:
        """Prints the text that the reader held back, and returns the answer as a message."""
        self._show(self._reader.finish())
        self._console.print()
        return self._message

    def _show(self, parts: list) -> None:
        message = self._message
        for part in parts:
            thought = isinstance(part, Thought)
            text = part.text if thought else part
            if not thought and "reasoning_content" in message and not message["content"]:
                self._console.print("\n")
            key = "reasoning_content" if thought else "content"
            message[key] = message.get(key, "") + text
            self._console.print(
                text, end="", markup=False, emoji=False, soft_wrap=True, style="dim" if thought else None
            )


def _shortened(text: str) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[:SHOWN_CHARACTERS]}… ({len(text):,} characters; /system shows all)"
