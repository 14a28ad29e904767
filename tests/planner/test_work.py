"""The arithmetic of operations is counted as their definitions say."""

import pytest
import torch

from tests.planner.test_predict import LLAMA_8B
from tunesmith.machine import Machine
from tunesmith.planner.decide import choose
from tunesmith.planner.depths import trace_step
from tunesmith.planner.work import CountWork, Work
from tunesmith.recipe import Recipe
from tunesmith.training.attention_kernels import by_document


def counted(run) -> Work:
    with CountWork() as count:
        run()
    return count.done


def test_a_product_of_matrices():
    left, right = torch.ones(3, 5), torch.ones(5, 7)
    assert counted(lambda: left @ right) == Work(flops=2 * 3 * 5 * 7)
    assert counted(lambda: torch.ones(3, 7).addmm_(left, right)).flops == 2 * 3 * 5 * 7


def test_other_operations_move_bytes_and_views_none():
    x = torch.ones(10, 10)
    assert counted(lambda: x + x) == Work(moved_bytes=3 * 400)
    assert counted(lambda: x.t().reshape(100)[::2].detach()) == Work(moved_bytes=2 * 400)  # the transposed copy
    assert counted(lambda: x.sum().item()) == Work(moved_bytes=400 + 4)


@pytest.mark.parametrize(("length", "window"), [(1024, None), (1024, 100)])
def test_attention_of_documents(length, window):
    """Two products of width 16 for each pair of tokens of which one sees the other."""
    q, k, v = (torch.ones(2, 2 * length, 16) for _ in range(3))
    found = counted(lambda: by_document(q, k, v, (length, length), 1.0, window=window, cap=30.0))
    seen = sum(min(n, window or n) for n in range(1, length + 1))
    assert found.flops == pytest.approx(2 * 2 * 2 * 16 * 2 * seen, rel=0.06)


def test_a_full_fine_tune_takes_six_flops_for_each_weight_and_token():
    """Forward pass two, backward pass four (Kaplan et al. 2020), beside attention; the embedding is looked up."""
    recipe = Recipe.build({"model": {"path": "m"}, "data": "d", "adapter": {"kind": "full"}})
    plan = choose(recipe, Machine("", "", 2, 10**11, 10**11, 10**12, True))
    step = trace_step(recipe, plan, LLAMA_8B, [256], capability=(8, 9))
    weights = 8_030_261_248 - 128256 * 4096
    attention = 32 * 3.5 * 4 * 256 * 128 * 4096  # 32 layers, 7 products where the forward pass has 2
    assert step.pass_work.flops == pytest.approx(6 * weights * 256 + attention, rel=1e-3)
