"""The adapter alone, as PEFT opens it over the base model."""

from pathlib import Path

from peft import AutoPeftModelForCausalLM

from tunesmith.errors import UserError
from tunesmith.export.engine import Transformers
from tunesmith.export.merged import BY_DTYPE
from tunesmith.export.settle import copy_settings
from tunesmith.model.load import config_of, dequantising
from tunesmith.recipe import Section
from tunesmith.run import Run


class Settings(Section):
    """Nothing to choose."""


def write(run: Run, folder: Path, settings: Settings) -> None:
    """Copies it. Raises UserError where the run trained every weight."""
    if run.recipe.adapter.kind == "full":
        raise UserError("--to adapter: this run trained every weight, so there is no adapter; --to merged")
    copy_settings(run, folder, without=())


def opened(run: Run, folder: Path, settings: Settings) -> Transformers:
    return Transformers.load(folder, AutoPeftModelForCausalLM, **dequantising(config_of(run.base)))


def precision(run: Run, settings: Settings) -> str:
    return BY_DTYPE[run.plan["weights"]]
