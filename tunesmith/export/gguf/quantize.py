"""Quantises to llama.cpp's K-quants, optionally with an importance matrix.

K-quants choose scales for each block of 256 weights to minimise the rounding error. An importance matrix, the mean
square of each input of a weight (llama.cpp's `llama-imatrix`), weights that error.
"""

import ctypes
import os
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tunesmith.errors import UserError
from tunesmith.export.gguf.families import inputs_form, is_of_text, targets, text_name
from tunesmith.export.gguf.layout import same
from tunesmith.files import follow_umask, replaced
from tunesmith.inference.llama_cpp import llama_cpp, reason, threads

KINDS = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")


def quantize(source: Path, target: Path, kind: str, importance: Path | None = None) -> None:
    """Quantises an f32, f16 or bf16 GGUF to `kind` and writes `target` atomically. `importance` is a file of
    save_importance.

    llama.cpp uses a wider type for rows that are not a multiple of the block size. Raises UserError.
    """
    library = llama_cpp()
    if kind not in KINDS:
        raise UserError(f"export: gguf: kind {kind}: choose one of {', '.join(KINDS)}")
    settings = library.llama_model_quantize_default_params()
    settings.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    settings.nthread = threads()
    vectors = load_file(importance) if importance else {}
    table = _table(library, vectors)  # a reference that must live until the call returns
    if vectors:
        settings.imatrix = ctypes.cast(table, ctypes.POINTER(library.llama_model_imatrix_data))
    with replaced(target) as draft:
        if library.llama_model_quantize(os.fsencode(source), os.fsencode(draft), ctypes.byref(settings)):
            raise UserError(f"{source}: llama.cpp cannot quantise it to {kind}: {reason()}")


def _table(library, vectors: dict[str, np.ndarray]):
    """Returns llama.cpp's array of names and vectors, which ends with an entry without a name."""
    table = (library.llama_model_imatrix_data * (len(vectors) + 1))()
    for entry, (name, vector) in zip(table, vectors.items()):
        entry.name, entry.size = name.encode(), vector.size
        entry.data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return table


def save_importance(config, importance: dict[str, torch.Tensor], target: Path) -> None:
    """Writes the result of `importance` by GGUF name in float32: (in,), or (experts * in,) for stacked experts."""
    config = config.get_text_config()
    vectors = {}
    for name, means in importance.items():
        for gguf_name, _ in targets(config, text_name(name)) if is_of_text(name) else []:
            ordered = inputs_form(config, gguf_name) or same
            vectors[gguf_name] = ordered(means).flatten().float().numpy()
    save_file(vectors, target)
    follow_umask(target)
