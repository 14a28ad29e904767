"""Simulated GPUs, for machines that have none.

Tensors that are moved to one are computed by the CPU, but say that they are on `cuda:0`, or another number, and do not
meet tensors that are not: an operation on both fails, as it would on a GPU. So does a direct copy from one GPU to
another, which gives zeros on some boards. What a GPU alone has (streams, pinned memory, flash attention, counts of its
memory) is played too. So what runs here shows that every tensor is where it must be and that the results are those of
the CPU; of kernels, time and memory it shows nothing.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import torch
from bitsandbytes.nn import Params4bit
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._pytree import tree_leaves, tree_map

from tunesmith.machine import Gpu, Machine
from tunesmith.model.quantize import Stack4bit
from tunesmith.training import attention_kernels

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
BYTES = 2**33
MACHINE = Machine("", "", 2, 2**34, 2**34, 2**40, True, gpus=[Gpu(0, "a GPU", BYTES, BYTES, (9, 0))])
_PARAMS_4BIT_TO = Params4bit.to
ANY_DEVICE = ("aten.copy_", "aten._to_copy")
MAKERS = ("arange", "empty", "full", "linspace", "ones", "rand", "randint", "randn", "tensor", "zeros")
INDICES_FROM_CPU = ("aten.index", "aten._index_put_impl_", "aten.index_put_", "aten.index_put")


class WrongDevice(AssertionError):
    """Not one of those that the product takes for an answer."""


class OnGpu(torch.Tensor):
    """A tensor on the GPU; `inner` holds its numbers. For torch's C++ it is on the CPU, where it is computed. A
    parameter goes back to the CPU with `data`."""

    device = GPU

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False, device: torch.device = GPU):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=CPU,
            requires_grad=requires_grad,
        )
        made.inner, made.device = inner, device
        return made

    is_cuda, is_cpu = (property(lambda self, kind=kind: self.device.type == kind) for kind in ("cuda", "cpu"))

    @property
    def data(self) -> torch.Tensor:
        return self.detach() if self.device.type == "cuda" else self.inner

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, other)
        self.inner, self.device = _inner(other), other.device

    def tolist(self) -> list:
        return self.inner.tolist()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def get_device(self) -> int:
        return self.device.index

    def numpy(self, **_):
        raise WrongDevice("a tensor on the GPU has no array")

    def record_stream(self, _) -> None:
        pass

    def __repr__(self, **_) -> str:
        return f"OnGpu({self.inner!r}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if Stack4bit in types:
            return NotImplemented  # it goes first, and comes back without such tensors
        return _compute(func, args, kwargs or {})


def _compute(func, args: tuple, kwargs: dict):
    """An operation, by the CPU. Its result is on the GPU that its arguments are on, or that is asked for."""
    name = str(func).rpartition(".")[0]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    if name in INDICES_FROM_CPU:
        tensors = [x for x in tensors if x.device.type == "cuda"] if args[0].device.type == "cuda" else tensors
    on_gpu = [x for x in tensors if x.device.type == "cuda"]
    beside = [x for x in tensors if x.ndim and x.device == CPU]  # a number may come from anywhere
    if (on_gpu and beside and name not in ANY_DEVICE) or len({x.device for x in on_gpu}) > 1:
        where = ", ".join(f"{tuple(x.shape)} on {_name(x.device)}" for x in tensors)
        raise WrongDevice(f"{func}: {where}")
    found = PLAYED.get(name, func)(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if name == "aten.copy_":
        return args[0]
    asked = kwargs.get("device")  # beside a tensor on the GPU it is torch's C++ that asks, for the CPU it knows of
    if not on_gpu and (asked is None or torch.device(asked).type != "cuda"):
        return found
    device = on_gpu[0].device if on_gpu else _indexed(asked)
    same = {id(x.inner): x for x in on_gpu}  # what was changed in place
    return tree_map(
        lambda x: same[id(x)] if id(x) in same else OnGpu(x, device=device) if isinstance(x, torch.Tensor) else x, found
    )


def _indexed(device) -> torch.device:
    """`cuda` is the first GPU, which is always the current one here."""
    device = torch.device(device)
    return GPU if device.type == "cuda" and device.index is None else device


def _name(device: torch.device) -> str:
    return "cuda" if device == GPU else str(device)


def _inner(x):
    return x.inner if isinstance(x, OnGpu) else CPU if isinstance(x, torch.device) and x.type == "cuda" else x


def _to(tensor: torch.Tensor, *args, copy: bool = False, **kwargs) -> torch.Tensor:
    """`Tensor.to`, whose C++ would ask a driver."""
    given = [*args, *kwargs.values()]
    like = next((x for x in given if isinstance(x, torch.Tensor)), tensor)
    device = next((torch.device(x) for x in given if isinstance(x, (str, torch.device))), like.device)
    dtype = next((x for x in given if isinstance(x, torch.dtype)), like.dtype)
    device = _indexed(device)
    if "cuda" not in (device.type, tensor.device.type):
        return torch._C.TensorBase.to(tensor, *args, copy=copy, **kwargs)
    if (device, dtype) == (tensor.device, tensor.dtype) and not copy:
        return tensor
    if isinstance(tensor, Stack4bit):
        return torch.ops.aten._to_copy(tensor, device=device)
    return (_Moved.apply if tensor.requires_grad else _copied)(tensor, device, dtype)


def _params_4bit_to(parameter: Params4bit, device=None, **kwargs) -> torch.nn.Parameter:
    """`Params4bit.to`, which would make a tensor of its own class on the CPU."""
    if torch.device(device or CPU).type != "cuda" or not parameter.bnb_quantized:
        return _PARAMS_4BIT_TO(parameter, device, **kwargs)
    parameter.quant_state.to(device)
    made = torch.nn.Parameter(torch.Tensor.to(parameter.data, device), requires_grad=False)
    vars(made).update(vars(parameter))
    return made


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, device, dtype):
        ctx.before = tensor.device, tensor.dtype
        return _copied(tensor, device, dtype)

    @staticmethod
    def backward(ctx, gradient):
        return _copied(gradient, *ctx.before), None, None


def _copied(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if tensor.device.type == device.type == "cuda" and tensor.device != device:
        raise WrongDevice(f"a direct copy of {tuple(tensor.shape)} from {tensor.device} to {device}")
    inner = torch.ops.aten._to_copy(_inner(tensor), dtype=dtype)
    return OnGpu(inner, device=device) if device.type == "cuda" else inner


def _probabilities(query_THD, key_THD, ends, scale: float, window_size) -> torch.Tensor:
    """(H, T, T): causal, within documents, in float32."""
    query, key = (x.transpose(0, 1).float() for x in (query_THD, key_THD))
    at = torch.arange(query.shape[1])
    document, behind = torch.bucketize(at, ends[1:], right=True), at[:, None] - at
    window = window_size[0] if window_size[0] >= 0 else len(at)
    seen = (document[:, None] == document) & (behind >= 0) & (behind <= window)
    return (query @ key.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1)


def _flash(query, key, value, ends, ends_k, longest, longest_k, is_causal, scale, window_size, *_):
    """torch's flash attention over documents, with all scores there are."""
    assert MACHINE.gpus[0].capability >= (8, 0), "FlashAttention only supports Ampere GPUs or newer"
    assert torch.equal(ends, ends_k) and longest == longest_k == int(ends.diff().max()) and window_size[1] == 0
    assert query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16)
    assert ends.dtype == torch.int32 and key.shape == value.shape
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    probabilities = _probabilities(query, key, ends, scale, window_size)
    out = (probabilities @ value.transpose(0, 1).float()).transpose(0, 1).to(query.dtype)
    return out, torch.zeros(query.shape[1], query.shape[0]), torch.zeros(2, dtype=torch.int64)


