"""A frozen base in 4 or 8 bits through bitsandbytes: QLoRA (Dettmers et al. 2023) and LLM.int8 (Dettmers et al. 2022).

Weights are quantised one after the other while they are read. Output head and embeddings stay as they are.
"""

import bitsandbytes
import torch
from bitsandbytes.functional import (
    QuantState,
    dequantize_4bit,
    int8_vectorwise_dequant,
    int8_vectorwise_quant,
    quantize_4bit,
)
from torch.utils._pytree import tree_map_only
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from tunesmith.errors import UserError
from tunesmith.model.experts import is_stack, stacks
from tunesmith.model.text import is_multimodal, text_modules, text_prefix

BLOCK = 64  # weights that share a scale
aten = torch.ops.aten


def settings(kind: str, dtype: torch.dtype, empty) -> BitsAndBytesConfig:
    """What from_pretrained needs to quantise to `kind` (nf4 or int8) and compute in `dtype`. `empty`: the model without
    storage."""
    whole = _left_whole(empty)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)
    found = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=whole,
    )
    found.quant_method = NF4
    return found


def _left_whole(empty) -> list[str] | None:
    """Linear modules that stay as they are; None leaves that to transformers, which keeps the output head. Of a
    multimodal model also what is not text: nothing there is trained, and widths do not suit blocks."""
    if not is_multimodal(empty):
        return None
    head = empty.get_output_embeddings()
    text = {name for name, module in text_modules(empty) if module is not head}
    return [name for name, module in empty.named_modules() if isinstance(module, torch.nn.Linear) and name not in text]


def settle(model) -> None:
    """After loading: makes bitsandbytes compute right, in the precision of the other weights. Raises UserError where it
    cannot.

    Its CPU path for inference is switched off: it repacks the weights for bfloat16 products without a backward pass,
    so a model once evaluated would train wrongly. On a CPU, rows that end within a block get wrong scales (0.50).
    """
    if getattr(model, "is_loaded_in_8bit", False) and stacks(model):
        raise UserError("model.quantize: int8 does not reach experts, which are not linear layers; say nf4")
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = model.dtype, True  # a base stored so has its own
            if module.weight.device.type == "cpu" and module.in_features % BLOCK:
                raise UserError(
                    f"model.quantize: 4 bits on a CPU need layers of a multiple of {BLOCK} inputs, {name} "
                    f"has {module.in_features}; say model.quantize: int8, or none, over a base in full "
                    "precision"
                )


class Stack4bit(torch.Tensor):
    """The stacked weights of a layer's experts in NF4, under the shape and dtype they had.

    Whatever computes with it gets them dequantised, so autograd keeps the 4-bit tensor for the backward pass.
    """

    @staticmethod
    def __new__(cls, packed: torch.Tensor, state, stored: torch.Size, transposed: bool = False):
        experts, rows, columns = stored
        shape, strides = (experts, rows, columns), (rows * columns, columns, 1)
        if transposed:
            shape, strides = (experts, columns, rows), (rows * columns, 1, columns)
        return torch.Tensor._make_wrapper_subclass(cls, shape, strides, dtype=state.dtype, device=packed.device)

    def __init__(self, packed: torch.Tensor, state, stored: torch.Size, transposed: bool = False):
        self.packed, self.state, self.stored, self.transposed = packed, state, stored, transposed

    @classmethod
    def quantize(cls, full: torch.Tensor) -> "Stack4bit":
        """Blocks run through the whole stack."""
        return cls(*quantize_4bit(full.flatten(), quant_type="nf4", compress_statistics=True), full.shape)

    def dequantized(self) -> torch.Tensor:
        full = dequantize_4bit(self.packed, self.state).view(self.stored)
        return full.transpose(1, 2) if self.transposed else full

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        first = args[0] if args else None
        if function in (aten.detach.default, aten.alias.default):
            return cls(first.packed, first.state, first.stored, first.transposed)
        if function == aten.transpose.int and {axis % 3 for axis in args[1:]} == {1, 2}:
            return cls(first.packed, first.state, first.stored, not first.transposed)
        if function == aten.set_.source_Tensor:  # PEFT's wrapper of a parameter sets it to itself
            return first
        args, kwargs = tree_map_only(cls, cls.dequantized, (args, kwargs or {}))
        return function(*args, **kwargs)


def dequantized(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a base stored in 4 or 8 bits, in full, without what is stored beside them. `stored` is whole: each
    weight comes with its scales."""
    found, beside = {}, set()
    for name, tensor in stored.items():
        own = {key: value for key, value in stored.items() if key.startswith(f"{name}.")}
        scale_O = stored.get(f"{name.removesuffix('weight')}SCB") if tensor.dtype == torch.int8 else None
        if own:
            tensor = dequantize_4bit(tensor, QuantState.from_dict(own, tensor.device))
        elif scale_O is not None:
            tensor = int8_vectorwise_dequant(tensor, scale_O)
        found[name] = tensor
        beside |= own.keys()
    return {
        name: tensor
        for name, tensor in found.items()
        if name not in beside and not name.endswith((".SCB", ".weight_format"))
    }


def rounded_by(kind: str):
    """A function (model, weight's name, tensor) that gives what the weight is worth once loaded as `kind`."""

    def rounded(model, name: str, tensor: torch.Tensor) -> torch.Tensor:
        module, parameter = get_module_from_name(model, name)
        linear = isinstance(module, torch.nn.Linear) and parameter == "weight"
        small = (linear and module is not model.get_output_embeddings()) or is_stack(module, parameter)
        if not (small and name.startswith(text_prefix(model))):
            return tensor
        if kind == "nf4":
            flat = tensor.contiguous().flatten() if tensor.ndim == 3 else tensor.contiguous()
            packed, state = quantize_4bit(flat, quant_type="nf4", compress_statistics=True)
            return dequantize_4bit(packed, state).view(tensor.shape).to(tensor.dtype)
        whole, scale, _ = int8_vectorwise_quant(tensor.half())
        return int8_vectorwise_dequant(whole, scale).to(tensor.dtype)

    return rounded


class _Quantize(Bnb4bitQuantize):
    """transformers' own for linear layers; experts become a Stack4bit."""

    def convert(self, input_dict, full_layer_name=None, model=None, **others):
        linear, stacks = {}, {}
        for name, value in input_dict.items():
            module, parameter = get_module_from_name(model, name)
            if is_stack(module, parameter):
                value = value[0] if isinstance(value, list) else value
                stacks[name] = torch.nn.Parameter(Stack4bit.quantize(value), requires_grad=False)
            else:
                linear[name] = value
        return stacks | super().convert(linear, full_layer_name, model, **others)


NF4 = "tunesmith_nf4"


@register_quantizer(NF4)
class _Quantizer(Bnb4BitHfQuantizer):
    """transformers' own, which leaves out experts: they are stacked parameters, not linear layers."""

    def param_needs_quantization(self, model, param_name: str, **others) -> bool:
        return is_stack(*get_module_from_name(model, param_name)) or super().param_needs_quantization(
            model, param_name, **others
        )

    def get_quantize_ops(self):
        return _Quantize(self)
