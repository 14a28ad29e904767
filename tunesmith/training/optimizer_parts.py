"""Optimizers of torch and bitsandbytes over some of a model's parameters, with states that go by parameter name."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tunesmith.training.randomness import set_seed
from tunesmith.training.stochastic_rounding import round_stochastically

Named = list[tuple[str, torch.nn.Parameter]]
States = dict[str, dict[str, Any]]  # by parameter name: tensors and numbers of an optimizer

CHUNK_ELEMENTS = 2**24  # updated at a time: in float32, 16 bytes each for weight, gradient, noise and sum


class Part:
    """The optimizer that `make` builds, over these parameters."""

    def __init__(self, named: Named, make: Callable[[Named], Any]):
        self.named = named
        self._optimizer = make(self._updated())
        names = {id(updated): name for name, updated in self._updated()}
        self.names = [names[id(p)] for group in self.param_groups for p in group["params"]]

    def _updated(self) -> Named:
        """Parameters as the optimizer sees them."""
        return self.named

    @property
    def param_groups(self) -> list[dict]:
        return self._optimizer.param_groups

    def step(self, seed: tuple[int, ...]) -> None:
        self._optimizer.step()

    @property
    def states(self) -> States:
        """The optimizer's own dictionaries, empty before its first step."""
        states = self._optimizer.state
        return {name: states[updated] for name, updated in self._updated() if updated in states}

    def load(self, states: States) -> None:
        numbered = {number: states[name] for number, name in enumerate(self.names) if name in states}
        self._optimizer.load_state_dict(
            {"state": numbered, "param_groups": self._optimizer.state_dict()["param_groups"]}
        )


class Rounded(Part):
    """A part over bfloat16 parameters, whose updates it rounds stochastically.

    The optimizer sees float32 stand-ins that hold memory only during `step`, so its moments are float32 whatever a
    checkpoint or a library would make of them. The random numbers of a parameter depend on its name and the seed.
    """

    def __init__(self, named: Named, make: Callable[[Named], Any]):
        self._stand_ins = [torch.nn.Parameter(_nothing(p)) for _, p in named]
        super().__init__(named, make)

    def _updated(self) -> Named:
        return [(name, stand_in) for (name, _), stand_in in zip(self.named, self._stand_ins)]

    @torch.no_grad()
    def step(self, seed: tuple[int, ...]) -> None:
        moved = [(n, p, s) for (n, p), s in zip(self.named, self._stand_ins) if p.grad is not None]
        for _, parameter, stand_in in moved:
            stand_in.data, stand_in.grad = parameter.float(), parameter.grad.float()
        self._optimizer.step()
        for name, parameter, stand_in in moved:
            set_seed(*seed, zlib.crc32(name.encode()))
            parameter.copy_(round_stochastically(stand_in))
            stand_in.grad, stand_in.data = None, _nothing(parameter)


def chunks(named: Named) -> Iterator[Named]:
    """Named parameters in lists of at most CHUNK_ELEMENTS; a larger one stands alone."""
    chunk, size = [], 0
    for name, parameter in named:
        if chunk and size + parameter.numel() > CHUNK_ELEMENTS:
            yield chunk
            chunk, size = [], 0
        chunk.append((name, parameter))
        size += parameter.numel()
    if chunk:
        yield chunk


def _nothing(parameter: torch.Tensor) -> torch.Tensor:
    """An empty float32 tensor with as many dimensions."""
    return torch.empty((0,) * parameter.ndim, device=parameter.device)
