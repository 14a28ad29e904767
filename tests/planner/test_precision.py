"""The precision that suits the GPUs of a machine, by their compute capability."""

from dataclasses import replace

import pytest

from tests.simulated_gpu import MACHINE
from tunesmith.errors import UserError
from tunesmith.machine import Gpu
from tunesmith.planner.decide import choose
from tunesmith.recipe import Recipe

V100, T4, P100, P40, M40 = (7, 0), (7, 5), (6, 0), (6, 1), (5, 2)
A100, RTX_3090, RTX_4090 = (8, 0), (8, 6), (8, 9)


def plan(*capabilities: tuple[int, int], kind: str = "lora", weights: str = "auto", **model):
    gpus = [Gpu(index, f"model {index}", 1, 1, capability) for index, capability in enumerate(capabilities)]
    recipe = {"model": {"path": "m"} | model, "data": "d", "adapter": {"kind": kind}, "train": {"weights": weights}}
    return choose(Recipe.build(recipe), replace(MACHINE, gpus=gpus, cpu_fast_bf16=False))


@pytest.mark.parametrize(
    ("gpus", "precision"),
    [
        *(([gpu], "bfloat16") for gpu in (A100, RTX_3090, RTX_4090)),
        *(([gpu], "float16") for gpu in (V100, T4, P100, P40)),
        ([M40], "float32"),
        ([], "float32"),
        ([RTX_3090, RTX_4090], "bfloat16"),
        ([RTX_3090, T4], "float16"),
        ([T4, P40], "float16"),
        ([P40, RTX_3090, V100], "float16"),
        ([M40, RTX_3090], "float32"),
    ],
    ids=str,
)
def test_the_precision_suits_every_gpu(gpus, precision):
    assert plan(*gpus).compute == plan(*gpus).weights == precision
    full = plan(*gpus, kind="full")
    assert (full.compute, full.weights) == (precision, "float32")


def test_the_reason_names_the_gpu_without_bfloat16():
    assert plan(RTX_3090, T4).reasons["compute"] == "GPU 1 (model 1) does not compute bfloat16; with loss scaling"


def test_the_recipe_may_choose_another_precision():
    assert plan(T4, dtype="float32").compute == "float32"
    assert plan(A100, dtype="float16").compute == "float16"
    assert plan(T4, kind="full", weights="bfloat16", dtype="bfloat16").compute == "bfloat16"


def test_bfloat16_weights_do_not_go_with_float16():
    with pytest.raises(UserError, match=r"train.weights: bfloat16: GPU 1 \(model 1\) does not compute bfloat16; leave"):
        plan(RTX_3090, T4, kind="full", weights="bfloat16")
    with pytest.raises(UserError, match="train.weights: bfloat16 is computed in bfloat16: leave model.dtype at auto"):
        plan(kind="full", weights="bfloat16", dtype="float16")
    assert plan(kind="full", weights="bfloat16").compute == "bfloat16"  # on a CPU
