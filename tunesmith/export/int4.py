"""A model folder in 4-bit integers as vLLM and transformers open it: compressed-tensors, packed, activations whole.

Groups of neighbouring weights of an output channel share a scale, a little smaller than the largest of them asks for
where that loses less. With importance, an error counts as much as the squared input that it meets: weights of large
inputs are what matters, and such clipping is the second step of AWQ (Lin et al. 2023, arXiv:2306.00978). Its first,
scaling of channels, is not done: it changes the layers before, which each family has otherwise.
"""

from pathlib import Path

import torch

from tunesmith.errors import UserError
from tunesmith.export import compressed
from tunesmith.export.engine import Transformers
from tunesmith.export.importance import importance_of
from tunesmith.export.weights import Weights, weights_of
from tunesmith.recipe import Section
from tunesmith.run import Run

GROUPS = (128, 64, 32)  # sizes that vLLM's kernels have; the largest that suits every layer
SHRINKS = tuple(1 - step / 20 for step in range(11))  # AWQ's: what of the range is kept
ROWS = 1024  # output channels at a time, for memory


class Settings(Section):
    """How weights are rounded."""

    importance: bool = False
    """Lose least where inputs of the training rows are large."""


def write(run: Run, folder: Path, settings: Settings) -> list[str]:
    """Returns a note where groups are smaller. Raises UserError for layers of odd widths, and as `matrices` does."""
    weights = weights_of(run)
    chosen = compressed.matrices(weights, "int4")
    group = _group(weights, chosen)
    scheme = {"format": "pack-quantized", "group": {"weights": {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group, "dynamic": False}}}
    costs = _costs(weights, chosen, importance_of(run)) if settings.importance else {}

    def rounded(name: str, weight_OI: torch.Tensor) -> dict[str, torch.Tensor]:
        cost_I = costs.get(name, torch.ones(weight_OI.shape[1]))
        parts = [rounded_in_groups(rows, cost_I, group) for rows in weight_OI.split(ROWS)]
        codes_OI, scale_OG = (torch.cat(part) for part in zip(*parts))
        return {f"{name}_packed": packed(codes_OI), f"{name}_scale": scale_OG,
                f"{name}_shape": torch.tensor(weight_OI.shape)}

    compressed.write_compressed(run, weights, folder, chosen, scheme, rounded)
    return [] if group == GROUPS[0] else [f"groups are of {group} weights, as a layer's inputs are no multiple of more"]


def rounded_in_groups(weight_OI: torch.Tensor, cost_I: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers from -8 to 7 (O, I) int8 and scales (O, I / group) in the weight's dtype, such that the squared
    errors times `cost_I` are least of those that SHRINKS give."""
    weight_OGK, cost_GK = weight_OI.float().unflatten(1, (-1, group)), cost_I.float().unflatten(0, (-1, group))
    widest_OG1 = weight_OGK.abs().amax(2, keepdim=True).clamp(min=1e-12) / 7.5
    codes_OGK, scale_OG1, least_OG1 = torch.zeros_like(weight_OGK), widest_OG1, torch.full_like(widest_OG1, torch.inf)
    for shrink in SHRINKS:
        tried_OG1 = (widest_OG1 * shrink).to(weight_OI.dtype).float()
        found_OGK = (weight_OGK / tried_OG1).round().clamp(-8, 7)
        lost_OG1 = ((found_OGK * tried_OG1 - weight_OGK).square() * cost_GK).sum(2, keepdim=True)
        better_OG1 = lost_OG1 < least_OG1
        codes_OGK = torch.where(better_OG1, found_OGK, codes_OGK)
        scale_OG1, least_OG1 = torch.where(better_OG1, tried_OG1, scale_OG1), torch.minimum(lost_OG1, least_OG1)
    return codes_OGK.flatten(1).to(torch.int8), scale_OG1.squeeze(2).to(weight_OI.dtype)


def packed(codes_OI: torch.Tensor) -> torch.Tensor:
    """Eight in an int32, shifted to be positive, the first in the lowest bits: (O, I / 8)."""
    nibbles = (codes_OI + 8).to(torch.uint8)
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).contiguous().view(torch.int32)


def _group(weights: Weights, chosen: set[str]) -> int:
    widths = {tensor.shape[1]: name for name, tensor in weights.of_files(weights.empty(chosen)).items()}
    for group in GROUPS:
        if all(width % group == 0 for width in widths):
            return group
    width, name = next((w, name) for w, name in widths.items() if w % GROUPS[-1])
    raise UserError(f"--to int4: needs layers of a multiple of {GROUPS[-1]} inputs, {name} has {width}; --to fp8")


def _costs(weights: Weights, chosen: set[str], found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """By name in the files: (in,). Stacks are taken apart as the files have it, by way of matrices of two rows."""
    two = {name: found[name][:, None].expand(-1, 2, -1) if len(weights.shapes[name]) > 2 else found[name].expand(2, -1)
           for name in chosen}
    return {name: tensor[0] for name, tensor in weights.of_files(two).items()}


def opened(run: Run, folder: Path, settings: Settings) -> Transformers:
    return compressed.opened(folder)


def precision(run: Run, settings: Settings) -> str:
    return "int4"
