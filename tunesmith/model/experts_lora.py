"""LoRA over stacked experts of a mixture of experts, without an update as large as their weights.

PEFT adds `s B A` of all experts to their weights in each forward pass, and autograd keeps the sum. Here the product of
a token and its expert is `W x + s B (A x)`. All else in the experts' forward stays as it is in Transformers.

Shapes: S pairs of a token and one of its experts, sorted by expert; E experts, I inputs, O outputs, r rank; X either I
or O.
"""

from collections.abc import Callable

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.nn import functional as F
from transformers.integrations import moe  # noqa: F401  it defines grouped_mm_fallback

from tunesmith.model.experts import is_stack

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALIGNMENT_BYTES = 16  # of the rows that torch's grouped product takes
GROUPED = (torch._grouped_mm, torch.ops.transformers.grouped_mm_fallback)  # the latter for GPUs that lack the former


def fuse(model: nn.Module) -> None:
    """Replaces the forward of PEFT layers that are plain LoRA over stacked experts, quantised or not."""
    for outermost in _wrappers(model):
        if all(map(_is_plain, _nested(outermost))):
            outermost.forward = _Fused(outermost, outermost.forward)


def left_to_peft(model: nn.Module) -> bool:
    """Whether PEFT's forward computes some of the experts' adapters. Known once the model has run."""
    return any(not isinstance(w.forward, _Fused) or w.forward.left_to_peft for w in _wrappers(model))


def _wrappers(model: nn.Module) -> list[ParamWrapper]:
    """PEFT's layers over experts, one for each module of experts: the outermost, which is run."""
    wrappers = [m for m in model.modules() if isinstance(m, ParamWrapper) and is_stack(_experts(m), m.parameter_name)]
    inner = {wrapper.base_layer for wrapper in wrappers}
    return [wrapper for wrapper in wrappers if wrapper not in inner]


def _nested(outermost: ParamWrapper) -> list[ParamWrapper]:
    """PEFT's layers over one module of experts: each adapts another parameter, and wraps the next."""
    found = [outermost]
    while isinstance(found[-1].base_layer, ParamWrapper):
        found.append(found[-1].base_layer)
    return found


def _experts(wrapper: ParamWrapper) -> nn.Module:
    return wrapper.get_base_layer()


def _is_plain(wrapper: ParamWrapper) -> bool:
    # PEFT refuses dropout, DoRA and biases for parameters.
    return list(wrapper.lora_A) == ["default"] and wrapper.num_experts > 1 and wrapper.get_param().dtype in DTYPES


class _Fused:
    """The forward of the outermost layer. It is an object, not a closure, so that a deep copy of the model has its own.

    Hooks of the module of experts itself do not run.
    """

    def __init__(self, outermost: ParamWrapper, inner: Callable):
        self.outermost, self.inner, self.left_to_peft = outermost, inner, False

    def __call__(self, *args, **kwargs):
        wrappers = _nested(self.outermost)
        if not any(wrapper.disable_adapters or wrapper.merged for wrapper in wrappers):
            experts = _experts(self.outermost)
            stacks = {wrapper.parameter_name: _Stack.of(wrapper) for wrapper in wrappers}
            try:
                return type(experts).forward(_Adapted(experts, stacks), *args, **kwargs)
            except _UnknownUse:
                self.left_to_peft = True
        return self.inner(*args, **kwargs)


class _Adapted:
    """Experts whose forward finds stacks in place of parameters."""

    def __init__(self, experts: nn.Module, stacks: dict[str, "_Stack"]):
        self._experts = experts
        vars(self).update(stacks)

    def __getattr__(self, name: str):
        return getattr(self._experts, name)


class _UnknownUse(Exception):
    """The forward of the experts uses a stack for more than grouped matrix products."""


class _Stack:
    """Stacked weights with their update, in the place of the weights' parameter. It has what a forward made of grouped
    matrix products needs; all else raises _UnknownUse. `W + left' right` is the sum that PEFT computes."""

    def __init__(self, weight_EXX: torch.Tensor, left_ErX: torch.Tensor, right_ErX: torch.Tensor, scaling: float):
        self.weight, self.left, self.right, self.scaling = weight_EXX, left_ErX, right_ErX, scaling
        self.dtype, self.device = weight_EXX.dtype, weight_EXX.device

    @classmethod
    def of(cls, wrapper: ParamWrapper) -> "_Stack":
        left_EXr, right_ErX, scaling = wrapper.get_delta_factors("default")
        return cls(wrapper.get_param(), _aligned(left_EXr.mT), _aligned(right_ErX), scaling)

    def transpose(self, *axes: int) -> "_Stack":
        if {axis % 3 for axis in axes} != {1, 2}:
            raise _UnknownUse
        return _Stack(self.weight.transpose(*axes), self.right, self.left, self.scaling)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function not in GROUPED or not isinstance(args[1], cls):
            raise _UnknownUse
        inputs_SI, stack, *others = args

        def product(left, right):
            return function(left, right, *others, **(kwargs or {}))

        out_SO = product(inputs_SI, stack.weight)
        low_Sr = product(inputs_SI, stack.left.mT) * stack.scaling
        return out_SO.add_(product(low_Sr, stack.right))

    def __getattr__(self, name: str):
        raise _UnknownUse

    def __getitem__(self, index):
        raise _UnknownUse


def _aligned(factor_ErX: torch.Tensor) -> torch.Tensor:
    """The factor with a rank, padded by zeros, that makes products with it aligned."""
    missing = -factor_ErX.shape[1] % (ALIGNMENT_BYTES // factor_ErX.itemsize)
    return F.pad(factor_ErX, (0, 0, 0, missing)) if missing else factor_ErX.contiguous()
