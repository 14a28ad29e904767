"""Measures what the planner's cost model needs of a device and the host: a decoder layer, memory, launching, the disk.

Names of tensors end with their axes: T tokens, D hidden size, F width of the MLP, H heads, E width of a head.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

HEAD_WIDTH = 128
# (hidden size, width of the MLP, tokens): the shapes of a model of 8B on a GPU, of one of 1B on a small GPU, and of a
# model that a CPU can train.
GPU_SHAPE, SMALL_GPU_SHAPE, CPU_SHAPE = (4096, 14336, 2048), (2048, 8192, 2048), (1024, 4096, 512)
SMALL_GPU_BYTES = 8 * 2**30  # free; less takes the smaller shape
MEMORY_NUMBERS = 2**26  # float32: 256 MiB, which no cache holds
WEIGHTS_SHAPE, FEW_TOKENS = (8192, 4096), 3
DISK_BYTES, BLOCK_BYTES = 2**29, 2**24
FEW_LAYERS, MANY_LAYERS, LAUNCHES = 2, 6, 9


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(function: Callable[[], float], seconds: float) -> float:
    """Returns what a function returns, added up, per second, when it is called for so many seconds."""
    began, total = time.perf_counter(), 0.0
    while not total or time.perf_counter() - began < seconds:
        total += function()
    return total / (time.perf_counter() - began)


def layer_rate(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float) -> float:
    """Returns the operations per second of the matrix products in the forward and backward pass of a decoder layer.
    What else the layer computes takes its time too, so that this is the rate that a training step reaches."""
    hidden, width, tokens = shape

    def random(*sizes: int) -> torch.Tensor:
        return torch.empty(*sizes, dtype=dtype, device=device).normal_(std=0.02).requires_grad_()

    attention, mlp = random(4, hidden, hidden), random(3, hidden, width)
    x_TD, by_out_TD = random(tokens, hidden), random(tokens, hidden).detach()
    operations = layer_operations(shape)

    def step() -> float:
        torch.autograd.grad(_layer(x_TD, attention, mlp), [x_TD, attention, mlp], by_out_TD)
        synchronize(device)
        return operations

    step()  # the first one of a shape takes longer than others
    return rate(step, seconds)


def layer_operations(shape: tuple[int, int, int]) -> float:
    """Returns the operations of the matrix products in a layer's forward and backward pass. A backward pass has two for
    each of the forward pass. Of attention, half of the scores count, as it is causal."""
    hidden, width, tokens = shape
    return 3.0 * (2 * tokens * (4 * hidden**2 + 3 * hidden * width) + 2 * tokens**2 * hidden)


def _layer(x_TD: torch.Tensor, attention: torch.Tensor, mlp: torch.Tensor) -> torch.Tensor:
    """A decoder layer as most models have it: causal attention and a gated MLP, each behind a norm."""
    tokens, hidden = x_TD.shape
    normed_TD = functional.rms_norm(x_TD, (hidden,))
    q_HTE, k_HTE, v_HTE = ((normed_TD @ w).view(tokens, -1, HEAD_WIDTH).transpose(0, 1) for w in attention[:3])
    mixed_HTE = functional.scaled_dot_product_attention(q_HTE[None], k_HTE[None], v_HTE[None], is_causal=True)[0]
    x_TD = x_TD + mixed_HTE.transpose(0, 1).reshape(tokens, hidden) @ attention[3]
    normed_TD = functional.rms_norm(x_TD, (hidden,))
    gate, up, down = mlp
    return x_TD + (functional.silu(normed_TD @ gate) * (normed_TD @ up)) @ down.mT


def memory_rate(device: torch.device, seconds: float) -> float:
    """Returns the bytes per second of a device's memory, reads and writes added up."""
    source = torch.zeros(MEMORY_NUMBERS, device=device)
    target = torch.ones_like(source)

    def copy() -> float:
        target.copy_(source)
        synchronize(device)
        return 2.0 * source.nbytes

    copy()
    return rate(copy, seconds)