def _flash_backward(
    by_out, query, key, value, out, lse, ends, ends_k, longest, longest_k, is_causal, state, scale, window_size
):
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    q, k, v, by_out = (x.transpose(0, 1).float() for x in (query, key, value, by_out))
    probabilities = _probabilities(query, key, ends, scale, window_size)
    by_probabilities = by_out @ v.mT
    by_scores = probabilities * (by_probabilities - (by_probabilities * probabilities).sum(-1, keepdim=True)) * scale
    by_k, by_v = (x.unflatten(0, (-1, groups)).sum(1) for x in (by_scores.mT @ q, probabilities.mT @ by_out))
    return tuple(x.transpose(0, 1).to(query.dtype) for x in (by_scores @ k, by_k, by_v))


def _flex(query, key, value, score_mod, block_mask, scale, enable_gqa, return_aux):
    """FlexAttention, with all scores there are."""
    assert MACHINE.gpus[0].capability >= (8, 0), "Triton only supports Ampere GPUs or newer"
    assert block_mask.kv_indices.device == GPU and return_aux.lse and enable_gqa == (query.shape[1] > key.shape[1])
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1).float() for x in (key, value))
    at = torch.arange(query.shape[2], device=GPU)
    place = 0, 0, at[:, None], at
    scores = query.float() @ key.mT * scale
    scores = score_mod(scores, *place) if score_mod else scores
    scores = scores.masked_fill(~block_mask.mask_mod(*place), -torch.inf)
    out = (scores.softmax(-1) @ value).to(query.dtype)
    return out, SimpleNamespace(lse=scores.logsumexp(-1))


