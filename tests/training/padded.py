"""Rows as a padded batch has them, made here without the product's code."""

import torch

IGNORED = -100


def targets_of(rows) -> torch.Tensor:
    """[B, T]: the token that each position must predict, IGNORED where none is learned. `rows`: (ids, supervised)."""
    width = max(len(ids) for ids, _ in rows)
    targets_BT = torch.full((len(rows), width), IGNORED)
    for number, (ids, supervised) in enumerate(rows):
        for position in range(len(ids) - 1):
            if supervised[position + 1]:
                targets_BT[number, position] = int(ids[position + 1])
    return targets_BT
