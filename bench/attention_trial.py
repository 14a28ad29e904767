"""Attention over packed documents on a CPU: how Tunesmith computes it in bfloat16, or within a window, against torch's
attention in float32 for each length. Forward and backward pass of 4096 tokens, head size 64, best of several turns.

    python bench/attention_trial.py --threads 1 --heads 8
"""

import argparse
import random
import time
from itertools import groupby

import torch
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.training.attention_kernels import by_document

TOKENS, WIDTH, TURNS = 4096, 64, 8


def in_float32(query_HTD, key_HTD, value_HTD, ends, scaling, window):
    """(H, T, D) by torch's attention, those of equal length in one call."""
    groups = [(length, len(list(run))) for length, run in groupby(torch.diff(ends).tolist())]
    pieces = [
        x.float().split([length * count for length, count in groups], dim=1) for x in (query_HTD, key_HTD, value_HTD)
    ]
    outputs = []
    for (length, _), *piece in zip(groups, *pieces):
        q, k, v = (x.unflatten(1, (-1, length)).transpose(0, 1) for x in piece)
        behind = torch.arange(length)[:, None] - torch.arange(length)
        mask = (behind >= 0) & (behind < window) if window and window < length else None
        out = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scaling)
        outputs.append(out.transpose(0, 1).flatten(1, 2))
    return torch.cat(outputs, dim=1).to(query_HTD.dtype)


def best_seconds(lengths, heads: int, dtype, window) -> list[float]:
    """Of both, in turn, as other work on the machine slows both."""
    ends = torch.tensor((0, *lengths)).cumsum(0)
    inputs = [torch.randn(TOKENS, heads, WIDTH, dtype=dtype).transpose(0, 1).requires_grad_() for _ in range(3)]
    by_out = torch.randn(heads, TOKENS, WIDTH, dtype=dtype)
    found = []
    for _ in range(TURNS + 1):  # the first is not counted
        found.append([])
        for attention in (in_float32, by_document):
            start = time.perf_counter()
            torch.autograd.grad(attention(*inputs, ends, WIDTH**-0.5, window), inputs, by_out)
            found[-1].append(time.perf_counter() - start)
    return [min(column) for column in zip(*found[1:])]


def cases():
    """(name, lengths, dtype, window)."""
    for length in (64, 128, 256, 512, 1024, 2048, 4096):
        yield f"{TOKENS // length} of {length}", [length] * (TOKENS // length), torch.bfloat16, None
    draw, mixed = random.Random(0), []
    while sum(mixed) < TOKENS:
        mixed.append(min(draw.randint(30, 500), TOKENS - sum(mixed)))
    yield "30 to 500", mixed, torch.bfloat16, None
    for dtype in (torch.float32, torch.bfloat16):
        for length, window in ((512, 128), (1024, 512), (4096, 512)):
            yield f"{TOKENS // length} of {length}", [length] * (TOKENS // length), dtype, window


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(f"torch {torch.__version__}, {asked.threads} threads, {asked.heads} heads")
    print(
        "| documents | precision | window | torch in float32, ms | Tunesmith, ms | times faster |\n"
        "|---|---|---|---|---|---|"
    )
    for name, lengths, dtype, window in cases():
        before, now = best_seconds(lengths, asked.heads, dtype, window)
        print(
            f"| {name} | {str(dtype)[6:]} | {window or ''} | {before * 1e3:.0f} | {now * 1e3:.0f} "
            f"| {before / now:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
