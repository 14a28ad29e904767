"""The engine interface of the parity gate, and the engine of Transformers."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from transformers import AutoTokenizer

from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.evaluate.generate import answers
from tunesmith.inference.generate import Answer, Progress, unheard
from tunesmith.model.load import config_of, eos_ids, opener_of, quieten
from tunesmith.model.memory import release_memory
from tunesmith.model.spread import device_bytes, on_best, on_cpu

T = TypeVar("T")


class Generated(NamedTuple):
    """The ids of an answer without its stop token, and whether there was one."""

    ids: list[int]
    stopped: bool


def one_by_one(
    answer: Callable[[list[int]], Generated], prompts: list[list[int]], progress: Progress
) -> list[Generated]:
    """The answers of an engine that takes one prompt at a time."""
    answers = []
    for prompt in prompts:
        answers.append(answer(prompt))
        progress(len(answers))
    return answers


class Engine(Protocol):
    """An opened model: T tokens in, V tokens to choose from."""

    name: str
    """Name of the software that computes it."""
    tells_likelihoods: bool
    """Whether it has `excuses`, `encode` and `log_probs`; else conversations and answers are compared alone."""
    device_bytes: dict[str, int | None]
    """As of inference.interface.Engine."""
    stop_ids: set[int]
    """Tokens at which it stops."""
    expresses_all: bool
    """Whether its template is to write every conversation that the trained model's does."""

    def excuses(self, text: str) -> bool:
        """Whether it is known, and noted with the export, that this engine may read such text otherwise."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text; what spells a special token is that token. Adds none."""

    def conversation(self, messages: list[dict], tools: list[dict] | None) -> list[int] | None:
        """Ids of a conversation up to where the model answers; None if the template refuses it."""

    def log_probs(self, ids: list[int]) -> np.ndarray:
        """(T - 1, V), float32: of each token to come after the first, and so on. -inf for those it does not tell, whose
        sum is what is missing from 1."""

    def generate(self, prompts: list[list[int]], max_new_tokens: int, progress: Progress = unheard) -> list[Generated]:
        """The greedy answer to each prompt. `progress` is called with the number of answers so far."""

    def close(self) -> None:
        """Gives its memory back."""


class Transformers:
    """A model in this process with the tokenizer of a folder."""

    name = "transformers"
    tells_likelihoods = expresses_all = True

    def __init__(self, model, folder: Path, stop_ids: set[int]):
        quieten()
        self.model, self.stop_ids = on_best(model.eval()), stop_ids
        self._tokenizer = AutoTokenizer.from_pretrained(folder, mistral_format=False)
        self._tokenizer.model_max_length = sys.maxsize  # it would warn of texts that no model reads here

    @classmethod
    def load(cls, folder: Path, opener=None, **options) -> "Transformers":
        quieten()
        opener = opener or opener_of(config_of(folder))
        model = opener.from_pretrained(folder, dtype="auto", use_safetensors=True, **options)
        return cls(model, folder, set(eos_ids(folder)))

    @property
    def device_bytes(self) -> dict[str, int | None]:
        return {**device_bytes(self.model)}

    def encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def excuses(self, text: str) -> bool:
        return False

    def conversation(self, messages: list[dict], tools: list[dict] | None) -> list[int] | None:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # whatever a template does; what counts is that both do it
            return None
        return self.encode(text)

    def log_probs(self, ids: list[int]) -> np.ndarray:
        def compute() -> torch.Tensor:
            return self.model(torch.tensor([ids], device=self.model.device)).logits[0, :-1].cpu()

        return self._where_it_fits(compute).float().log_softmax(1).numpy()

    def generate(self, prompts: list[list[int]], max_new_tokens: int, progress: Progress = unheard) -> list[Generated]:
        def compute() -> list[Answer]:
            return answers(self.model, prompts, max_new_tokens, self.stop_ids, progress)

        return [Generated(answer.text_ids, answer.ended) for answer in self._where_it_fits(compute)]

    def close(self) -> None:
        self.model = None
        release_memory()

    def _where_it_fits(self, compute: Callable[[], T]) -> T:
        """On the GPUs, or from now on on the CPU if it does not fit there."""
        try:
            with torch.inference_mode():
                return compute()
        except torch.OutOfMemoryError:
            self.model = on_cpu(self.model)
        release_memory()
        with torch.inference_mode():
            return compute()


class Trained(Transformers):
    """The model as training left it, with the very tokenizer that training used."""

    name = "trained"

    def __init__(self, model, tokenizer: Tokenizer, stop_ids: set[int]):
        self.model, self._own, self.stop_ids = on_best(model), tokenizer, stop_ids

    def encode(self, text: str) -> list[int]:
        return self._own.encode(text)[0]

    def conversation(self, messages: list[dict], tools: list[dict] | None) -> list[int] | None:
        try:
            return self.encode(self._own.render(messages, tools, add_generation_prompt=True))
        except RowProblem:
            return None
