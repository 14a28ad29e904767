"""The loss of one micro-batch, and the forward pass it needs.

N: supervised positions, E: hidden size, V: vocabulary. The output layer runs at supervised positions only. Where the
model's own forward is seen to be decoder, output layer and a known change of the logits (`find_head`), a chunk of
positions at a time goes through the output layer and its gradient is taken at once, so that the logits of a whole
batch never exist. Elsewhere the model computes its logits itself (`logits_to_keep`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from tunesmith.methods import Answers, Method
from tunesmith.model.text import base_of
from tunesmith.training.batch import Batch, collate
from tunesmith.training.planned_device import kind_of

# Logits of a chunk where the output layer is frozen, and where it trains: then, on a GPU, each chunk costs a pass over
# the layer's gradient (not measured yet). On a CPU larger chunks are no faster.
CHUNK_LOGITS = {"cpu": (2**24, 2**24), "cuda": (2**26, 2**28)}
CACHED_LOGITS = 2**19  # made float32 at a time on a CPU, which is twice as fast while they stay in its cache
LEAST_ROWS = 256  # of a chunk: fewer make the matmul slow


@dataclass(frozen=True)
class Head:
    """The end of a causal language model: `logits = after(layer(decoder(…)))`."""

    decoder: torch.nn.Module
    layer: torch.nn.Module
    after: Callable[[torch.Tensor], torch.Tensor]
    vocabulary: int

    def logits(self, hidden_CE: torch.Tensor) -> torch.Tensor:
        return self.after(self.layer(hidden_CE))


def method_loss(method: Method, model, batch: Batch, head: Head | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The method's loss of a micro-batch with a gradient, summed over its units, and the sums that it reports."""
    if method.loss is None:
        return total_loss(model, batch, head), {}
    log_probs_N = -token_losses(model, batch, head)
    return method.loss(Answers(log_probs_N, batch.sequence_N, batch.groups), method.settings)


def total_loss(model, batch: Batch, head: Head | None) -> torch.Tensor:
    """Sum of the cross-entropy of all learned tokens in nats, float32. Where the head trains, this takes one pass over
    it less than the gradient of `token_losses`."""
    if head and torch.is_grad_enabled():
        return _TotalLoss.apply(head, _hidden(head, batch), batch.targets_N, *_trained(head))
    return token_losses(model, batch, head).sum()


