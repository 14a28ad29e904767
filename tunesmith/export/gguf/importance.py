"""Computes the importance matrix: the mean squared inputs of each weight matrix over rows of the training data.

Quantisation uses it to lose least precision where the inputs are large.
"""

from collections.abc import Iterable, Sequence
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from tunesmith.finetune.prepared import Prepared
from tunesmith.finetune.result import trained_model
from tunesmith.run import Run

ROWS = 128
PRODUCTS = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


def importance_of(run: Run) -> dict[str, torch.Tensor]:
    """Returns the `importance` of a run's model over up to ROWS training rows. Loads the whole model."""
    model = trained_model(run, quantize="none")
    if run.recipe.adapter.kind == "lora":
        model = model.merge_and_unload()
    learned = Prepared.open(run).dataset.train
    return importance(model, (list(map(int, learned.first_sequence(n)[0])) for n in range(min(ROWS, len(learned)))))


def importance(model, rows: Iterable[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Returns {name of a matrix: mean squared inputs over all tokens of `rows`}, (experts, in) in float64, with one
    expert for other matrices.

    An expert that no token reached gets the mean of the others. `model` must have no adapter.
    """
    inputs = _Inputs(model)
    with torch.inference_mode(), _one_expert_at_a_time(model), inputs:
        for row in rows:
            model(torch.tensor([list(row)], device=model.device), use_cache=False)
    means_by_name = {}
    for name, sums in inputs.sums.items():
        reached = inputs.counts[name] > 0
        means = sums / inputs.counts[name].clamp(min=1)[:, None]
        means[~reached] = means[reached].mean(0)
        means_by_name[name] = means.cpu()
    return means_by_name


class _Inputs(TorchFunctionMode):
    """Sums the squares of the inputs of a model's matrices."""

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
    """Selects Transformers' eager experts, in which each product has the weight of one expert."""
    before = model.config._experts_implementation
    if before is None:
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)
