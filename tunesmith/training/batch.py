"""One micro-batch as tensors.

B sequences of T tokens each (packed, B is 1), D sequences in all, N positions that predict a learned token, G rows of
data.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Batch:
    """The host knows every shape: nothing has to wait for the device."""

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    learned_N: torch.Tensor
    """Positions, in B times T, that predict a learned token."""
    columns_K: torch.Tensor
    """Positions, in T, of which any sequence has such a one."""
    targets_N: torch.Tensor
    """The tokens that they must predict."""
    sequence_N: torch.Tensor
    """Which of D sequences each belongs to."""
    lengths: tuple[int, ...]
    """Tokens of each of D sequences."""
    groups: tuple[int, ...]
    """How many sequences each of G rows gave."""
    rows: tuple[int, ...]
    """Numbers of these rows."""
    packed: bool

    def real_BT(self) -> torch.Tensor:
        """Where a padded batch has tokens rather than padding."""
        lengths_B = torch.tensor(self.lengths, device=self.input_ids_BT.device)
        return torch.arange(self.input_ids_BT.shape[1], device=lengths_B.device) < lengths_B[:, None]

    def real_n(self) -> torch.Tensor:
        """The positions of these tokens, in B times T. On the host, which knows how many they are."""
        width = self.input_ids_BT.shape[1]
        starts = range(0, width * len(self.lengths), width)
        return torch.cat([torch.arange(start, start + n) for start, n in zip(starts, self.lengths)])

    @property
    def supervised_tokens(self) -> int:
        return len(self.targets_N)

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved = {name: value.pin_memory().to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)


def collate(tokens, rows: np.ndarray, packed: bool, pad_id: int = 0) -> Batch:
    """Packs rows end to end, or pads their sequences on the right. `tokens[row]` gives arrays: ids, supervised and,
    where a row is several sequences end to end, their lengths."""
    groups = [_sequences(*tokens[row]) for row in rows]
    sequences = [sequence for group in groups for sequence in group]
    lengths = tuple(len(ids) for ids, _ in sequences)
    shape = (1, sum(lengths)) if packed else (len(sequences), max(lengths))
    ids_BT, positions_BT = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    if not packed:
        positions_BT[:] = np.arange(shape[1])
    learned, targets, start = [], [], 0
    for number, (ids, supervised) in enumerate(sequences):
        at = start if packed else number * shape[1]
        start += len(ids)
        ids_BT.reshape(-1)[at : at + len(ids)] = ids
        positions_BT.reshape(-1)[at : at + len(ids)] = np.arange(len(ids))
        predicts = np.flatnonzero(supervised[1:])  # position t predicts the token at t + 1
        learned.append(at + predicts)
        targets.append(ids[1:][predicts])
    sequence_N = np.repeat(np.arange(len(sequences)), [len(t) for t in targets])
    learned_N = np.concatenate(learned)
    return Batch(
        *map(torch.from_numpy, (ids_BT, positions_BT, learned_N, np.unique(learned_N % shape[1]))),
        *(torch.from_numpy(values) for values in (np.concatenate(targets).astype(np.int64), sequence_N)),
        lengths=lengths,
        groups=tuple(map(len, groups)),
        rows=tuple(int(row) for row in rows),
        packed=packed,
    )


def _sequences(ids: np.ndarray, supervised: np.ndarray, lengths=None) -> list[tuple[np.ndarray, np.ndarray]]:
    if lengths is None:
        return [(ids, supervised)]
    ends = np.cumsum(lengths)[:-1]
    return list(zip(np.split(ids, ends), np.split(supervised, ends)))
