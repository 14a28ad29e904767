"""K-quants through llama.cpp, and the importance matrix that they may be told.

K-quants give each block of 256 weights the few bits that lose least; with an importance matrix, least where inputs are
large: the mean square of each input of a weight (llama.cpp's `llama-imatrix`).
"""

import ctypes
import os
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch.overrides import TorchFunctionMode

from tunesmith.errors import UserError
from tunesmith.export.gguf.families import family_of, targets
from tunesmith.llama import llama_cpp, reason, threads

KINDS = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
PRODUCTS = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


def quantize(source: Path, target: Path, kind: str, importance: Path | None = None) -> None:
    """Makes of an f32, f16 or bf16 GGUF one of `kind`, whole or not at all. `importance`: a file of save_importance.

    Rows that are no whole number of blocks get a wider kind (llama.cpp chooses). Raises UserError.
    """
    library = llama_cpp()
    if kind not in KINDS:
        raise UserError(f"export: gguf: kind {kind}: choose one of {', '.join(KINDS)}")
    settings = library.llama_model_quantize_default_params()
    settings.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    settings.nthread = threads()
    vectors = load_file(importance) if importance else {}
    table = _table(library, vectors)  # lives until the call is over
    if vectors:
        settings.imatrix = ctypes.cast(table, ctypes.POINTER(library.llama_model_imatrix_data))
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if library.llama_model_quantize(os.fsencode(source), os.fsencode(draft), ctypes.byref(settings)):
            raise UserError(f"{source}: llama.cpp cannot make {kind} of it: {reason()}")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _table(library, vectors: dict[str, np.ndarray]):
    """llama.cpp's array of names and vectors; the one without a name ends it."""
    table = (library.llama_model_imatrix_data * (len(vectors) + 1))()
    for entry, (name, vector) in zip(table, vectors.items()):
        entry.name, entry.size = name.encode(), vector.size
        entry.data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return table


def importance(model, rows: Iterable[Sequence[int]]) -> dict[str, np.ndarray]:
    """Mean squared inputs by GGUF name, float32: (in,), of stacked experts (experts * in,), over all tokens of `rows`.

    An expert that no token reached gets the mean of the others. `model`: without adapter.
    """
    family_of(model.config)
    seen = _Inputs(model)
    with torch.inference_mode(), _one_expert_at_a_time(model), seen:
        for row in rows:
            model(torch.tensor([list(row)], device=model.device), use_cache=False)
    found = {}
    for name, sums in seen.sums.items():
        counts = seen.counts[name]
        reached = counts > 0
        means = sums / counts.clamp(min=1)[:, None]
        means[~reached] = means[reached].mean(0)
        for gguf_name, _ in targets(model.config, name):
            found[gguf_name] = means.flatten().float().cpu().numpy()
    return found


def save_importance(vectors: dict[str, np.ndarray], target: Path) -> None:
    save_file(vectors, target)


class _Inputs(TorchFunctionMode):
    """Sums the squares of what is multiplied with a model's matrices."""

    def __init__(self, model):
        super().__init__()
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, torch.Tensor] = {}
        matrices = ((name, p) for name, p in model.named_parameters() if p.ndim > 1)
        self._weights = {p.untyped_storage().data_ptr(): (name, p) for name, p in matrices}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS and len(args) > 1:
            known = self._weights.get(args[1].untyped_storage().data_ptr())
            if known:
                self._add(args[0], args[1], *known)
        return function(*args, **(kwargs or {}))

    def _add(self, inputs: torch.Tensor, used: torch.Tensor, name: str, whole: torch.Tensor) -> None:
        squares = inputs.detach().flatten(0, -2).double().square()
        stacked = whole.ndim == 3
        expert = (used.storage_offset() - whole.storage_offset()) // whole.stride(0) if stacked else 0
        if name not in self.sums:
            experts = whole.shape[0] if stacked else 1
            self.sums[name] = squares.new_zeros(experts, squares.shape[1])
            self.counts[name] = squares.new_zeros(experts)
        self.sums[name][expert] += squares.sum(0)
        self.counts[name][expert] += len(squares)


@contextmanager
def _one_expert_at_a_time(model):
    """So that each product is of one expert's weight."""
    before = model.config._experts_implementation
    if before is None:
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)
