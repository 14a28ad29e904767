"""Quantises a frozen base to 4 or 8 bits with bitsandbytes: QLoRA's NF4 (Dettmers et al. 2023), LLM.int8 (Dettmers et
al. 2022).

Weights are quantised one at a time while they are read. The output head and the embeddings are not quantised.
"""

import copy
import copyreg
from collections.abc import Callable

import bitsandbytes
import torch
from bitsandbytes.functional import (
    QuantState,
    dequantize_4bit,
    int8_vectorwise_dequant,
    int8_vectorwise_quant,
    quantize_4bit,
)
from bitsandbytes.nn import Int8Params, Params4bit
from torch.utils._pytree import tree_map_only
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module

from tunesmith.errors import UserError
from tunesmith.model.experts import is_stack, stacks
from tunesmith.model.memory import trim_heap
from tunesmith.model.text import is_multimodal, text_modules, text_prefix

BLOCK = 64  # weights that share one scale
aten = torch.ops.aten


def settings(kind: str, dtype: torch.dtype, empty) -> BitsAndBytesConfig:
    """Returns the `quantization_config` for from_pretrained. `kind` is nf4 or int8, `dtype` the compute dtype, `empty`
    the model on the meta device."""
    skipped = _skipped_modules(empty)
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )
    config.quant_method = NF4
    return config


def _skipped_modules(empty) -> list[str] | None:
    """Returns the linear modules to leave unquantised, or None for Transformers' default, the output head. For a
    multimodal model, these include all modules outside the text part: none is trained, and their widths may not be a
    multiple of the block size."""
    if not is_multimodal(empty):
        return None
    head = empty.get_output_embeddings()
    text = {name for name, module in text_modules(empty) if module is not head}
    return [name for name, module in empty.named_modules() if isinstance(module, torch.nn.Linear) and name not in text]


def quantize_nf4(model, dtype: torch.dtype, stored: dict | None = None) -> None:
    """Quantises a model that was built in full precision, as loading it in NF4 would. For models on the meta device,
    whose weights have shapes alone. `dtype`: the compute dtype. `stored`: how a base that is stored in 4 bits was
    quantised, by its config."""
    with torch.device("cpu"):  # bitsandbytes keeps the table that it makes the first time, which must have values
        quantize_4bit(torch.zeros(BLOCK), quant_type="nf4", compress_statistics=True)
    for module in [*model.modules()] if stored is None else []:  # transformers quantises no stacks
        for parameter in [p for p, _ in module.named_parameters(recurse=False) if is_stack(module, p)]:
            stack = Stack4bit.quantize(getattr(module, parameter).detach())
            setattr(module, parameter, torch.nn.Parameter(stack, requires_grad=False))
    double = stored is None or bool(stored.get("bnb_4bit_use_double_quant"))
    _replace_linear(model, lambda linear: _linear_4bit(linear, dtype, double), stored)
    model.is_loaded_in_4bit = True
    settle(model)


def quantize_int8(model, stored: dict | None = None) -> None:
    """Quantises a model that was built in full precision, as loading it in 8 bits would. For models on the meta
    device. For `stored` see `quantize_nf4`. Raises UserError for a model that bitsandbytes cannot compute.

    There bitsandbytes computes as on a CPU: it keeps what it keeps on a GPU, but in the forward pass it has a weight in
    full precision for a while, not rounded inputs.
    """
    _replace_linear(model, _linear_8bit, stored)
    model.is_loaded_in_8bit = True
    settle(model)


def _replace_linear(model, small: Callable[[torch.nn.Linear], torch.nn.Module], stored: dict | None) -> None:
    """Replaces the linear modules that loading quantises by `small` ones."""
    skipped = _skipped_modules(model) if stored is None else stored.get("llm_int8_skip_modules")
    skipped = get_keys_to_not_convert(model) if skipped is None else skipped
    for name, module in [*model.named_modules()]:
        if type(module) is torch.nn.Linear and should_convert_module(name, skipped):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, small(module))