def _one_hot(index: torch.Tensor, count: int) -> torch.Tensor:
    return torch.zeros(*index.shape, count, dtype=torch.int64, device=index.device).scatter_(-1, index[..., None], 1)


def _no_grad(mode: bool = True):
    return torch.no_grad() if mode else nullcontext()


def _default_device() -> torch.device:
    """Of a `with device:` around."""
    return next(
        (mode.device for mode in reversed(_get_current_function_mode_stack()) if isinstance(mode, DeviceContext)), CPU
    )


def _anywhere(make):
    """A function that makes tensors, which also makes them on the GPU."""

    def made(*args, device=None, pin_memory: bool = False, requires_grad: bool = False, **kwargs) -> torch.Tensor:
        place = torch.device(device or _default_device())
        if place.type != "cuda":
            return make(*args, device=device, requires_grad=requires_grad, **kwargs)
        found = make(*args, device=CPU, **kwargs).to(place)
        return found.requires_grad_() if requires_grad else found

    return made


PLAYED = {
    "torch_attn._varlen_attn": _flash,
    "torch_attn._varlen_attn_backward": _flash_backward,
    "aten.histc": lambda x, *args: torch.histc(x.float(), *args),
}  # the CPU counts no integers


class _Stream:
    def __init__(self, *_):
        pass

    def wait_stream(self, _) -> None:
        pass

    def synchronize(self) -> None:
        pass

    wait_event = wait_stream

    def record_event(self) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: None)


@contextmanager
def played(gpus: int = 1):
    """Within it there are GPUs, to torch and what is built on it."""
    _device_constructors()  # which torch remembers, must be its own
    autocast, enabled, of_autocast = torch.autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype
    cuda = dict(
        _lazy_init=lambda: None,
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: gpus,
        current_device=lambda: GPU,
        set_device=lambda _: None,
        device=lambda *_: nullcontext(),
        get_device_capability=lambda *_: MACHINE.gpus[0].capability,
        get_device_properties=lambda *_: SimpleNamespace(major=9, minor=0, total_memory=BYTES, name="a GPU"),
        is_bf16_supported=lambda *_, **__: True,
        mem_get_info=lambda *_: (BYTES, BYTES),
        memory_stats=lambda *_: {"active_bytes.all.peak": 2**20},
        memory_allocated=lambda *_: 2**20,
        memory_reserved=lambda *_: 2**20,
        max_memory_reserved=lambda *_: 2**20,
        reset_peak_memory_stats=lambda *_: None,
        empty_cache=lambda: None,
        synchronize=lambda *_: None,
        get_rng_state=lambda *_: torch.get_rng_state(),
        set_rng_state=lambda state, *_: torch.set_rng_state(state),
        manual_seed_all=lambda _: None,
        cudart=lambda: SimpleNamespace(
            cudaHostRegister=lambda *_: 0, cudaHostUnregister=lambda _: 0, cudaError=SimpleNamespace(success=0)
        ),
        Stream=_Stream,
        current_stream=_Stream,
        stream=lambda _: nullcontext(),
    )

    def as_cpu(self, device_type, *args, **kwargs):
        autocast(self, "cpu", *args, **kwargs)

    with (
        patch.multiple(torch.cuda, **cuda),
        patch.object(torch.autocast, "__init__", as_cpu),
        patch.object(torch, "is_autocast_enabled", lambda *_: enabled("cpu")),
        patch.object(torch, "get_autocast_dtype", lambda *_: of_autocast("cpu")),
        patch.object(torch, "inference_mode", _no_grad),  # torch knows no views of our kind in it
        patch.multiple(
            torch.Tensor,
            to=_to,
            cpu=lambda x: x.to(CPU),
            cuda=lambda x, *_: x.to(GPU),
            pin_memory=lambda x: x,
            is_pinned=lambda x, *_: True,
            create=True,
        ),
        patch.object(Params4bit, "to", _params_4bit_to),
        patch.multiple(torch, **{name: _anywhere(getattr(torch, name)) for name in MAKERS}),
        patch.object(attention_kernels, "_flex_attention", lambda _: _flex),
        patch.object(torch.nn.functional, "one_hot", _one_hot),  # torch's asks for the device from C++
        _swapping_parameters(),
    ):
        yield GPU


@contextmanager
def _swapping_parameters():
    """So that modules that are moved get parameters of our kind."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
