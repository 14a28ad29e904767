"""Loss on held-out rows, and how sure it is."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tunesmith.data.dataset import TokenStore
from tunesmith.data.packing import micro_batches, share_of
from tunesmith.methods import Answers, Method
from tunesmith.plan import Plan
from tunesmith.training import distributed
from tunesmith.training.batch import Batch, collate
from tunesmith.training.loss import Head, autocast, token_losses

RESAMPLES = 2000


def row_losses(
    method: Method,
    model: torch.nn.Module,
    head: Head | None,
    tokens: TokenStore,
    plan: Plan,
    device: torch.device,
    shares: Sequence[float] = (),
) -> np.ndarray:
    """(rows, 2): the loss of each row, summed over its units, and their number: learned tokens, the loss in nats, or 1
    for a method whose unit is the row. On all processes. `shares`: of the tokens, by process; equal by default."""
    model.eval()
    found = np.zeros((len(tokens), 2))
    mine = share_of(np.arange(len(tokens)), tokens.lengths, distributed.rank(), shares or [1] * distributed.world())
    with torch.inference_mode():
        for rows in micro_batches(mine, tokens.sizes, plan.micro_batch_tokens, plan.packing):
            batch = collate(tokens, rows, plan.packing).to(device)
            with autocast(plan):
                losses_N = token_losses(model, batch, head)
            found[rows, 0], found[rows, 1] = _by_row(method, batch, losses_N)
    return np.array(distributed.add_up(found.ravel().tolist())).reshape(found.shape)


def _by_row(method: Method, batch: Batch, losses_N: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each row of a batch, and its units."""
    row_D = torch.repeat_interleave(torch.tensor(batch.groups)).to(losses_N.device)
    row_N, rows = row_D[batch.sequence_N], len(batch.rows)
    counts = torch.bincount(row_N, minlength=rows).cpu().numpy()
    if method.loss is None:
        sums = torch.zeros(rows, dtype=torch.float64, device=losses_N.device)
        sums.index_add_(0, row_N, losses_N.double())
        return sums.cpu().numpy(), counts
    answers = Answers(-losses_N, batch.sequence_N, batch.groups)
    losses = [method.loss(answers.of_row(number), method.settings)[0].item() for number in range(rows)]
    return np.array(losses), counts if method.unit == "token" else np.ones(rows)


def mean_loss(losses: np.ndarray) -> float:
    return float(losses[:, 0].sum() / losses[:, 1].sum())


def resample(rows: int, seed: int = 0) -> np.ndarray:
    """(RESAMPLES, rows): row numbers of each bootstrap sample (Efron 1979)."""
    return np.random.default_rng(seed).integers(0, rows, (RESAMPLES, rows))


def interval(values: np.ndarray, sums: np.ndarray | None = None) -> dict:
    """{mean, low, high}: the ratio of sums of `values` (n,) to `sums` (default: their number), 95 % bootstrap."""
    return _interval(
        lambda picked: values[picked].sum(-1) / (sums[picked].sum(-1) if sums is not None else picked.shape[-1]),
        len(values),
    )


def difference(before: np.ndarray, after: np.ndarray, counts: np.ndarray | None = None) -> dict:
    """{mean, low, high} of after minus before on the same rows: a paired bootstrap."""
    with np.errstate(invalid="ignore"):
        return interval(after - before, counts)


def _interval(statistic: Callable[[np.ndarray], Any], rows: int) -> dict:
    with np.errstate(invalid="ignore"):  # losses of a broken model
        low, high = np.quantile(statistic(resample(rows)), [0.025, 0.975])
        return {"mean": float(statistic(np.arange(rows))), "low": float(low), "high": float(high)}


def _perplexity(loss: float) -> float:
    """Infinite above about 709 nats, where it is more than a float holds."""
    with np.errstate(over="ignore"):
        return float(np.exp(loss))


def compare(before: dict, after: dict) -> dict:
    """eval.json's numbers, from what `measure` found before and after.

    Each holds `losses` (rows, 2) and, where answers were generated for all rows, `right` (rows,) of 0 and 1.
    """
    first, last = np.array(before["losses"], float), np.array(after["losses"], float)  # null: not finite
    counts = last[:, 1]
    found: dict[str, Any] = {"rows": len(last), "difference": {"loss": difference(first[:, 0], last[:, 0], counts)}}
    for name, measured, losses in (("before", before, first), ("after", after, last)):
        loss = interval(losses[:, 0], counts)
        found[name] = {"loss": loss, "perplexity": {k: _perplexity(v) for k, v in loss.items()}}
        if "right" in measured:
            found[name]["exact_match"] = interval(np.array(measured["right"], float))
    if "right" in before and "right" in after:
        found["difference"]["exact_match"] = difference(
            np.array(before["right"], float), np.array(after["right"], float)
        )
    return found