def _linear_8bit(linear: torch.nn.Linear) -> torch.nn.Module:
    small = bitsandbytes.nn.Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False, device="meta"
    )
    numbers = torch.empty(linear.weight.shape, dtype=torch.int8, device="meta")
    scale_O = torch.empty(linear.out_features, device="meta")
    small.weight = Int8Params(numbers, requires_grad=False, CB=numbers, SCB=scale_O)
    small.bias = linear.bias
    return small


def _linear_4bit(linear: torch.nn.Linear, dtype: torch.dtype, double: bool) -> torch.nn.Module:
    packed, state = quantize_4bit(linear.weight.detach(), quant_type="nf4", compress_statistics=double)
    small = bitsandbytes.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, dtype, quant_type="nf4", device="meta"
    )
    small.weight = Params4bit(packed, quant_state=state, quant_type="nf4", module=small, bnb_quantized=True)
    small.bias, small.quant_state = linear.bias, state
    return small


def scales(parameter: torch.Tensor) -> list[torch.Tensor]:
    """Returns the tensors that a quantised parameter has beside its packed numbers; none for any other."""
    if (scale_O := getattr(parameter, "SCB", None)) is not None:
        return [scale_O]
    return [
        tensor for state in _states(parameter) for tensor in vars(state).values() if isinstance(tensor, torch.Tensor)
    ]


def _states(parameter: torch.Tensor) -> list[QuantState]:
    state = getattr(parameter, "quant_state", None) or getattr(parameter, "state", None)
    return [one for one in (state, getattr(state, "state2", None)) if one is not None]