def token_losses(model, batch: Batch, head: Head | None) -> torch.Tensor:
    """Cross-entropy of each learned token in nats, float32: N, with a gradient."""
    if not head:
        logits_BKV = forward(model, batch, logits_to_keep=batch.columns_K).logits
        width = batch.input_ids_BT.shape[1]
        place_N = torch.searchsorted(batch.columns_K, batch.learned_N % width)
        return _cross_entropy(logits_BKV[batch.learned_N // width, place_N], batch.targets_N)
    hidden_NE = _hidden(head, batch)
    if torch.is_grad_enabled():
        return _TokenLosses.apply(head, hidden_NE, batch.targets_N, *_trained(head))
    losses = [
        _cross_entropy(head.logits(hidden_CE), t_C) for _, hidden_CE, t_C in _chunks(head, hidden_NE, batch.targets_N)
    ]
    return torch.cat(losses)


def autocast(plan):
    """The precision of forward passes."""
    return torch.autocast(plan.device, getattr(torch, plan.compute), enabled=plan.compute != "float32")


def _hidden(head: Head, batch: Batch) -> torch.Tensor:
    return forward(head.decoder, batch).last_hidden_state.flatten(0, 1)[batch.learned_N]


def _trained(head: Head) -> list[torch.Tensor]:
    return [p for p in head.layer.parameters() if p.requires_grad]


class _TotalLoss(torch.autograd.Function):
    """Sum of the losses. The gradient of each chunk is taken in the forward pass, while its logits are there (as in
    Hsu et al. 2024, "Liger Kernel"), so nothing is computed twice."""

    @staticmethod
    def forward(ctx, head: Head, hidden_NE, targets_N, *trained):
        losses_N, by_hidden_NE, by_trained = _with_gradients(head, hidden_NE, targets_N, trained)
        ctx.save_for_backward(by_hidden_NE if hidden_NE.requires_grad else None, *by_trained)
        return losses_N.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_total):
        by_hidden, *by_trained = (g if g is None else g.mul_(by_total) for g in ctx.saved_tensors)
        return None, by_hidden, None, *by_trained


class _TokenLosses(torch.autograd.Function):
    """The loss of each token. Tokens do not mix in the output layer, so the gradient by a token's hidden state, taken
    in the forward pass, is scaled by that of its loss in the backward pass. Where the output layer trains, the backward
    pass computes the chunks again."""

    @staticmethod
    def forward(ctx, head: Head, hidden_NE, targets_N, *trained):
        ctx.head, ctx.trains = head, bool(trained)
        if trained:
            ctx.save_for_backward(hidden_NE, targets_N, *trained)
            chunks = _chunks(head, hidden_NE, targets_N)
            return torch.cat([_cross_entropy(head.logits(hidden_CE), t_C) for _, hidden_CE, t_C in chunks])
        losses_N, by_hidden_NE, _ = _with_gradients(head, hidden_NE, targets_N, ())
        ctx.save_for_backward(by_hidden_NE)
        return losses_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_losses_N):
        if not ctx.trains:
            (by_hidden_NE,) = ctx.saved_tensors
            return None, by_hidden_NE.mul_(by_losses_N[:, None]), None
        hidden_NE, targets_N, *trained = ctx.saved_tensors
        _, by_hidden_NE, by_trained = _with_gradients(ctx.head, hidden_NE, targets_N, trained, by_losses_N)
        return None, by_hidden_NE, None, *by_trained


def _with_gradients(head: Head, hidden_NE, targets_N, trained, by_losses_N=None):
    """The losses, and the gradients of their sum, weighted by `by_losses_N`, by the hidden states and by `trained`."""
    by_hidden_NE, by_trained = torch.empty_like(hidden_NE), []
    losses_N = torch.empty(len(targets_N), dtype=_wide(hidden_NE.dtype), device=hidden_NE.device)
    for rows, hidden_CE, targets_C in _chunks(head, hidden_NE, targets_N):
        with torch.enable_grad():
            hidden_CE = hidden_CE.detach().requires_grad_()
            logits_CV = head.logits(hidden_CE)
        losses_N[rows], by_logits_CV = _losses_and_gradient(logits_CV.detach(), targets_C)
        if by_losses_N is not None:
            by_logits_CV.mul_(by_losses_N[rows, None])
        by_hidden_NE[rows], *more = torch.autograd.grad(logits_CV, (hidden_CE, *trained), by_logits_CV)
        by_trained = [a.add_(b) for a, b in zip(by_trained, more)] or more
    return losses_N, by_hidden_NE, by_trained


def _chunks(head: Head, hidden_NE: torch.Tensor, targets_N: torch.Tensor):
    size = max(LEAST_ROWS, CHUNK_LOGITS[kind_of(hidden_NE.device)][bool(_trained(head))] // head.vocabulary)
    for start in range(0, len(targets_N), size):
        rows = slice(start, start + size)
        yield rows, hidden_NE[rows], targets_N[rows]


def _losses_and_gradient(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and its derivative by the logits."""
    if kind_of(logits_CV.device) != "cpu" or logits_CV.dtype == _wide(logits_CV.dtype):
        losses_C, by_logits_CV = _softmax_less_one(logits_CV, targets_C)
        return losses_C, by_logits_CV.to(logits_CV.dtype)
    size = max(1, CACHED_LOGITS // logits_CV.shape[1])
    by_logits_CV, losses = torch.empty_like(logits_CV), []
    for logits, targets, by_logits in zip(*(x.split(size) for x in (logits_CV, targets_C, by_logits_CV))):
        found, wide = _softmax_less_one(logits, targets)
        losses.append(found)
        by_logits.copy_(wide)
    return torch.cat(losses), by_logits_CV


def _softmax_less_one(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses, and softmax less one at the target, in one buffer of float32."""
    buffer_CV = F.log_softmax(logits_CV, 1, dtype=_wide(logits_CV.dtype))
    at_C1 = targets_C[:, None]
    losses_C = -buffer_CV.gather(1, at_C1)[:, 0]
    buffer_CV.exp_().scatter_add_(1, at_C1, buffer_CV.new_full(at_C1.shape, -1))
    return losses_C, buffer_CV


def _cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_NV.to(_wide(logits_NV.dtype)), targets_N, reduction="none")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def forward(model, batch: Batch, **options):
    """The model's output. Packed documents do not see each other: their boundaries go to the attention, positions
    restart."""
    if batch.packed:
        options |= _boundaries(batch)
    else:
        options["attention_mask"] = batch.real_BT()
    return model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False, **options)


