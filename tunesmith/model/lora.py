"""LoRA's forward and backward pass (Hu et al. 2021) without needless copies.

PEFT's layer casts its input to float32, saves that cast for each of q, k and v, and scales and adds in separate passes.
This layer saves only the shared input and the N x r products. Shapes: N tokens, I inputs, O outputs, r rank.
"""

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F


def fuse(model: nn.Module) -> None:
    """Replaces the forward of PEFT layers that are plain LoRA over a linear layer, quantised or not. Layers with
    dropout or DoRA keep PEFT's forward."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _is_plain(layer):
            layer.forward = _Fused(layer, layer.forward)


def _is_plain(layer: LoraLayer) -> bool:
    base = layer.get_base_layer()
    return (
        isinstance(base, nn.Linear)
        and list(layer.lora_A) == ["default"]
        and not layer.lora_variant
        and isinstance(layer.lora_dropout["default"], nn.Identity)
        and not layer.lora_bias["default"]
    )


class _Fused:
    """The forward of one layer. It is an object, not a closure, so that a deep copy of the model has its own."""

    def __init__(self, layer: LoraLayer, inner):
        self.layer, self.inner = layer, inner

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        if layer.disable_adapters or layer.merged:
            return self.inner(x)
        base = layer.get_base_layer()
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x = x.to(dtype)
        a_rI, b_Or = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        plain = type(base) is nn.Linear and not base.weight.requires_grad
        # A quantised layer computes its own product.
        weight, rest = (base.weight.to(dtype), base.bias) if plain else (None, base(x))
        # Reshaped outside the Function: some models add to the output in place (Falcon, Gemma 3n), and autograd forbids
        # that for a view created inside a Function.
        out_NO = _Lora.apply(
            x.flatten(0, -2), weight, rest if plain else rest.flatten(0, -2), a_rI, b_Or, layer.scaling["default"]
        )
        return out_NO.view(*x.shape[:-1], -1)


class _Lora(torch.autograd.Function):
    """Computes `x W' + rest + s (x A') B'`, where W is frozen and `rest` its bias. Without W, `rest` is the whole
    output of the base layer."""

    @staticmethod
    def forward(ctx, x_NI, weight_OI, rest, a_rI, b_Or, scaling: float):
        dtype = x_NI.dtype
        with torch.autocast(x_NI.device.type, enabled=False):
            low_Nr = x_NI @ a_rI.to(dtype).t()
            out_NO = rest if weight_OI is None else F.linear(x_NI, weight_OI, None if rest is None else rest.to(dtype))
            out_NO = torch.addmm(out_NO, low_Nr, b_Or.to(dtype).t(), alpha=scaling)
        ctx.save_for_backward(x_NI, weight_OI, a_rI, b_Or, low_Nr)
        ctx.scaling = scaling
        return out_NO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_NO):
        x_NI, weight_OI, a_rI, b_Or, low_Nr = ctx.saved_tensors
        grad_low_Nr = grad_NO @ b_Or.to(x_NI.dtype) * ctx.scaling
        grad_a, grad_b = grad_low_Nr.t() @ x_NI, grad_NO.t() @ low_Nr * ctx.scaling
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_low_Nr @ a_rI.to(x_NI.dtype)
            grad_x = grad_x if weight_OI is None else grad_x.addmm_(grad_NO, weight_OI)
        grad_rest = grad_NO if weight_OI is None and ctx.needs_input_grad[2] else None
        return grad_x, None, grad_rest, grad_a.to(a_rI.dtype), grad_b.to(b_Or.dtype), None
