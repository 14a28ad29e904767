"""The traced memory of a step whose layers stay in host memory is that of the real step, and of a simulated GPU."""

from dataclasses import replace
from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
import torch

from tests import simulated_gpu, tiny
from tests.conftest import slow_but
from tests.planner.test_trace import LENGTHS, asked, deeper, really
from tests.training.test_walk import Alive
from tunesmith.methods import Method
from tunesmith.model.adapt import adapt
from tunesmith.model.load import config_of, load
from tunesmith.planner import depths, trace
from tunesmith.training.batch import collate
from tunesmith.training.build import Facts, place, transform
from tunesmith.training.loss import autocast, find_head, method_loss
from tunesmith.training.planned_device import plan_for_gpu
from tunesmith.training.walk import backward

OLD_GPU = (6, 1)  # without kernels that a CPU cannot run, so that the real step can be planned for it too
CASES = {
    "LoRA": ("lora", {}),
    "nf4": ("lora", {}),
    "full": ("full", {}),
    "bfloat16": ("full", {"weights": "bfloat16", "optimizer": "adafactor"}),
}
QUICK = [("llama3", "full", 1, True), ("qwen3_moe", "nf4", 0, False)]


def walked(base, case: str, offload: bool = False, processes: int = 1):
    kind, train = CASES[case]
    recipe, plan = asked(base, kind, train, "nf4" if case == "nf4" else "none")
    return recipe, replace(plan, activation_offload=offload, processes=processes)


@pytest.mark.parametrize(
    ("name", "case", "kept", "offload"), slow_but(QUICK, [*product(tiny.FAMILIES, CASES, (0, 1), (True, False))])
)
def test_a_traced_walk_takes_the_bytes_of_a_real_one(family, name, case, kept, offload):
    """As on a GPU: what comes from host memory is a copy, and gradients stay until they have left."""
    recipe, plan = walked(family(name), case, offload, processes=1 + offload)
    with plan_for_gpu(OLD_GPU):
        expected = really(recipe, plan, family(name), kept, batches=2)
    found = trace.trace(recipe, plan, config_of(family(name)), LENGTHS, OLD_GPU, kept, batches=2, passes=2)
    assert found == expected and len(found.stages) > 8
    assert ("layer inputs" in found.host) == offload and found.host["weights"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case", "kept"), product(tiny.FAMILIES, CASES, (0, 1)))
def test_a_traced_walk_on_the_cpu_takes_the_bytes_of_a_real_one(family, name, case, kept):
    recipe, plan = walked(family(name), case)
    found = trace.trace(recipe, plan, config_of(family(name)), LENGTHS, None, kept, batches=2, passes=2)
    assert found == really(recipe, plan, family(name), kept, batches=2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case", "offload"), product(tiny.FAMILIES, CASES, (True, False)))
def test_few_layers_and_micro_batches_give_the_peaks_of_all(family, name, case, offload):
    recipe, plan = walked(family(name), case, offload)
    deep = deeper(config_of(family(name)), 5)
    layers, whole = deep.get_text_config().num_hidden_layers, case in ("full", "bfloat16")
    numbers = depths.numbers_to_trace(5, plan)
    found = depths.at_batches(depths.trace_walks(recipe, plan, deep, LENGTHS, numbers, OLD_GPU), 5)
    expected = [trace.trace(recipe, plan, deep, LENGTHS, OLD_GPU, kept, 5) for kept in (0, 2)]
    # The first update of Adafactor leaves some numbers of 4 bytes, which later ones do not.
    left = 1000 if case == "bfloat16" else 0
    for kept, traced in zip((0, 2), expected):
        peak_bytes = depths.with_kept(found, kept, layers, whole).peak_bytes
        assert peak_bytes == pytest.approx(traced.peak_bytes, rel=0, abs=left)
    # The process that keeps no layer has most of the weights at home, which the other one shares.
    assert depths.host_bytes(recipe, [found, found], [0, 2], layers) == (
        sum(expected[0].host.values()) + expected[1].host.get("layer inputs", 0)
    )


def on_simulated_gpu(recipe, plan, base, kept: int) -> int:
    """The peak of two steps of two micro-batches in bytes, counted by the device that tensors are on."""
    alive, make = Alive(), simulated_gpu.OnGpu.__new__

    def made(*args, **kwargs):
        tensor = make(*args, **kwargs)
        alive.note(tensor.inner)
        return tensor

    with simulated_gpu.played() as gpu, patch.object(simulated_gpu.OnGpu, "__new__", made):
        plan = replace(plan, device="cuda", kept_layers=[kept])
        model = load(recipe.model, base, getattr(torch, plan.weights), None, 0)
        model = adapt(model, recipe.adapter, [], 0)
        home = place(model, plan, gpu, lambda *_, **__: None, recipe.adapter.kind == "full")
        built = transform(model, recipe, plan, Facts(None, find_head(model, False)), lambda *_, **__: None, home)
        rows = [(np.full(n, 7), np.ones(n, bool)) for n in LENGTHS]
        batches = [collate(rows, np.arange(len(rows)), False).to(gpu) for _ in range(2)]
        model.train()

        def loss(batch):
            with autocast(plan):
                total, _ = method_loss(Method(recipe.method), model, batch, built.head)
            return total / batch.supervised_tokens

        alive.peak = 0
        for step in range(2):
            backward(built.walk, batches, loss, lambda batch: built.routing.loss(batch, 1.0), lambda batch: None)
            built.optimizer.clip(1.0)
            built.optimizer.step((0, step))
            built.optimizer.zero_grad()
        return alive.peak


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, which is simulated")
@pytest.mark.parametrize(("case", "kept"), [("LoRA", 0), ("full", 1)])
def test_a_simulated_gpu_holds_the_bytes_that_were_traced(family, case, kept):
    """There nothing is marked as host memory: tensors are on the one device or on the other."""
    recipe, plan = walked(family("llama3"), case, offload=True)
    plan = replace(plan, packing=False, weights="float32", compute="float32")
    traced = trace.trace(recipe, plan, config_of(family("llama3")), LENGTHS, OLD_GPU, kept, batches=2)
    assert traced.peak_bytes == on_simulated_gpu(recipe, plan, family("llama3"), kept)


@pytest.mark.parametrize("kept", [0, None])
def test_a_leak_of_a_real_walk_is_seen(family, monkeypatch, kept):
    recipe, plan = walked(family("llama3"), "full")
    traced, leaked, forward = really(recipe, plan, family("llama3"), kept), [], trace.method_loss

    def leaking(*given):
        leaked.append(torch.zeros(100))
        return forward(*given)

    monkeypatch.setattr(trace, "method_loss", leaking)
    assert really(recipe, plan, family("llama3"), kept).peak_bytes > traced.peak_bytes
