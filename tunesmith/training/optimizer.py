"""The optimizers, and the learning rate over the run.

The learning rate means the same with each: about the most that a weight changes in a step, on average over its matrix.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch

from tunesmith.recipe import Train
from tunesmith.training.optimizer_parts import Named, Part, Rounded, States, chunks

WSD_DECAY_SHARE = 0.2  # Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed durations"
# Adafactor's update is relative to the larger of the weights' RMS and the second of these. With 1 it is absolute, as
# that of the others. The first keeps its divisors from 0; torch's, 1e-7, is larger than the squared gradients of a
# large model.
ADAFACTOR_EPS = (1e-15, 1.0)


def build_optimizer(model: torch.nn.Module, settings: Train) -> "Optimizer":
    """The recipe's optimizer over what trains."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return Optimizer(trained, make_parts(model, trained, settings))


class Optimizer:
    """Updates a model's trained parameters, whose gradients are on them."""

    def __init__(self, trained: Named, parts: list[Part]):
        self._trained, self._parts = trained, parts

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self._parts for group in part.param_groups]

    @property
    def to_exchange(self) -> list[torch.nn.Parameter]:
        """Parameters whose gradients must be summed over the processes before `clip`."""
        return [parameter for _, parameter in self._trained]

    def clip(self, max_norm: float, loss_scale: float = 1.0) -> float:
        """Divides the gradients by the scale of the loss, scales them down to this norm, and returns their norm
        before."""
        if loss_scale != 1:
            torch._foreach_div_([p.grad for p in self.to_exchange if p.grad is not None], loss_scale)
        return torch.nn.utils.clip_grad_norm_(self.to_exchange, max_norm, foreach=True).item()

    def step(self, seed: tuple[int, ...] = (0,)) -> None:
        """Updates the weights. `seed`: of the random numbers that round them, the same in all processes."""
        for part in self._parts:
            part.step(seed)

    def zero_grad(self) -> None:
        for _, parameter in self._trained:
            parameter.grad = None

    def skip(self) -> None:
        """Takes no step, and forgets the gradients."""
        self.zero_grad()

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights by name: the tensors themselves."""
        return dict(self._trained)

    def states(self) -> States:
        return {name: values for part in self._parts for name, values in part.states.items()}

    @torch.no_grad()
    def load(self, weights: dict[str, torch.Tensor], states: States | None = None) -> None:
        """Takes weights, and with `states` also those of the optimizer."""
        for name, parameter in self._trained:
            parameter.copy_(weights[name])
        if states is not None:
            for part in self._parts:
                part.load(states)

    def name_of(self, number: int) -> str:
        """The parameter of this number, by which older checkpoints name states."""
        return [name for part in self._parts for name in part.names][number]


def make_parts(model: torch.nn.Module, trained: Named, settings: Train, small: bool = False) -> list[Part]:
    """Optimizers that together update what trains. `small`: no part has more than a chunk of parameters."""
    if settings.optimizer != "muon":
        return [*_over(trained, MAKERS[settings.optimizer], settings, small)]
    apart = _vocabulary(model)
    hidden = [(n, p) for n, p in trained if p.ndim == 2 and p not in apart]
    others = [(n, p) for n, p in trained if p.ndim != 2 or p in apart]
    return [*_over(hidden, _muon, settings, small), *_over(others, _adamw, settings, small)]


def _over(named: Named, make, settings: Train, small: bool) -> Iterator[Part]:
    """One optimizer, and one for each chunk of bfloat16 parameters."""
    make = partial(make, settings=settings)
    whole = [(n, p) for n, p in named if p.dtype != torch.bfloat16]
    if whole:
        yield from (Part(chunk, make) for chunk in (chunks(whole) if small else [whole]))
    for chunk in chunks([(n, p) for n, p in named if p.dtype == torch.bfloat16]):
        yield Rounded(chunk, make)


def _vocabulary(model) -> set[torch.nn.Parameter]:
    """Parameters of the embedding and the output head, whose rows belong to single tokens."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return {parameter for module in modules if module for parameter in module.parameters()}


def _groups(named: Named, settings: Train) -> list[dict]:
    """Weight decay on matrices only."""
    decays = [p for n, p in named if p.ndim >= 2 and "norm" not in n.lower()]
    others = [p for n, p in named if p.ndim < 2 or "norm" in n.lower()]
    groups = [{"params": decays, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def _adamw(named: Named, settings: Train) -> torch.optim.Optimizer:
    """Loshchilov & Hutter 2019, "Decoupled weight decay regularization"."""
    return torch.optim.AdamW(
        _groups(named, settings), lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=True
    )


def _adamw_8bit(named: Named, settings: Train) -> torch.optim.Optimizer:
    """Dettmers et al. 2022, "8-bit optimizers via block-wise quantization"."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(_groups(named, settings), lr=settings.learning_rate, betas=(settings.beta1, settings.beta2))


def _paged_adamw_8bit(named: Named, settings: Train) -> torch.optim.Optimizer:
    from tunesmith.training.paged import PagedAdamW

    return PagedAdamW(_groups(named, settings), lr=settings.learning_rate, betas=(settings.beta1, settings.beta2))


def _adafactor(named: Named, settings: Train) -> torch.optim.Optimizer:
    """Shazeer & Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost"."""
    return torch.optim.Adafactor(_groups(named, settings), lr=settings.learning_rate, eps=ADAFACTOR_EPS)


def _muon(named: Named, settings: Train) -> torch.optim.Optimizer:
    """Jordan et al. 2024; scaled to the RMS of AdamW's updates (Liu et al. 2025, "Muon is scalable")."""
    return torch.optim.Muon(_groups(named, settings), lr=settings.learning_rate, adjust_lr_fn="match_rms_adamw")


MAKERS = {"adamw": _adamw, "adamw_8bit": _adamw_8bit, "paged_adamw_8bit": _paged_adamw_8bit, "adafactor": _adafactor}


def learning_rate(step: int, steps: int, settings: Train) -> float:
    """Returns the learning rate of step 1 … `steps`: linear warmup to the peak, then the
    schedule, to 0 after the last step."""
    warmup = math.ceil(settings.warmup_ratio * steps)
    if step <= warmup:
        return settings.learning_rate * step / warmup
    left = (steps - step + 1) / (steps - warmup + 1)
    factor = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),
        "wsd": min(1.0, left / WSD_DECAY_SHARE),
    }[settings.schedule]
    return settings.learning_rate * factor
