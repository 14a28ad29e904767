"""One micro-batch as tensors. Shapes: B sequences, T tokens each (packed: B is 1), D documents."""

from dataclasses import dataclass

import numpy as np
import torch

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """`targets_BT[b, t]` is the token that position t must predict, or IGNORED."""

    input_ids_BT: torch.Tensor
    position_ids_BT: torch.Tensor
    targets_BT: torch.Tensor
    document_BT: torch.Tensor  # which of `rows` a position belongs to
    lengths: tuple[int, ...]  # of the documents, in order
    rows: tuple[int, ...]
    packed: bool

    def real_BT(self) -> torch.Tensor:
        """Where a padded batch has tokens rather than padding."""
        lengths_B = torch.tensor(self.lengths, device=self.input_ids_BT.device)
        return torch.arange(self.input_ids_BT.shape[1], device=lengths_B.device) < lengths_B[:, None]

    @property
    def supervised_tokens(self) -> int:
        return int((self.targets_BT != IGNORED).sum())

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        moved = {
            k: getattr(self, k).pin_memory().to(device, non_blocking=True)
            for k in ("input_ids_BT", "position_ids_BT", "targets_BT", "document_BT")
        }
        return Batch(**moved, lengths=self.lengths, rows=self.rows, packed=self.packed)


def collate(tokens, rows: np.ndarray, packed: bool, pad_id: int = 0) -> Batch:
    """Packs rows end to end, or pads them on the right. `tokens[row]` gives (ids, supervised) arrays."""
    pieces = [_piece(*tokens[row], document) for document, row in enumerate(rows)]
    lengths = tuple(piece.shape[1] for piece in pieces)
    if packed:
        stacked = np.concatenate(pieces, axis=1)[:, None, :]
    else:
        stacked = np.zeros((4, len(rows), max(lengths)), np.int64)
        stacked[0], stacked[2] = pad_id, IGNORED
        for document, piece in enumerate(pieces):
            stacked[:, document, : piece.shape[1]] = piece
            stacked[1, document, piece.shape[1] :] = np.arange(piece.shape[1], max(lengths))
            stacked[3, document] = document
    ids, positions, targets, documents = torch.from_numpy(stacked)
    return Batch(ids, positions, targets, documents, lengths, tuple(int(row) for row in rows), packed)


def _piece(ids: np.ndarray, supervised: np.ndarray, document: int) -> np.ndarray:
    """(4, T): ids, positions, targets, document. The target at t is the supervised token at t + 1."""
    targets = np.full(len(ids), IGNORED, np.int64)
    targets[:-1] = np.where(supervised[1:], ids[1:], IGNORED)
    return np.stack([ids, np.arange(len(ids)), targets, np.full(len(ids), document)]).astype(np.int64)
