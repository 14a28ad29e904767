"""The loss of one micro-batch, and the forward pass it needs.

N: supervised positions, V: vocabulary. The output layer runs at supervised positions only, through the model's own
forward (`logits_to_keep`), so soft-capping and logit scaling of a family are its own.
"""

import torch
import torch.nn.functional as F

from tunesmith.training.batch import IGNORED, Batch


def token_losses(model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in nats at each supervised position, fp32: (losses_N, document_N)."""
    supervised_BT = batch.targets_BT != IGNORED
    if batch.packed:
        keep_N = supervised_BT[0].nonzero().squeeze(1)
        logits_NV = forward(model, batch, logits_to_keep=keep_N)[0]
    else:
        kept_T = supervised_BT.any(0).nonzero().squeeze(1)
        logits_NV = forward(model, batch, logits_to_keep=kept_T)[supervised_BT[:, kept_T]]
    losses_N = F.cross_entropy(logits_NV.float(), batch.targets_BT[supervised_BT], reduction="none")
    return losses_N, batch.document_BT[supervised_BT]


def forward(model, batch: Batch, **options) -> torch.Tensor:
    """Logits. Packed documents do not see each other: their boundaries go to the attention, positions restart."""
    if batch.packed:
        options |= _boundaries(batch)
    else:
        longest = batch.input_ids_BT.shape[1]
        lengths_B = torch.tensor(batch.lengths, device=batch.input_ids_BT.device)
        options["attention_mask"] = torch.arange(longest, device=lengths_B.device) < lengths_B[:, None]
    return model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False, **options).logits


def _boundaries(batch: Batch) -> dict:
    """Document boundaries under the names that transformers' variable-length attention reads."""
    ends = torch.tensor((0, *batch.lengths), device=batch.input_ids_BT.device).cumsum(0).int()
    longest = max(batch.lengths)
    return dict(cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=longest, max_length_k=longest)
