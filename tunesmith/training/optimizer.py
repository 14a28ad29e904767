"""AdamW and the learning rate over the run."""

import math

import torch

from tunesmith.recipe import Train

WSD_DECAY_SHARE = 0.2  # Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed durations"


def build_optimizer(model: torch.nn.Module, settings: Train) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), fused, over what trains; weight decay on matrices only."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decays = [p for n, p in trained if p.ndim >= 2 and "norm" not in n.lower()]
    others = [p for n, p in trained if p.ndim < 2 or "norm" in n.lower()]
    groups = [{"params": decays, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate,
                             betas=(settings.beta1, settings.beta2), fused=True)


def learning_rate(step: int, steps: int, settings: Train) -> float:
    """Of step 1 … `steps`: linear warmup to the peak, then as `schedule` says, to 0 after the last step."""
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
