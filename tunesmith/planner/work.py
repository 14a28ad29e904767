"""Counts the arithmetic of a piece of code while it runs, on real tensors or on tensors without storage."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from tunesmith.planner.cost import Work

VIEWS = {"_unsafe_view", "detach", "alias", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty"}
"""Operations that touch no numbers, beside those whose schema says so."""


class CountWork(TorchDispatchMode):
    """Within `with count:` the work of every operation is added to `count.done`."""

    def __init__(self) -> None:
        super().__init__()
        self.done = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.done += _work(func, args, kwargs or {}, made)
        return made


def _work(func: Any, args: tuple, kwargs: dict, made: Any) -> Work:
    if not isinstance(func, torch._ops.OpOverload):
        return Work()
    name = func._schema.name.partition("::")[2].rstrip("_")
    if formula := FORMULAS.get(name):
        return Work(flops=formula(**dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs))
    if formula := flop_registry.get(_packet(func)):
        return Work(flops=formula(*args, **kwargs, out_val=made))
    if name in VIEWS or _is_view(func):
        return Work()
    written = _bytes(made)
    return Work(moved_bytes=_bytes((args, kwargs)) + written if written else 0)


def _bytes(values: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tree_leaves(values) if isinstance(x, torch.Tensor))


def _packet(func: Any) -> Any:
    """The operation, or for an in-place one such as addmm_ the one that returns a new tensor."""
    name = func.overloadpacket.__name__
    return getattr(torch.ops.aten, name.rstrip("_")) if name.endswith("mm_") else func.overloadpacket


def _is_view(func: Any) -> bool:
    returned = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def _attention(query_THD: Any, key_THD: Any, longest: int, window: int | None) -> int:
    """Products of scores and of values where tokens see those before them in their document, on average half of them,
    or those of a window (0: there is none). Documents are as long as the longest."""
    tokens, heads, width = query_THD.shape
    seen = longest / 2 if not window or window >= longest else window
    return round(2 * 2 * tokens * heads * width * seen)


def _varlen(query: Any, key: Any, max_q: int, window_size: Any = None, **_: Any) -> int:
    return _attention(query, key, max_q, window_size[0] + 1 if window_size else None)


def _varlen_backward(**named: Any) -> int:
    """Five products of the size of two of the forward pass."""
    return round(2.5 * _varlen(**named))


def _chunked(q_BLD: Any, k_BLD: Any, window: int | None, **_: Any) -> int:
    return _attention(q_BLD.transpose(0, 1), k_BLD, q_BLD.shape[1], window)


def _gemm_4bit(A: Any, shapeB: Any, **_: Any) -> int:
    return 2 * (A.numel() // A.shape[-1]) * math.prod(shapeB)


def _grouped(self: Any, mat2: Any, **_: Any) -> int:
    """Rows in groups times a matrix for each; or, for gradients of the matrices, columns in groups times rows."""
    return 2 * self.shape[-2] * self.shape[-1] * mat2.shape[-1]


FORMULAS: dict[str, Callable[..., int]] = {
    "_varlen_attn": _varlen,
    "_varlen_attn_backward": _varlen_backward,
    "attention": _chunked,
    "gemm_4bit": _gemm_4bit,
    "_grouped_mm": _grouped,
}
"""By arguments' names: of operations that torch's counter does not know, or whose lengths it reads from tensors."""
