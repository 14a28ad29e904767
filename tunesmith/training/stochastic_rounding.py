"""Rounds to bfloat16 stochastically, so that small updates are not lost: each update of bfloat16 weights, and a model
trained in float32 when it is saved."""

from collections.abc import Callable, Iterable, Iterator

import torch

CHUNK_ELEMENTS = 2**24  # computed in float32 at a time: 16 bytes each for weight, gradient, noise and sum


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


def chunks(parameters: list[tuple[str, torch.nn.Parameter]]) -> Iterator[list[tuple[str, torch.nn.Parameter]]]:
    """Named parameters in lists of at most CHUNK_ELEMENTS; a larger one stands alone."""
    chunk, size = [], 0
    for name, parameter in parameters:
        if chunk and size + parameter.numel() > CHUNK_ELEMENTS:
            yield chunk
            chunk, size = [], 0
        chunk.append((name, parameter))
        size += parameter.numel()
    if chunk:
        yield chunk


class Rounded:
    """The optimizer that `make` builds, over bfloat16 parameters.

    It sees float32 stand-ins that hold memory only during `step`, so its moments are float32 whatever a checkpoint
    or a library would make of them.
    """

    def __init__(self, named: list[tuple[str, torch.nn.Parameter]], make: Callable):
        self._parameters = [p for _, p in named]
        self._stand_ins = [torch.nn.Parameter(_nothing(p)) for p in self._parameters]
        self._optimizer = make([(name, s) for (name, _), s in zip(named, self._stand_ins)])
        self.state_dict, self.load_state_dict = self._optimizer.state_dict, self._optimizer.load_state_dict

    @property
    def param_groups(self) -> list[dict]:
        return self._optimizer.param_groups

    @torch.no_grad()
    def step(self) -> None:
        moved = [(p, s) for p, s in zip(self._parameters, self._stand_ins) if p.grad is not None]
        for parameter, stand_in in moved:
            stand_in.data, stand_in.grad = parameter.float(), parameter.grad.float()
        self._optimizer.step()
        for parameter, stand_in in moved:
            parameter.copy_(round_stochastically(stand_in))
            stand_in.grad, stand_in.data = None, _nothing(parameter)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def _nothing(parameter: torch.Tensor) -> torch.Tensor:
    """An empty float32 tensor with as many dimensions."""
    return torch.empty((0,) * parameter.ndim, device=parameter.device)