def _boundaries(batch: Batch) -> dict:
    """Document boundaries under the names that transformers' variable-length attention reads, and their lengths
    for `documents`, which need not ask the device for them."""
    ends = torch.tensor((0, *batch.lengths), device=batch.input_ids_BT.device).cumsum(0).int()
    longest = max(batch.lengths)
    return dict(
        cu_seq_lens_q=ends,
        cu_seq_lens_k=ends,
        max_length_q=longest,
        max_length_k=longest,
        document_lengths=batch.lengths,
    )


def find_head(model, packed: bool) -> Head | None:
    """The head of a model, or None if its forward does anything else. Shown on the model itself.

    One forward pass shows what reaches the output layer. In it the layer's output is replaced by known numbers, small
    and large, so what the model makes of them is what it does to its logits.
    """
    base = base_of(model)
    decoder, layer = base.get_decoder(), base.get_output_embeddings()
    if layer is None or decoder is base:
        return None
    seen = {}

    def replace(_, inputs, output):
        known = torch.linspace(-1e4, 1e4, output.numel(), device=output.device).view_as(output).to(output.dtype)
        seen.update(hidden=inputs[0], logits=known)
        return known

    training, hook = model.training, layer.register_forward_hook(replace)
    model.eval()
    try:
        with torch.inference_mode():
            batch = collate([(np.arange(1, 13), np.ones(12, bool))], np.array([0]), packed).to(base.device)
            logits = forward(base, batch).logits
            hidden = forward(decoder, batch).last_hidden_state
    except (TypeError, AttributeError):
        return None  # a decoder that is called in another way
    finally:
        hook.remove()
        model.train(training)
    if not torch.equal(hidden, seen.get("hidden")):
        return None
    rounding = torch.finfo(logits.dtype).eps * 8
    return next(
        (
            Head(decoder, layer, change, logits.shape[-1])
            for change in _changes(seen["logits"], logits)
            if torch.allclose(change(seen["logits"]), logits, rtol=rounding)
        ),
        None,
    )


def head_by_form(model) -> Head | None:
    """The head that `find_head` is likely to find, by the model's configuration and without running it."""
    base = base_of(model)
    decoder, layer, config = base.get_decoder(), base.get_output_embeddings(), base.config.get_text_config()
    if layer is None or decoder is base:
        return None
    cap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None) or getattr(config, "logits_scaling", None)
    after = _capped(cap) if cap else _scaled(factor) if factor and factor != 1 else _unchanged
    return Head(decoder, layer, after, layer.weight.shape[0])


def _capped(cap: float) -> Callable:
    return lambda logits: torch.tanh(logits / cap) * cap


def _scaled(factor: float) -> Callable:
    return lambda logits: logits * factor


def _changes(before: torch.Tensor, after: torch.Tensor) -> list[Callable]:
    """Returns the known changes of logits: none, a soft cap (Gemma 2), a factor (Cohere, Granite)."""
    cap, factor = after.abs().max().item(), (after.flatten()[0] / before.flatten()[0]).item()
    return [_unchanged, _capped(cap), _scaled(factor)]


def _unchanged(logits: torch.Tensor) -> torch.Tensor:
    return logits
