"""The model that a run trained, in this process."""

import os
import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig

from tunesmith.errors import UserError
from tunesmith.files import follow_umask
from tunesmith.finetune.prepared import Prepared
from tunesmith.model.adapt import grow
from tunesmith.model.folder import copy_others, write_config, write_generation_config
from tunesmith.model.load import config_of, load
from tunesmith.model.spread import needs_host
from tunesmith.model.text import base_of
from tunesmith.run import Run
from tunesmith.training import packed_attention


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
    precision = run.plan.weights if recipe.adapter.kind == "lora" else run.plan.compute
    dtype = getattr(torch, precision)
    base = load(model, run.base, dtype, None, recipe.seed, needs_host(model, run.base, dtype))
    if recipe.model.new_tokens:
        grow(base, Prepared.open(run).tokenizer.vocab_size)
    return base.eval()


def save_result(run: Run, model) -> None:
    """The adapter or model with tokenizer, template and generation settings, complete or absent."""
    draft = run.folder / ".result.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    full = run.recipe.adapter.kind == "full"
    inner = base_of(model)
    inner.generation_config = _generation_config(inner, run.plan.stop_ids)
    if not full:
        model.peft_config["default"].base_model_name_or_path = _base_name(run)
        model.peft_config["default"].revision = run.recipe.model.revision
    packed_attention.use_default(model)
    # Rows of new tokens are saved alone, not with the matrices that they are part of.
    model.save_pretrained(draft, **({} if full else {"save_embedding_layers": False}))
    inner.generation_config.save_pretrained(draft)
    write_generation_config(run.base, draft, run.plan.stop_ids)
    shutil.copytree(run.tokenizer, draft, dirs_exist_ok=True)
    if full:
        write_config(run.base, config_of(draft), draft)
        copy_others(run.base, draft)
    for file in draft.glob("*.safetensors"):
        follow_umask(file)
    os.rename(draft, run.result)


def _generation_config(model, stop_ids: list[int]):
    """The base's, with what ends an answer. Some bases set a temperature without sampling, which cannot be saved."""
    values = model.generation_config.to_diff_dict() | {"eos_token_id": stop_ids}
    if not values.get("do_sample") and values.keys() & {"temperature", "top_p", "top_k", "min_p"}:
        values["do_sample"] = True
    return GenerationConfig.from_dict(values)


def _base_name(run: Run) -> str:
    path = Path(run.recipe.model.path).expanduser()
    if path.is_file():  # a GGUF, which PEFT does not open
        return str(run.base)
    return str(path.resolve()) if path.is_dir() else run.recipe.model.path
