"""Talking to a run's result in the terminal."""

from queue import SimpleQueue
from threading import Thread

import torch
from rich.console import Console
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from tunesmith.data.rows import RowProblem
from tunesmith.errors import first_line
from tunesmith.inputs import tokenizer_of
from tunesmith.result import base_model
from tunesmith.run import Run
from tunesmith.serve.engines.decoding import Writer
from tunesmith.serve.engines.on_transformers import TorchWeights
from tunesmith.serve.models import open_result
from tunesmith.writing.formats import AnswerReader, find
from tunesmith.writing.reasoning import Thought

HELP = "/base and /tuned switch the model, /new starts over, /quit ends"


def talk(run: Run, base: bool, max_new_tokens: int, temperature: float, seed: int) -> None:
    """Reads prompts until /quit or the end of input; answers stream as they are made."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = Console(highlight=False)
    models = Models(run)
    sampling = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens,
                **({"temperature": temperature} if temperature > 0 else {})}
    torch.manual_seed(seed)
    messages: list[dict] = []
    console.print(f"{run.name}. {HELP}.", style="dim")
    while True:
        try:
            said = console.input(f"[bold]{'base' if base else 'tuned'}[/] > ").strip()
        except (EOFError, KeyboardInterrupt):
            return console.print()
        if said in ("/quit", "/exit"):
            return
        if said in ("/base", "/tuned"):
            base = said == "/base"
        elif said == "/new":
            messages = []
        elif said.startswith("/"):
            console.print(HELP, style="dim")
        elif said:
            messages = _answer(console, models, base, [*messages, {"role": "user", "content": said}], sampling)


class Models:
    """The tuned model, and the base model: the same weights without the adapter, or loaded when first asked for."""

    def __init__(self, run: Run):
        self.run = run
        self.tokenizer = tokenizer_of(run)
        self.format = find(self.tokenizer)
        self._tuned, self._adapter = open_result(run)
        self._base: TorchWeights | None = None
        self.device = self._tuned.device

    def generate(self, base: bool, **options) -> None:
        if base and self._base is None:
            self._base = TorchWeights(base_model(self.run)) if self._adapter is None else self._tuned
        weights = self._base if base else self._tuned
        weights.switch(None if base else self._adapter)
        with torch.inference_mode():
            weights.module.generate(**options)


def _answer(console: Console, models: Models, base: bool, messages: list[dict], sampling: dict) -> list[dict]:
    """Prints the answer as it comes and returns the conversation with it."""
    tokenizer, format = models.tokenizer, models.format
    try:
        text = tokenizer.render(list(map(format.message, messages)), add_generation_prompt=True)
        ids, _ = tokenizer.encode(text)
    except RowProblem as problem:
        console.print(f"the model's template refuses this: {problem.detail}", style="red")
        return messages[:-1]
    input_ids, tokens = torch.tensor([ids], device=models.device), Tokens()
    options = dict(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), streamer=tokens,
                   eos_token_id=models.run.plan["stop_ids"], pad_token_id=tokenizer.pad_id, **sampling)
    failures: list[Exception] = []
    thread = Thread(target=_generate, args=(models, base, options, failures), daemon=True)
    thread.start()
    answer = show(console, tokens, Writer(tokenizer, shown=format.shown(False)), format.reader(text, False, []))
    thread.join()
    if failures:
        console.print(f"generation failed: {first_line(failures[0])}", style="red")
        return messages[:-1]
    return [*messages, answer]


def _generate(models: Models, base: bool, options: dict, failures: list[Exception]) -> None:
    """Runs in a thread; whatever happens, the reader of the tokens is told that it is over."""
    try:
        models.generate(base, **options)
    except Exception as error:  # torch and transformers raise many kinds
        failures.append(error)
        options["streamer"].end()


class Tokens(BaseStreamer):
    """An answer's token ids as `generate` makes them in another thread."""

    def __init__(self):
        self._queue: SimpleQueue[int | None] = SimpleQueue()
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt:  # which comes first
            self._queue.put(int(value))
        self._prompt = False

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self):
        return iter(self._queue.get, None)


def show(console: Console, tokens, writer: Writer, reader: AnswerReader) -> dict:
    """Prints an answer as its tokens come, reasoning dimmed; the message that it is."""
    answer = {"role": "assistant", "content": ""}

    def take(parts: list) -> None:
        for part in parts:
            thought = isinstance(part, Thought)
            text = part.text if thought else part
            if not thought and "reasoning_content" in answer and not answer["content"]:
                console.print("\n")
            key = "reasoning_content" if thought else "content"
            answer[key] = answer.get(key, "") + text
            console.print(text, end="", markup=False, emoji=False, style="dim" if thought else None)

    for token in tokens:
        take(reader.push(writer.push(token)))
    take(reader.push(writer.finish()) + reader.finish())
    console.print()
    return answer
