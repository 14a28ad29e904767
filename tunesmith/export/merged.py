"""An adapter merged into its base model's weights, tensor by tensor, and shown to be the same model.

Each tensor is read, changed and written before the next, so memory holds one at a time. A full fine-tune has no
adapter: its weights are copied.
"""

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from tunesmith.errors import UserError
from tunesmith.model.load import load
from tunesmith.run import Run, write_json

# Largest difference of logits, over their spread, that rounding of merged weights explains.
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PROBE = "The quick brown fox jumps over the lazy dog. 1 + 1 = 2. Was wäre, wenn? 你好 🙂\n    return x"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "U8": 1, "I8": 1, "BOOL": 1,
         "F8_E4M3": 1, "F8_E5M2": 1}


def export_merged(run: Run, target: Path) -> dict:
    """Writes the merged model and compares its logits with the adapter's. Raises UserError.

    Returns {folder, largest_difference (over the logits' standard deviation), bound, tokens}. Where the two differ
    by more, RuntimeError is raised and nothing is left.
    """
    if not run.result.is_dir():
        raise UserError(f"{run.folder}: no result yet; `tunesmith resume {run.folder}` finishes it")
    if target.exists():
        raise UserError(f"{target}: exists already; name another --output")
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        shutil.copytree(run.result, draft, ignore=shutil.ignore_patterns("adapter_*", "README.md"))
        trained = trained_model(run)
        if run.recipe.adapter.kind == "lora":
            _write_merged(run, trained, draft)
        found = _compare(trained, draft)
        if found["largest_difference"] > found["bound"]:
            raise RuntimeError(f"the merged model is not the trained one: logits differ by {found}; nothing is kept")
        write_json(draft / "parity.json", found)
        os.rename(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"folder": str(target), **found}


def trained_model(run: Run):
    """The result as it was trained: base and adapter, or the full model, in its saved precision."""
    plan = run.plan
    if run.recipe.adapter.kind == "full":
        recipe = run.recipe.model.model_copy(update={"initialize": "pretrained"})
        return load(recipe, run.result, "auto", "sdpa", run.recipe.seed).eval()
    from peft import PeftModel

    base = load(run.recipe.model, run.base, getattr(torch, plan["weights"]), "sdpa", run.recipe.seed)
    if run.recipe.model.new_tokens:
        from tunesmith.job import tokenizer_of

        rows = tokenizer_of(run).vocab_size
        if rows > base.get_input_embeddings().num_embeddings:
            base.resize_token_embeddings(rows)
    return PeftModel.from_pretrained(base, run.result, autocast_adapter_dtype=False).eval()


def _write_merged(run: Run, trained, folder: Path) -> None:
    """Config and weights. Every tensor is that of the base's file unless the adapter changes it."""
    base = trained.get_base_model()
    base.config.save_pretrained(folder)
    files = sorted(run.base.glob("*.safetensors"))
    changed = dict(_changed(trained))
    index = {}
    for number, file in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors" if len(files) > 1 else "model.safetensors"
        with safe_open(file, "pt") as opened:
            keys = list(opened.keys())
            _stream(folder / name, keys, lambda key: changed[key]() if key in changed else opened.get_tensor(key),
                    {key: opened.get_slice(key) for key in keys}, changed)
        index |= dict.fromkeys(keys, name)
    missing = changed.keys() - index.keys()
    if missing:
        raise UserError(f"{run.folder}: the base model's files do not have {min(missing)}, which the adapter changes; "
                        "this model cannot be merged from its files")
    if len(files) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def _changed(trained) -> Iterator[tuple[str, callable]]:
    """(name in the base's files, function that returns the merged tensor) of each weight that the adapter changes."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    for name, module in trained.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield f"{name}.weight", lambda m=module: _merged_weight(m)
        elif isinstance(module, ModulesToSaveWrapper):
            for inner, parameter in module.modules_to_save["default"].named_parameters():
                yield f"{name}.{inner}", lambda p=parameter: p.data
        elif isinstance(module, TrainableTokensWrapper):
            yield f"{name}.weight", lambda m=module: m.token_adapter.get_merged_weights(["default"])


def _merged_weight(layer) -> torch.Tensor:
    """The layer's weight with its adapter, by PEFT's own arithmetic (LoRA, rsLoRA, DoRA); the layer is left as is."""
    weight = layer.get_base_layer().weight
    before = weight.data.clone()
    layer.merge(safe_merge=True)
    merged = layer.get_base_layer().weight.data
    layer.merged_adapters.clear()
    layer.get_base_layer().weight.data = before
    return merged


def _stream(path: Path, keys: list[str], tensor_of, slices: dict, changed: dict) -> None:
    """Writes a safetensors file tensor by tensor: its header needs only shapes and dtypes, known beforehand."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for key in keys:
        shape, dtype = slices[key].get_shape(), slices[key].get_dtype()
        if key in changed:
            merged = changed[key]()
            shape, dtype = list(merged.shape), DTYPES[merged.dtype]
            size = merged.nbytes
        else:
            size = math.prod(shape) * BYTES[dtype]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in keys:
            file.write(tensor_of(key).detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())


def _compare(trained, folder: Path) -> dict:
    """Largest difference of logits on a probe text, over their standard deviation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()
    ids = tokenizer(PROBE, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected, found = trained(ids).logits.float(), merged(ids).logits.float()
    return {"largest_difference": float((expected - found).abs().max() / expected.std()),
            "bound": BOUNDS[merged.dtype], "tokens": ids.shape[1]}