def with_other_tensors(parameter: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Returns a frozen quantised parameter of the same form, all of whose tensors `make` has replaced."""
    if hasattr(parameter, "SCB"):
        new = torch.nn.Parameter(make(parameter), requires_grad=False)
        vars(new).update(CB=new.data, SCB=make(parameter.SCB), has_fp16_weights=False)
        return new
    state = copy.copy(_states(parameter)[0])
    state.state2 = copy.copy(state.state2)  # None if the scales are not quantised as well
    for one in filter(None, (state, state.state2)):
        vars(one).update({k: make(v) for k, v in vars(one).items() if isinstance(v, torch.Tensor)})
    if isinstance(parameter, Stack4bit):
        stack = Stack4bit(make(parameter.packed), state, parameter.stored, parameter.transposed)
        return torch.nn.Parameter(stack, requires_grad=False)
    # Plain, because a Params4bit cannot hold a tensor of another class, such as a fake one.
    new = torch.nn.Parameter(make(parameter), requires_grad=False)
    vars(new).update(vars(parameter) | {"quant_state": state})
    return new


def settle(model) -> None:
    """Configures bitsandbytes after loading, so that it computes in the dtype of the other weights. Raises UserError
    for a model that it cannot compute.

    Its inference path on a CPU is disabled: it repacks the weights in place and has no backward pass, so a model would
    train wrongly after an evaluation. On a CPU, bitsandbytes 0.50 uses wrong scales for rows that end within a block.
    """
    if getattr(model, "is_loaded_in_8bit", False) and stacks(model):
        raise UserError("model.quantize: int8 does not apply to experts, which are not linear layers; use nf4")
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
            module.compute_dtype, module.compute_type_is_set = (
                model.dtype,
                True,
            )  # a base stored in 4 bits brings its own
            if module.weight.device.type == "cpu" and module.in_features % BLOCK:
                raise UserError(
                    f"model.quantize: 4 bits on a CPU need layers of a multiple of {BLOCK} inputs, {name} "
                    f"has {module.in_features}; use model.quantize: int8 or none, with a base in full precision"
                )


def _reduced(parameter: Params4bit) -> tuple:
    return _params_4bit, (parameter.data, vars(parameter))


def _params_4bit(packed: torch.Tensor, attributes: dict) -> Params4bit:
    parameter = torch.Tensor._make_subclass(Params4bit, packed, False)
    vars(parameter).update(attributes)
    return parameter


copyreg.pickle(Params4bit, _reduced)  # torch would make a plain parameter of it, which does not move with its scales


class Stack4bit(torch.Tensor):
    """The stacked weights of a layer's experts in NF4, as a tensor of the original shape and dtype.

    Every operation dequantises them first. Autograd saves this tensor, so the backward pass keeps 4 bits per weight.
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
        """Quantises a stack (expert, row, column) as one flat sequence of blocks."""
        return cls(*quantize_4bit(full.flatten(), quant_type="nf4", compress_statistics=True), full.shape)

    def dequantized(self) -> torch.Tensor:
        full = dequantize_4bit(self.packed, self.state).view(self.stored)
        return full.transpose(1, 2) if self.transposed else full

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        first = args[0] if args else None
        turned = function == aten.transpose.int and {axis % 3 for axis in args[1:]} == {1, 2}
        if turned or function in (aten.detach.default, aten.alias.default):
            with torch.inference_mode(False):  # a view of a tensor that is not of inference is not either
                return cls(first.packed, first.state, first.stored, first.transposed != turned)
        device = (kwargs or {}).get("device")
        if function == aten._to_copy.default and device and (kwargs or {}).get("dtype") in (None, first.dtype):
            state = copy.deepcopy(first.state)
            state.to(device)
            return cls(first.packed.to(device, copy=True), state, first.stored, first.transposed)
        if function == aten.set_.source_Tensor:  # PEFT's wrapper of a parameter sets it to itself
            return first
        args, kwargs = tree_map_only(cls, cls.dequantized, (args, kwargs or {}))
        return function(*args, **kwargs)


def dequantized(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the dequantised weights of a base stored in 4 or 8 bits, without their scales. `stored` must contain the
    scales of each weight."""
    weights, scales = {}, set()
    for name, tensor in stored.items():
        own = {key: value for key, value in stored.items() if key.startswith(f"{name}.")}
        scale_O = stored.get(f"{name.removesuffix('weight')}SCB") if tensor.dtype == torch.int8 else None
        if own:
            tensor = dequantize_4bit(tensor, QuantState.from_dict(own, tensor.device))
        elif scale_O is not None:
            tensor = int8_vectorwise_dequant(tensor, scale_O)
        weights[name] = tensor
        scales |= own.keys()
    return {
        name: tensor
        for name, tensor in weights.items()
        if name not in scales and not name.endswith((".SCB", ".weight_format"))
    }


def rounded_by(kind: str):
    """Returns a function (model, name, tensor) that rounds a weight as loading it as `kind` (nf4 or int8) would."""

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
    """Quantises linear layers as Transformers does, and experts to a Stack4bit. A GPU computes it, also where the model
    stays in host memory."""

    def convert(self, input_dict, full_layer_name=None, model=None, **others):
        converted = {}
        for name, value in input_dict.items():
            full = value[0] if isinstance(value, list) else value
            computing = full.to("cuda") if torch.cuda.is_available() else full
            if is_stack(*get_module_from_name(model, name)):
                stack = Stack4bit.quantize(computing).to(full.device)
                converted[name] = torch.nn.Parameter(stack, requires_grad=False)
                continue
            new = super().convert({name: computing}, full_layer_name, model, **others)[name]
            converted[name] = new if new.device == full.device else new.to(full.device)
        trim_heap()
        return converted


NF4 = "tunesmith_nf4"


@register_quantizer(NF4)
class _Quantizer(Bnb4BitHfQuantizer):
    """Transformers' quantizer, extended to experts, which are stacked parameters and not linear layers."""

    def param_needs_quantization(self, model, param_name: str, **others) -> bool:
        return is_stack(*get_module_from_name(model, param_name)) or super().param_needs_quantization(
            model, param_name, **others
        )

    def get_quantize_ops(self):
        return _Quantize(self)
