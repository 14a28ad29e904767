"""Talking to a run's result in the terminal."""

from dataclasses import dataclass, field

import torch
from rich.console import Console
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from tunesmith.answer_formats.format import Format, Reader, Thought, find
from tunesmith.cli.message_input import MessageInput
from tunesmith.data.conversation import generation_prompt
from tunesmith.data.rows import Chat, RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError, first_line
from tunesmith.finetune.prepared import Prepared
from tunesmith.finetune.result import base_model
from tunesmith.inference.text_stream import Writer
from tunesmith.inference.transformers_model import TorchWeights
from tunesmith.run import Run
from tunesmith.serve.open_models import open_result

COMMANDS = "/base and /tuned switch the model, /system TEXT sets the system prompt, /new starts over, /quit ends"
NO_SYSTEM = "none"  # what to give instead of a system prompt to have none
SHOWN_CHARACTERS = 300  # of a system prompt
ROOM_SHARE = 4  # at least a quarter of the context is for the answer, if it may be as long


def talk(run: Run, base: bool, system: str | None, max_new_tokens: int, temperature: float, seed: int) -> None:
    """Answers messages until /quit or the end of input. `system`: the system prompt, None for the one that most
    training rows had. Raises UserError."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(highlight=False)
    sampling = {"do_sample": temperature > 0, **({"temperature": temperature} if temperature > 0 else {})}
    torch.manual_seed(seed)
    session = Session(console, Models(run), base, sampling, max_new_tokens)
    console.print(f"{run.name}. {COMMANDS}.", style="dim", markup=False)
    session.begin(system)
    typed = MessageInput(console)
    while (message := typed.read(session.model)) is not None and session.take(message):
        pass


class Models:
    """The tuned model, and the base model: the same weights without the adapter, or loaded when first asked for."""

    def __init__(self, run: Run):
        self.run = run
        self.tokenizer = Prepared.open(run).tokenizer
        self.format = find(self.tokenizer)
        self._tuned, self._adapter = open_result(run)
        self._base: TorchWeights | None = None
        self.device, self.context = self._tuned.device, self._tuned.context

    def generate(self, base: bool, **options) -> None:
        if base and self._base is None:
            self._base = TorchWeights.opened(base_model(self.run)) if self._adapter is None else self._tuned
        weights = self._base if base else self._tuned
        weights.switch(None if base else self._adapter)
        with torch.inference_mode():
            weights.module.generate(**options)


@dataclass
class Conversation:
    """Exchanges of a question and its answer, oldest first; `forgotten` counts those the context has no room for."""

    exchanges: list[list[dict]] = field(default_factory=list)
    forgotten: int = 0


class Session:
    """A conversation with each of the two models: what one has said is never shown to the other."""

    def __init__(self, console: Console, models: Models, base: bool, sampling: dict, max_new_tokens: int):
        self.console, self.models, self.base = console, models, base
        self.system: str | None = None
        self._sampling, self._max_new_tokens = sampling, max_new_tokens
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
        tokenizer, format = self.models.tokenizer, self.models.format
        asked = {"role": "user", "content": question}
        try:
            text, ids = self._prompt(asked)
        except RowProblem as problem:
            return self._fail(f"the model's template refuses this: {problem.detail}")
        except UserError as problem:
            return self._fail(str(problem))
        context = self.models.context
        limit = min(self._max_new_tokens, context - len(ids)) if context else self._max_new_tokens
        answer = Answer(self.console, tokenizer, format, text)
        stopped = self._generate(ids, limit, answer)
        if stopped is None:
            return None
        message = answer.finish()
        if stopped:
            self._note("stopped")
        elif answer.tokens >= limit and not answer.ended(self.models.run.plan.stop_ids):
            self._note(
                f"cut off after {limit:,} tokens: "
                + (
                    "--max-new-tokens"
                    if limit == self._max_new_tokens
                    else f"the context of {context:,} tokens is full"
                )
            )
        if message["content"].strip():
            self._conversation.exchanges.append([asked, message])
        else:
            self._note("There is no answer, so the conversation continues without this question.")

    def _prompt(self, asked: dict) -> tuple[str, list[int]]:
        """The conversation with a question as text and ids, without the oldest exchanges that leave no room for an
        answer. Raises RowProblem, and UserError for a question that is too long by itself."""
        conversation, context = self._conversation, self.models.context
        text, ids = self._rendered(conversation.exchanges, asked)
        if context is None:
            return text, ids
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

    def _generate(self, ids: list[int], limit: int, answer: "Answer") -> bool | None:
        """Whether Ctrl-C stopped it; None if it failed."""
        models = self.models
        input_ids = torch.tensor([ids], device=models.device)
        try:
            models.generate(
                self.base,
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                streamer=answer,
                max_new_tokens=limit,
                eos_token_id=models.run.plan.stop_ids,
                pad_token_id=models.tokenizer.pad_id,
                **self._sampling,
            )
        except KeyboardInterrupt:
            return True
        except Exception as error:  # torch and transformers raise many kinds
            self._fail(f"generation failed: {first_line(error)}")
        return False

    def _note(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False)

    def _fail(self, text: str) -> None:
        self.console.print(text, style="red", markup=False)


class Answer(BaseStreamer):
    """Prints an answer as `generate` makes it, reasoning dimmed. `tokens` counts them."""

    def __init__(self, console: Console, tokenizer: Tokenizer, format: Format, prompt: str):
        self.tokens = 0
        self._last: int | None = None
        self._console = console
        self._writer = Writer(tokenizer, shown=format.shown(False))
        self._reader: Reader = format.reader(prompt, False, [])
        self._message = {"role": "assistant", "content": ""}
        self._prompt_came = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_came:  # `generate` hands on the prompt first
            self._last = int(value)
            self.tokens += 1
            self._show(self._reader.push(self._writer.push(self._last)))
        self._prompt_came = True

    def end(self) -> None:
        pass  # `finish` is called also where `generate` was interrupted

    def ended(self, stop_ids: list[int]) -> bool:
        """Whether the model itself ended the answer."""
        return self._last in stop_ids

    def finish(self) -> dict:
        """Prints what was held back; the message that the answer is."""
        self._show(self._reader.push(self._writer.finish()) + self._reader.finish())
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
