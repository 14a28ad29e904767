"""Rounds to bfloat16 stochastically, so that small updates are not lost: each update of bfloat16 weights, and a model
trained in float32 when it is saved."""

from collections.abc import Iterable

import torch

CHUNK_ELEMENTS = 2**24  # converted at a time: 12 bytes each for weight, noise and sum


def round_stochastically(x: torch.Tensor) -> torch.Tensor:
    """float32 to bfloat16, up or down with the probability that makes the mean exact (Gupta et al. 2015).

    bfloat16 is the upper half of float32, so adding a random lower half and cutting it off does that.
    """
    noise = torch.randint(2**16, x.shape, dtype=torch.int32, device=x.device)
    return (x.view(torch.int32) + noise).bitwise_and_(-(2**16)).view(torch.float32).bfloat16()


@torch.no_grad()
def convert(parameters: Iterable[torch.nn.Parameter], dtype: torch.dtype) -> None:
    """Converts parameters to another precision, float32 to bfloat16 stochastically. Rounded to the nearest value, a
    weight would lose an update that is smaller than half the distance between two values."""
    for parameter in parameters:
        if (parameter.dtype, dtype) == (torch.float32, torch.bfloat16):
            parts = parameter.reshape(-1).split(CHUNK_ELEMENTS)
            parameter.data = torch.cat([round_stochastically(part) for part in parts]).view(parameter.shape)
        else:
            parameter.data = parameter.to(dtype)
