"""The memory of a training step, found by running the step itself on tensors without storage.

The model is built on torch's meta device, adapted and transformed by the functions that training calls, and its
parameters become fake tensors. Then two steps run, the second of which has the optimizer's states, while every storage
that is alive is counted. Memory that no dispatcher sees is not among it: temporaries inside of kernels, workspaces,
fragments of an allocator.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tunesmith.methods import Method
from tunesmith.model import load
from tunesmith.model.adapt import adapt
from tunesmith.model.text import base_of
from tunesmith.plan import Plan
from tunesmith.planner.live_bytes import LiveBytes
from tunesmith.recipe import Recipe
from tunesmith.training import packed_attention
from tunesmith.training.batch import Batch, collate
from tunesmith.training.build import Facts, Trainable, transform
from tunesmith.training.loss import Head, autocast, head_by_form, method_loss
from tunesmith.training.walk import backward

STEPS = 2  # the first has no moments yet
PHASES = ("forward", "backward", "update")


@dataclass(frozen=True)
class Peaks:
    """Bytes of live storages: of what is there before a step, and the most in each phase of it."""

    resident: int
    forward: int
    backward: int
    update: int

    @property
    def most(self) -> int:
        return max(self.forward, self.backward, self.update)


def trace(recipe: Recipe, plan: Plan, config: Any, lengths: list[int], new_ids: tuple[int, ...] = ()) -> Peaks:
    """The peaks of a step whose micro-batches all have sequences of these lengths. `config`: that of transformers.
    `new_ids`: of the tokens that the recipe adds. Raises UserError for a setting that does not suit the model."""
    mode = FakeTensorMode()
    with torch.device("meta"):
        model = load.with_random_weights(config, getattr(torch, plan.weights), packed_attention.choose(config, plan.packing))
        rows = model.get_input_embeddings().num_embeddings
        model = adapt(model, recipe.adapter, [*new_ids], max((rows, *(number + 1 for number in new_ids))))
    with mode:
        without_storage(model)
        built = transform(model, recipe, plan, Facts(None, head_by_form(model)), _ignore)
        batch = batch_of(lengths, plan.packing)
        return step_peaks(built, Method(recipe.method), batch)


def step_peaks(built: Trainable, method: Method, batch: Batch) -> Peaks:
    """The peaks of two steps, on real or fake tensors."""
    live, peaks = LiveBytes(), dict.fromkeys(PHASES, 0)
    model, optimizer = built.model, built.optimizer
    model.train()
    live.begin("weights")
    live.count(*model.parameters(), *model.buffers())
    live.begin("batch")
    live.count(*(value for value in vars(batch).values() if isinstance(value, torch.Tensor)))

    def note(phase: str, following: str) -> None:
        peaks[phase] = max(peaks[phase], live.peak)
        live.begin(following)

    def loss(batch: Batch) -> torch.Tensor:
        with autocast(built.plan):
            total, _ = method_loss(method, model, batch, built.head)
        note("forward", "backward")
        return total / batch.supervised_tokens

    resident = 0
    with live:
        for step in range(STEPS):
            resident = live.now
            live.begin("forward")
            backward(None, [batch], loss, lambda batch: built.routing.loss(batch, 1.0), lambda batch: None)
            note("backward", "update")
            optimizer.clip(1.0)
            optimizer.step((0, step))
            note("update", "states")
            optimizer.zero_grad()
    return Peaks(resident, **peaks)


def batch_of(lengths: list[int], packed: bool) -> Batch:
    """A batch of sequences of these lengths, all of whose tokens are learned. On fake tensors under a fake mode."""
    tokens = [(np.zeros(length, np.int64), np.ones(length, bool)) for length in lengths]
    batch = collate(tokens, np.arange(len(lengths)), packed)
    tensors = {name: torch.empty_like(x) for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
    return replace(batch, **tensors)


def without_storage(model: nn.Module) -> None:
    """Replaces parameters and buffers on the meta device by fake ones on the CPU, where all kernels have a fake form. A
    fake GPU would need a build of torch for it."""
    made: dict[torch.Tensor, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or tensor.device.type != "meta":
                    continue
                if tensor not in made:
                    new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[tensor] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
                tensors[name] = made[tensor]


def _ignore(event: str, **values: Any) -> None:
    """Warnings are for the run itself."""
