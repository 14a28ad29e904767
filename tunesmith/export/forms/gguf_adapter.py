"""The adapter alone for llama.cpp, which lays it over a GGUF of the base (`--lora`)."""

import tempfile
from pathlib import Path

import torch

from tunesmith.errors import UserError
from tunesmith.export.forms.gguf import Engine, write_model
from tunesmith.export.forms.merged import BY_DTYPE
from tunesmith.export.gguf.adapter import write_adapter
from tunesmith.export.merged_weights import Weights
from tunesmith.export.settings import NoSettings as Settings
from tunesmith.model.load import config_of
from tunesmith.run import Run

FILE = "adapter.gguf"


def write(run: Run, folder: Path, settings: Settings) -> None:
    """Raises UserError for an adapter that llama.cpp does not know."""
    if run.recipe.adapter.kind == "full":
        raise UserError("--to gguf-adapter: this run trained every weight, so there is no adapter; --to gguf")
    write_adapter(run.result, config_of(run.base), folder / FILE)


def opened(run: Run, folder: Path, settings: Settings) -> Engine:
    """Over a GGUF of the base that is written for this and thrown away: llama.cpp has read it once it is open."""
    dtype = getattr(torch, run.plan.weights)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        base = Path(name) / "base.gguf"
        write_model(run, Weights(run.base, dtype), base, BY_DTYPE[run.plan.weights])
        return Engine(run, base, folder / FILE)


def precision(run: Run, settings: Settings) -> str:
    return BY_DTYPE[run.plan.weights]
