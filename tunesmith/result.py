"""The model that a run trained, in this process."""

import torch

from tunesmith.errors import UserError
from tunesmith.inputs import tokenizer_of
from tunesmith.model.adapt import grow
from tunesmith.model.load import load
from tunesmith.run import Run


def require_result(run: Run) -> None:
    """Raises UserError if the run has none yet."""
    if not run.result.is_dir():
        raise UserError(f"{run.folder}: no result yet; `tunesmith resume {run.folder}` finishes it")


def trained_model(run: Run, quantize: str | None = None):
    """The result as it was trained: base and adapter, or the full model, in its saved precision; the base quantised as
    the recipe says or as `quantize` does."""
    recipe = run.recipe
    if recipe.adapter.kind == "full":
        model = recipe.model.model_copy(update={"initialize": "pretrained"})
        return load(model, run.result, "auto", None, recipe.seed).eval()
    from peft import PeftModel

    return PeftModel.from_pretrained(base_model(run, quantize), run.result, autocast_adapter_dtype=False).eval()


def base_model(run: Run, quantize: str | None = None):
    """The base as it was trained on, with rows for the new tokens: in the precision of its weights, or for a full
    fine-tune in that of computing; quantised as `trained_model` says."""
    recipe = run.recipe
    model = recipe.model.model_copy(update={"quantize": quantize or recipe.model.quantize})
    precision = run.plan["weights" if recipe.adapter.kind == "lora" else "compute"]
    base = load(model, run.base, getattr(torch, precision), None, recipe.seed)
    if recipe.model.new_tokens:
        grow(base, tokenizer_of(run).vocab_size)
    return base.eval()
