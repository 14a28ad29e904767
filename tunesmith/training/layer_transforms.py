"""Transforms of each decoder layer, from the inside out: tiles for its MLP, compiling, recomputation.

Each step replaces a module's `forward` on the instance, so that names of parameters, and with them checkpoints and
results, stay the same. Shapes: B sequences, T tokens, C hidden size.
"""

import inspect
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.nn.attention.varlen  # what defines its operation
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from tunesmith.model.text import base_of, decoder_layers
from tunesmith.training import attention_kernels
from tunesmith.training.offload import Offload

aten = torch.ops.aten
# What `selective` keeps stays on the GPU. Newer versions of torch can also pass it to the hooks that offload, and warn
# unless the option is set.
HOOKS_OPTION = "respect_saved_tensors_hooks"
ASIDE_FROM_HOOKS = {HOOKS_OPTION: False} if HOOKS_OPTION in inspect.signature(checkpoint).parameters else {}
EXPENSIVE = [  # what `selective` keeps: matrix products and attention, in every way torch computes them
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
    attention_kernels.CHUNKED,
]
# Not aten._grouped_mm: gpt-oss adds to its result in place.


def checkpoint_layers(model: nn.Module, how: str | float, offload: Offload | None = None) -> None:
    """Recomputes activations in the backward pass (Chen et al. 2016): `on` in every layer, `selective` all but the
    EXPENSIVE ones, a share in so many layers, spread evenly; `off` in none. May be called again with another
    answer; what was offloaded still is.
    """
    layers = decoder_layers(model)
    before = [layer.forward for layer in layers if isinstance(layer.forward, _Checkpointed)]
    offload = offload or next((forward.offload for forward in before), None)
    count = round({"on": 1, "selective": 1, "off": 0}.get(how, how) * len(layers))
    for i, layer in enumerate(layers):
        forward = layer.forward.inner if isinstance(layer.forward, _Checkpointed) else layer.forward
        chosen = is_spread(i, count, len(layers))
        layer.forward = _Checkpointed(layer, forward, how == "selective", offload) if chosen else forward


def is_spread(index: int, chosen: int, layers: int) -> bool:
    """Whether a layer is one of `chosen` that are spread evenly over all."""
    return (index + 1) * chosen // layers > index * chosen // layers


class _Checkpointed:
    """A layer's forward that keeps its input alone. Objects, not closures, so that a copied model is its own."""

    def __init__(self, layer: nn.Module, inner, selective: bool, offload: Offload | None):
        self.layer, self.inner, self.offload = layer, inner, offload
        self.options = {"use_reentrant": False}
        if selective:
            self.options["context_fn"] = partial(create_selective_checkpoint_contexts, EXPENSIVE)
            self.options |= ASIDE_FROM_HOOKS

    def __call__(self, hidden_BTC: torch.Tensor, *args, **kwargs):
        learns = hidden_BTC.requires_grad or any(p.requires_grad for p in self.layer.parameters())
        if not (learns and torch.is_grad_enabled()):  # nothing is kept anyway
            return self.inner(hidden_BTC, *args, **kwargs)
        with self.offload.hooks() if self.offload else nullcontext():
            return checkpoint(self.inner, hidden_BTC, *args, **self.options, **kwargs)


def tile_mlps(model: nn.Module) -> str | None:
    """Runs each layer's MLP over tiles of T, recomputed one by one in the backward pass (Bekman et al. 2025, ALST).
    Returns why it cannot."""
    mlps = [getattr(layer, "mlp", None) for layer in decoder_layers(model)]
    if not all(map(_is_dense, mlps)):
        return f"{_name(model)} has layers without a plain MLP (it has experts, or none)"
    for mlp in mlps:
        mlp.forward = _Tiled(mlp.forward)
    return None


class _Tiled:
    """An MLP's forward in tiles of as many tokens as the hidden size, so a tile is about as large as a weight."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, hidden_BTC: torch.Tensor) -> torch.Tensor:
        tiles = hidden_BTC.split(hidden_BTC.shape[-1], dim=1)
        if len(tiles) == 1:
            return self.inner(hidden_BTC)
        return torch.cat([checkpoint(self.inner, tile.contiguous(), use_reentrant=False) for tile in tiles], dim=1)


def compile_layers(model: nn.Module, cache: Path) -> str | None:
    """Compiles each layer's forward for training; kernels stay in `cache`. Returns why it cannot.

    T is dynamic, as each packed batch has another. Attention over documents stays outside of the graphs.
    """
    layers = decoder_layers(model)
    if not all(_is_dense(getattr(layer, "mlp", None)) for layer in layers):
        return f"{_name(model)} has layers without a plain MLP (it has experts, or none), and was not tried"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    torch.compiler.reset()  # an earlier run in this process, as in a notebook, must not count towards its limits
    for layer in layers:
        layer.forward = _Compiled(layer.forward)
    return None


class _Compiled:
    """Compiled where gradients are wanted; evaluation and generation, of many more shapes, run as they are."""

    def __init__(self, inner):
        self.inner, self.fast = inner, torch.compile(inner, dynamic=True)

    def __call__(self, *args, **kwargs):
        return (self.fast if torch.is_grad_enabled() else self.inner)(*args, **kwargs)


class CompileWatch:
    """Tells what torch.compile did since it was last asked."""

    def __init__(self):
        self._graphs, self._seconds = _compiled()
        self._warm = False

    def news(self) -> dict | None:
        """Graphs and seconds, None without any; `recompiles` are the graphs that came after the first ones."""
        graphs, seconds = _compiled()
        new, took = graphs - self._graphs, seconds - self._seconds
        if not new:
            return None
        found = {"graphs": new, "recompiles": new if self._warm else 0, "seconds": round(took, 3)}
        self._graphs, self._seconds, self._warm = graphs, seconds, True
        return found


def _compiled() -> tuple[int, float]:
    """(graphs, seconds) of torch.compile in this process."""
    from torch._dynamo.utils import compilation_time_metrics, counters

    return counters["stats"]["unique_graphs"], sum(compilation_time_metrics.get("_compile.compile_inner", ()))


def _is_dense(mlp: nn.Module | None) -> bool:
    """Whether it is an MLP that takes hidden states alone and has no experts."""
    if mlp is None or any(name.rpartition(".")[2] in ("experts", "router") for name, _ in mlp.named_modules()):
        return False
    return len(inspect.signature(mlp.forward).parameters) == 1


def _name(model: nn.Module) -> str:
    return type(base_of(model)).__name__
