"""Converts weights to llama.cpp's layout where it differs from that of Transformers."""

import torch


def same(weight: torch.Tensor) -> torch.Tensor:
    return weight


def plus(offset: float, weight: torch.Tensor) -> torch.Tensor:
    return weight.float() + offset


def interleave(heads: int, weight: torch.Tensor) -> torch.Tensor:
    """Reorders rows, (heads * head_dim, ...), so that dimension i of a head is followed by its rotary partner
    i + head_dim / 2."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def half(index: int, stack: torch.Tensor) -> torch.Tensor:
    return stack.chunk(2, dim=1)[index]


def transposed(stack: torch.Tensor) -> torch.Tensor:
    return stack.transpose(1, 2)


def stride(first: int, transpose: bool, stack: torch.Tensor) -> torch.Tensor:
    return (transposed(stack) if transpose else stack)[:, first::2]


# The following functions take the config as their first argument.


def kept(config, weight: torch.Tensor) -> torch.Tensor:
    return weight


def kernel(config, weight: torch.Tensor) -> torch.Tensor:
    """Reshapes the kernel of a depthwise convolution, (channels, 1, taps) to (channels, taps)."""
    return weight.squeeze(1)


def value_rows(config, weight: torch.Tensor) -> torch.Tensor:
    """Reorders the value heads of linear attention. Transformers groups them by key head; llama.cpp orders them by
    their index within the group."""
    return _regrouped(config, weight, 0)


def value_inputs(config, weight: torch.Tensor) -> torch.Tensor:
    return _regrouped(config, weight, -1)


def mixed_rows(config, weight: torch.Tensor) -> torch.Tensor:
    """Reorders the value rows of a weight (queries, keys and values, ...)."""
    queries_and_keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    return torch.cat([weight[:queries_and_keys], value_rows(config, weight[queries_and_keys:])])


def mixed_kernel(config, weight: torch.Tensor) -> torch.Tensor:
    return mixed_rows(config, kernel(config, weight))


def decay(config, weight: torch.Tensor) -> torch.Tensor:
    return value_rows(config, -weight.float().exp())


def _regrouped(config, weight: torch.Tensor, dim: int) -> torch.Tensor:
    keys = config.linear_num_key_heads
    heads = weight.unflatten(dim, (keys, config.linear_num_value_heads // keys, -1))
    first = 0 if dim == 0 else heads.ndim - 3
    return heads.transpose(first, first + 1).flatten(first, first + 2)
