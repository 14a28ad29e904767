"""float16 with loss scaling, on the CPU: it learns what float32 learns, and an overflow costs a step and no more."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.finetune.test_resume import interrupt_at
from tunesmith import resume, train
from tunesmith.errors import Interrupted, NotFinite, UserError
from tunesmith.training import checkpoint, loop, loss_scale
from tunesmith.training.optimizer import Optimizer

FLOAT16 = {"dtype": "float16"}
FULL = {"kind": "full"}
# 2^-11 for each number that is rounded. The weights' rounding errors add up over layers and steps: those of bfloat16,
# eight times as large, stay below 2^-8 in this test.
BOUND = 2**-8
HIGH = 2.0**26  # a scale that overflows in the tests' models, and several of the next lower ones


def values(run, name: str = "loss") -> list:
    return [event[name] for event in run.events("step")]


def skipped(run) -> list[int]:
    return [event["step"] for event in run.events("step") if event.get("skipped")]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_it_learns_what_float32_learns(recipe, kind):
    asked = dict(adapter={"kind": kind})
    expected = train(recipe(name="float32", **asked))
    found = train(recipe(name="float16", model=FLOAT16, **asked))
    assert found.plan.compute == "float16"
    assert values(found) == pytest.approx(values(expected), rel=BOUND)
    assert values(found, "grad_norm") == pytest.approx(values(expected, "grad_norm"), rel=4 * BOUND)
    assert set(values(found, "loss_scale")) == {2.0**16} and not skipped(found)
    assert all("loss_scale" not in event for event in expected.events("step"))


@pytest.mark.parametrize("settings", [{}, {"kept_layers": 0}], ids=str)
def test_the_loss_of_routers_is_scaled_too(recipe, monkeypatch, settings):
    """It is most of the gradient. Of one step, as routers that are rounded otherwise choose other experts later."""
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**8)
    asked = dict(adapter=FULL, method={"router_loss": 100.0})
    expected = train(recipe("qwen3_moe", "float32", train={"max_steps": 1}, **asked))
    without = train(recipe("qwen3_moe", "without", train={"max_steps": 1}, adapter=FULL))
    found = train(recipe("qwen3_moe", "float16", model=FLOAT16, train={"max_steps": 1} | settings, **asked))
    norms = [values(run, "grad_norm")[0] for run in (found, expected, without)]
    assert norms[0] == pytest.approx(norms[1], rel=2**-5) and norms[1] > 1.5 * norms[2]


@pytest.mark.parametrize("settings", [{}, {"kept_layers": 0}], ids=str)
def test_a_step_that_overflows_is_skipped(recipe, monkeypatch, settings):
    """The rest learns what a run learns whose scale is low enough, and that does not take these steps."""
    asked = dict(adapter=FULL, model=FLOAT16)
    with monkeypatch.context() as patch:
        patch.setattr(loss_scale, "INITIAL", HIGH)
        found = train(recipe(name="found", train={"max_steps": 16} | settings, **asked))
    steps, norms = skipped(found), values(found, "grad_norm")
    assert steps[:2] == [1, 2] and len(steps) < 14
    assert values(found, "loss_scale") == [HIGH / 2 ** sum(s < step for s in steps) for step in range(1, 17)]
    assert [step for step, norm in enumerate(norms, 1) if norm is None] == steps

    step, calls = Optimizer.step, []

    def step_unless_skipped(self, seed):
        calls.append(seed)
        if len(calls) not in steps:
            step(self, seed)

    monkeypatch.setattr(Optimizer, "step", step_unless_skipped)
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**10)
    expected = train(recipe(name="expected", train={"max_steps": 16}, **asked))
    assert not skipped(expected) and values(found) == pytest.approx(values(expected), rel=BOUND)
    taken = [(a, b) for a, b in zip(norms, values(expected, "grad_norm")) if a is not None]
    assert [a for a, _ in taken] == pytest.approx([b for _, b in taken], rel=BOUND)


def test_a_resumed_run_is_the_same_run_with_its_scale(recipe, monkeypatch):
    """It is resumed between two changes of the scale."""
    monkeypatch.setattr(loss_scale, "INITIAL", HIGH)
    monkeypatch.setattr(loss_scale, "DOUBLES_AFTER", 5)
    asked = dict(model=FLOAT16, train={"max_steps": 20, "save_every": 1})
    whole = train(recipe(name="whole", **asked))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        with pytest.raises(Interrupted):
            train(recipe(name="parts", **asked))
    parts = whole.folder.parent / "parts"
    state = checkpoint.read_state(checkpoint.complete(parts / "checkpoints")[-1])
    assert 0 < state.finite_steps < 5 and state.loss_scale < HIGH
    run = resume(parts)
    for name in ("loss", "grad_norm", "loss_scale"):
        assert values(run, name) == values(whole, name)
    assert len(set(values(run, "loss_scale")[state.step :])) > 1  # it doubled, after the resume
    file = "adapter_model.safetensors"
    assert (run.result / file).read_bytes() == (whole.result / file).read_bytes()


def test_two_processes_skip_the_same_steps(recipe):
    """A large alpha makes the gradients overflow, without help by the test, which does not reach into the processes."""
    wide = {"rank": 4, "alpha": 8 * 2**10}
    settings = {"max_steps": 12, "learning_rate": 1e-6}
    one = train(recipe(name="one", model=FLOAT16, adapter=wide, train=settings))
    two = train(recipe(name="two", model=FLOAT16, adapter=wide, train=settings | {"processes": 2}))
    assert skipped(one) and skipped(one) == skipped(two)
    assert values(one, "loss_scale") == values(two, "loss_scale")
    assert values(two) == pytest.approx(values(one), rel=BOUND)


def test_gradients_that_no_scale_makes_finite_end_the_run(recipe, monkeypatch):
    monkeypatch.setattr(loss_scale, "INITIAL", 4.0)
    method_loss = loop.method_loss

    def without_gradient(*arguments):
        total, metrics = method_loss(*arguments)
        total.register_hook(lambda gradient: gradient * torch.inf)
        return total, metrics

    monkeypatch.setattr(loop, "method_loss", without_gradient)
    asked = recipe(model=FLOAT16)
    with pytest.raises(NotFinite, match=r"step 3: gradient norm \w+ is not finite; set model.dtype: float32.*its rows"):
        train(asked)


def test_a_base_that_float16_does_not_hold_is_refused(recipe, family, tmp_path):
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(family("llama3")).save_pretrained(folder)
    for file in family("llama3").iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.input_layernorm.weight"
    save_file(weights | {name: weights[name] * 1e5}, folder / "model.safetensors", {"format": "pt"})
    path = {"path": str(folder)}
    with pytest.raises(UserError, match=f"weights of {name} are beyond 65,504"):
        train(recipe(model=FLOAT16 | path, train={"max_steps": 1}))
    train(recipe(name="wide", model=path, train={"max_steps": 1}))


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_the_result_has_the_precision_of_the_base(recipe, family, tmp_path, stored):
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(family("llama3"), dtype=stored).save_pretrained(folder)
    for file in family("llama3").iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    model = FLOAT16 | {"path": str(folder)}
    run = train(recipe(model=model, adapter=FULL, train={"max_steps": 2}, data={"eval_share": 0.1}))
    saved = load_file(run.result / "model.safetensors").values()
    assert {str(tensor.dtype) for tensor in saved} == {f"torch.{stored}"}
