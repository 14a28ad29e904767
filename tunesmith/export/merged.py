"""An adapter merged into its base model's weights, and shown to be the same model.

The weights are merged where they lie, one at a time, and written in pieces, so memory holds the model once.
A full fine-tune has no adapter: its weights are copied.
"""

import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tunesmith.errors import NotTheSame, UserError
from tunesmith.inputs import tokenizer_of
from tunesmith.model.load import load
from tunesmith.run import Run, write_json

# Largest difference of logits, over their spread, that rounding of merged weights explains.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PROBE = "The quick brown fox jumps over the lazy dog. 1 + 1 = 2. Was wäre, wenn? 你好 🙂\n    return x"
PIECE = "1GB"


def export_merged(run: Run, target: Path) -> dict:
    """Writes the merged model and compares its logits with the adapter's. Raises UserError.

    Returns {folder, compared_with, largest_difference (over the logits' standard deviation), bound, tokens}. Where the
    two differ by more, NotTheSame is raised and nothing is left.
    """
    if not run.result.is_dir():
        raise UserError(f"{run.folder}: no result yet; `tunesmith resume {run.folder}` finishes it")
    if target.exists():
        raise UserError(f"{target}: exists already; name another --output")
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        shutil.copytree(run.result, draft, ignore=shutil.ignore_patterns("adapter_*", "README.md"))
        ids = AutoTokenizer.from_pretrained(draft)(PROBE, return_tensors="pt").input_ids
        expected = _write(run, draft, ids)
        merged = AutoModelForCausalLM.from_pretrained(draft, dtype="auto", use_safetensors=True)
        difference = (expected - _logits(merged, ids)).abs().max() / expected.std()
        found = {"compared_with": _reference(run), "largest_difference": float(difference),
                 "bound": BOUNDS[merged.dtype], "tokens": ids.shape[1]}
        if not difference <= found["bound"]:
            raise NotTheSame(f"the merged model is not the trained one: {found}; nothing is kept")
        write_json(draft / "parity.json", found)
        os.rename(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"folder": str(target), **found}


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
        rows = max(tokenizer_of(run).vocab_size, base.get_input_embeddings().num_embeddings)
        base.resize_token_embeddings(rows)
    return base.eval()


def _write(run: Run, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Writes the merged weights; returns the trained model's logits from before merging. An adapter learned over a
    quantised base is merged into the base's own weights."""
    trained = trained_model(run, quantize="none")
    expected = _logits(trained, ids)
    if run.recipe.adapter.kind == "lora":
        merged = trained.merge_and_unload(safe_merge=True)
        merged.generation_config = GenerationConfig.from_pretrained(run.result)
        merged.save_pretrained(folder, max_shard_size=PIECE)
    return expected


def _reference(run: Run) -> str:
    """What the merged model is compared with."""
    if run.recipe.adapter.kind == "full":
        return "the trained model"
    if run.recipe.model.quantize == "none":
        return "the adapter over its base"
    return f"the adapter over its base, not quantised; it was learned over {run.recipe.model.quantize}"


def _logits(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(ids).logits.float()
