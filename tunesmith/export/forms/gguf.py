"""The forms gguf and gguf-adapter: files for llama.cpp, compared in llama.cpp itself."""

import tempfile
import unicodedata
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.export.forms.merged import BY_DTYPE
from tunesmith.export.gguf import quantize
from tunesmith.export.gguf.importance import importance_of
from tunesmith.export.gguf.write import is_phi3, write_gguf
from tunesmith.export.merged_weights import Weights, weights_of
from tunesmith.export.model_folder import copy_settings
from tunesmith.export.parity.gate import BOUNDS
from tunesmith.export.parity.in_llama_cpp import LlamaCpp
from tunesmith.export.parity.probes import most_tokens
from tunesmith.export.settings import GgufSettings as Settings
from tunesmith.model.load import config_of
from tunesmith.run import Run

FILE = "model.gguf"


def write(run: Run, folder: Path, settings: Settings) -> list[str]:
    """Writes FILE; returns notes on what llama.cpp computes differently from the model. Raises UserError."""
    small = settings.precision in quantize.KINDS
    if settings.importance and not small:
        raise UserError(f"--importance: {settings.precision} is rounded without one; it is for K-quants such as q4_k_m")
    whole = folder / ("whole.gguf" if small else FILE)
    kind = BY_DTYPE[run.plan.weights] if small else settings.precision
    notes = write_model(run, weights_of(run, settings.into), whole, kind)
    if small:
        vectors = folder / "importance.safetensors" if settings.importance else None  # stays, so that others can use it
        if vectors:
            quantize.save_importance(config_of(run.base), importance_of(run), vectors)
        quantize.quantize(whole, folder / FILE, settings.precision, vectors)
        whole.unlink()
    return notes


def write_model(run: Run, weights: Weights, target: Path, kind: str) -> list[str]:
    """Writes the GGUF of some weights with what else the run's result holds; returns notes."""
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name) / run.name  # the model's name in the file is its folder's
        folder.mkdir()
        copy_settings(run, folder, fixed=True)  # llama.cpp has a default of its own for enable_thinking
        return write_gguf(weights, folder, target, kind, tuple(run.plan.stop_ids))


class Engine(LlamaCpp):
    """llama.cpp with the chat template that the file carries, or what writes conversations in its place."""

    name = "llama.cpp"
    tells_likelihoods = True

    def __init__(self, run: Run, path: Path, adapter: Path | None = None, render=None):
        """`render(messages, tools)`: the text of a conversation, None for one that it does not express."""
        super().__init__(path, adapter, most_tokens(run))
        with tempfile.NamedTemporaryFile("w", suffix=".jinja", encoding="utf-8") as file:
            file.write(self.chat_template)
            file.flush()
            tokenizer = Tokenizer.load(run.result, file.name)
        takes = tokenizer.taking_whitespace and not is_phi3(self.model.metadata("general.name") or "")
        self._keeps_whitespace = tokenizer.takes_whitespace if takes else lambda text: False
        self.expresses_all = render is None and not takes
        self._render = render or partial(tokenizer.render, add_generation_prompt=True)

    def excuses(self, text: str) -> bool:
        """llama.cpp brings no text into Unicode's form NFC, knows only ASCII capitals, and keeps whitespace that tokens
        such as Phi-4's consume (docs/reference/gguf.md)."""
        return (
            unicodedata.normalize("NFC", text) != text
            or any(c.isupper() and not c.isascii() for c in text)
            or self._keeps_whitespace(text)
        )

    def log_probs(self, ids: list[int]) -> np.ndarray:
        return torch.from_numpy(self.logits(ids)[:-1]).log_softmax(1).numpy()

    def conversation(self, messages: list[dict], tools: list[dict] | None) -> list[int] | None:
        try:
            text = self._render(messages, tools)
        except RowProblem:
            return None
        return None if text is None or self._keeps_whitespace(text) else self.encode(text)


def opened(run: Run, folder: Path, settings: Settings) -> Engine:
    return Engine(run, folder / FILE)


def precision(run: Run, settings: Settings) -> str:
    """A bound no closer than that of the trained weights' own precision."""
    return max(settings.precision, BY_DTYPE[run.plan.weights], key=lambda kind: BOUNDS[kind].kl)


def instead(settings: Settings) -> str | None:
    """The importance matrix where it may help, and the next finer precision."""
    choices = get_args(Settings.model_fields["precision"].annotation)  # from fine to coarse
    at = choices.index(settings.precision)
    if at == 0:
        return None
    finer = "--precision f32" if settings.precision in ("f16", "bf16") else f"--precision {choices[at - 1]}"
    return f"--importance, or {finer}" if settings.precision in quantize.KINDS and not settings.importance else finer
