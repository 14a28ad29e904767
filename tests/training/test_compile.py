"""Compiled layers learn the same, compile once for batches of any length, and repeat to the bit."""

import pytest
import torch

from tests.training.test_layer_transforms import DENSE, build  # noqa: F401  (build is a fixture)
from tests.training.test_switches import BOUND, curve
from tunesmith import train
from tunesmith.training.layer_transforms import CompileWatch, checkpoint_layers, compile_layers

pytestmark = pytest.mark.slow


@pytest.fixture
def kernels(tmp_path_factory, monkeypatch):
    """One folder of kernels for all tests; the environment is as it was afterwards."""
    folder = tmp_path_factory.getbasetemp() / "kernels"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return folder


@pytest.mark.parametrize("name", DENSE)
def test_the_loss_curve_stays_and_nothing_is_compiled_again(build, kernels, name):  # noqa: F811
    plain, model = curve(build(name)), build(name)
    assert compile_layers(model, kernels) is None
    watch = CompileWatch()
    first = curve(model)
    assert first == pytest.approx(plain, abs=BOUND)
    assert 0 < watch.news()["graphs"] < 20
    checkpoint_layers(model, "on")
    curve(model)
    assert watch.news() is None


def test_a_compiled_run_repeats_to_the_bit_and_says_what_it_compiled(recipe, kernels):
    settings = {"max_steps": 6, "gradient_checkpointing": "on"}
    plain, *compiled = [
        train(recipe(name=f"{i}", train=settings | {"compile": how})) for i, how in enumerate(("off", "on", "on"))
    ]
    losses = [[e["loss"] for e in run.events("step")] for run in (plain, *compiled)]
    assert losses[1] == losses[2] == pytest.approx(losses[0], abs=BOUND)
    weights = [(run.result / "adapter_model.safetensors").read_bytes() for run in compiled]
    assert weights[0] == weights[1]
    [said] = compiled[0].events("compile")
    assert said["step"] == 1 and said["graphs"] > 0 and said["recompiles"] == 0 and said["seconds"] > 0
    assert not plain.events("compile")


def test_dropout_is_drawn_again_as_it_was(build, kernels):  # noqa: F811
    """Compiled dropout has random numbers of its own; recomputing must draw them again."""
    found = []
    for how in ("off", "on"):
        model = build("llama3", dropout=0.3)
        compile_layers(model, kernels)
        checkpoint_layers(model, how)
        found.append(curve(model))
    assert found[0] == pytest.approx(found[1], abs=BOUND) and torch.tensor(found).isfinite().all()