def weights_rate(dtype: torch.dtype, seconds: float) -> float:
    """Returns the bytes per second of weights that a product with a few tokens reads on the CPU."""
    weights = torch.zeros(WEIGHTS_SHAPE, dtype=dtype)
    x_TD = torch.zeros(FEW_TOKENS, WEIGHTS_SHAPE[1], dtype=dtype)

    def product() -> float:
        functional.linear(x_TD, weights)
        return weights.nbytes

    with torch.inference_mode():
        product()
        return rate(product, seconds)


def gpu_speeds(device: torch.device, precisions: list[str], seconds: float) -> dict[str, float]:
    """Returns the bandwidth of a GPU's memory and the rate of a layer in each precision. Each takes so many seconds."""
    small = device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < SMALL_GPU_BYTES
    shape = CPU_SHAPE if device.type == "cpu" else SMALL_GPU_SHAPE if small else GPU_SHAPE
    speeds = {"memory_bytes_per_second": memory_rate(device, seconds)}
    return speeds | {name: layer_rate(device, getattr(torch, name), shape, seconds) for name in precisions}


def cpu_speeds(threads: int, precisions: list[str], seconds: float) -> dict[str, Any]:
    """Returns the CPU's entry of rates.json, measured with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cpu = torch.device("cpu")
        return {
            "flops_per_second": {
                name: layer_rate(cpu, getattr(torch, name), CPU_SHAPE, seconds) for name in precisions
            },
            "weights_bytes_per_second": {name: weights_rate(getattr(torch, name), seconds) for name in precisions},
            "memory_bytes_per_second": memory_rate(cpu, seconds),
            "launch_seconds": launch_seconds(),
        }
    finally:
        torch.set_num_threads(before)


def launch_seconds() -> float:
    """Returns the seconds that one thread takes to launch a decoder layer's forward pass, its recomputation and its
    backward pass, with a LoRA adapter. It is measured on the CPU, on a layer so small that computing it takes almost no
    time; starting kernels on a GPU may take longer."""
    few, many = _tiny_model(FEW_LAYERS), _tiny_model(MANY_LAYERS)
    tokens = torch.zeros(1, 4, dtype=torch.int64)

    def seconds(model: torch.nn.Module) -> float:
        began = time.perf_counter()
        model(tokens).logits.sum().backward()
        return time.perf_counter() - began

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        differences = [seconds(many) - seconds(few) for _ in range(LAUNCHES)]
    finally:
        torch.set_num_threads(threads)
    return median(differences) / (MANY_LAYERS - FEW_LAYERS)


def _tiny_model(layers: int) -> torch.nn.Module:
    # Here, because they take seconds, and a process that measures a GPU needs torch alone.
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.model.adapt import adapt
    from tunesmith.model.load import quieten
    from tunesmith.recipe import Adapter

    quieten()
    sizes = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2, vocab_size=16)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes))
    model.enable_input_require_grads()  # so that the first layer's backward pass is computed too
    for layer in model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return adapt(model, Adapter(), [], sizes["vocab_size"])


def disk_rates(folder: Path) -> dict[str, float | None]:
    """Returns the bytes per second that the folder's disk writes and reads, with a file of 512 MiB. None where the file
    cannot be written, or its pages cannot be dropped from memory before it is read."""
    block = os.urandom(BLOCK_BYTES)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            for _ in range(DISK_BYTES // BLOCK_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            written = DISK_BYTES / (time.perf_counter() - began)
            if not hasattr(os, "posix_fadvise"):
                return {"write_bytes_per_second": written, "read_bytes_per_second": None}
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            began = time.perf_counter()
            while file.read(BLOCK_BYTES):
                pass
            return {
                "write_bytes_per_second": written,
                "read_bytes_per_second": DISK_BYTES / (time.perf_counter() - began),
            }
    except OSError:
        return {"write_bytes_per_second": None, "read_bytes_per_second": None}
