"""The optimizers, and the learning rate over the run.

What `build_optimizer` returns has torch's step, zero_grad, param_groups, state_dict and load_state_dict. The learning
rate means the same with each: about the most that a weight changes in a step, on average over its matrix.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch

from tunesmith.recipe import Train
from tunesmith.training.stochastic_rounding import Rounded, chunks

WSD_DECAY_SHARE = 0.2  # Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed durations"
# Adafactor's update is relative to the larger of the weights' RMS and the second of these. With 1 it is absolute, as
# that of the others. The first keeps its divisors from 0; torch's, 1e-7, is larger than the squared gradients of a
# large model.
ADAFACTOR_EPS = (1e-15, 1.0)

Named = list[tuple[str, torch.nn.Parameter]]


def build_optimizer(model: torch.nn.Module, settings: Train):
    """The recipe's optimizer over what trains."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if settings.optimizer == "muon":
        apart = _vocabulary(model)
        hidden = [(n, p) for n, p in trained if p.ndim == 2 and p not in apart]
        others = [(n, p) for n, p in trained if p.ndim != 2 or p in apart]
        parts = [*_over(hidden, _muon, settings), *_over(others, _adamw, settings)]
    else:
        parts = [*_over(trained, MAKERS[settings.optimizer], settings)]
    return parts[0] if len(parts) == 1 else Together(parts)


class Together:
    """Several optimizers behind the interface of one; parameters are numbered through."""

    def __init__(self, parts: list):
        self._parts = parts

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self._parts for group in part.param_groups]

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        states, groups = {}, []
        for first, part in self._numbered():
            own = part.state_dict()
            states |= {first + number: values for number, values in own["state"].items()}
            groups += own["param_groups"]
        return {"state": states, "param_groups": groups}

    def load_state_dict(self, state: dict) -> None:
        groups = iter(state["param_groups"])
        for first, part in self._numbered():
            own = [next(groups) for _ in part.param_groups]
            numbers = [number for group in own for number in group["params"]]
            part.load_state_dict(
                {
                    "param_groups": own,
                    "state": {n: state["state"][first + n] for n in numbers if first + n in state["state"]},
                }
            )

    def _numbered(self) -> Iterator[tuple[int, object]]:
        """Each part with the number of its first parameter."""
        first = 0
        for part in self._parts:
            yield first, part
            first += sum(len(group["params"]) for group in part.param_groups)


def _over(named: Named, make, settings: Train) -> Iterator:
    """One optimizer, and one for each chunk of bfloat16 parameters."""
    make = partial(make, settings=settings)
    whole = [(n, p) for n, p in named if p.dtype != torch.bfloat16]
    if whole:
        yield make(whole)
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
