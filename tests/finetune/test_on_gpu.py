"""Whole runs on a simulated GPU (tests/simulated_gpu.py): each tensor is where it must be, and what is learned
is what is learned on the CPU."""

import shutil
from dataclasses import replace

import pytest
import torch

from tests import simulated_gpu, tiny
from tests.conftest import slow_but
from tests.serving import Collector
from tunesmith import resume, train
from tunesmith.export.export import export
from tunesmith.inference import scheduler
from tunesmith.inference.interface import Request
from tunesmith.inference.scheduler import BatchingEngine
from tunesmith.planner import fit
from tunesmith.serve.open_models import open_models
from tunesmith.training import checkpoint, loop

BOUND = 1e-5
ROUNDING = 2**-8  # of bfloat16


pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="needs a machine without a GPU, as both runs would use it"
)


@pytest.fixture
def on_gpu(monkeypatch):
    """Calls a function on a machine with a GPU."""

    def call(function, *args, **kwargs):
        with monkeypatch.context() as patch, simulated_gpu.played():
            patch.setenv("PYTORCH_ALLOC_CONF", "as it is here")
            patch.setattr("tunesmith.finetune.prepare.probe", lambda folder: simulated_gpu.MACHINE)
            patch.setattr("tunesmith.finetune.prepare.usable_gpus", lambda devices, gpus, *_: gpus)
            return function(*args, **kwargs)

    return call


@pytest.fixture
def quick(recipe):
    """Small recipes of four steps, evaluated and sampled."""

    def build(base: str, name: str, train: dict | None = None, **sections):
        return recipe(
            base,
            name,
            data={"eval_share": 0.1},
            evaluate={"samples": 2},
            train={"max_steps": 4, "eval_every": 2, "sample_every": 2} | (train or {}),
            **sections,
        )

    return build


def test_what_is_not_on_the_gpu_does_not_meet_what_is(on_gpu):
    def meet(where):
        return torch.ones(2, device="cuda") + torch.ones(2, device=where)

    assert on_gpu(meet, "cuda").device == simulated_gpu.GPU and not torch.cuda.is_available()
    with pytest.raises(simulated_gpu.WrongDevice, match="on cuda, .* on cpu"):
        on_gpu(meet, "cpu")


def losses(run) -> list[float]:
    return [event["loss"] for event in run.events("step")]


def warnings(run) -> list[str]:
    return [event["message"] for event in run.events("warning")]


WAYS = [(name, kind, dtype) for name in tiny.FAMILIES for kind, dtype in (("lora", "bfloat16"), ("full", "float32"))]


@pytest.mark.parametrize(
    ("name", "kind", "dtype"), slow_but([("gemma3", "full", "float32"), ("gpt_oss", "lora", "bfloat16")], WAYS)
)
def test_every_family_learns_the_same(quick, on_gpu, name, kind, dtype):
    asked = dict(model={"dtype": dtype}, adapter={"kind": kind})
    expected = train(quick(name, "cpu", **asked))
    found = on_gpu(train, quick(name, "gpu", **asked))
    assert found.plan.device == "cuda" and warnings(found) == warnings(expected)
    assert found.plan.gradient_checkpointing == expected.plan.gradient_checkpointing == "off"
    # A router that is rounded otherwise chooses other experts, and from then on all is otherwise.
    alike = 1 if name in tiny.MOE_FAMILIES and dtype == "bfloat16" else 4
    bound = dict(abs=BOUND) if dtype == "float32" else dict(rel=ROUNDING)
    assert losses(found)[:alike] == pytest.approx(losses(expected)[:alike], **bound)
    assert [e["loss"] for e in found.events("eval")][:alike] == pytest.approx(
        [e["loss"] for e in expected.events("eval")][:alike], **bound
    )


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    slow_but(
        [("llama3", "lora", {})],
        [("llama3", "lora", {}), ("llama3", "full", {"kept_layers": 0}), ("gpt_oss", "lora", {})],
    ),
)
def test_a_gpu_without_bfloat16_learns_in_float16(quick, on_gpu, monkeypatch, name, kind, settings):
    gpu = replace(simulated_gpu.MACHINE.gpus[0], capability=(7, 5))
    monkeypatch.setattr(simulated_gpu, "MACHINE", replace(simulated_gpu.MACHINE, gpus=[gpu]))
    found = on_gpu(train, quick(name, "gpu", settings, model={"dtype": "auto"}, adapter={"kind": kind}))
    expected = train(quick(name, "cpu", adapter={"kind": kind}))
    assert found.plan.compute == "float16" and found.plan.packing and not warnings(found)
    alike = 1 if name in tiny.MOE_FAMILIES else 4
    assert losses(found)[:alike] == pytest.approx(losses(expected)[:alike], rel=ROUNDING)
    assert found.events("step")[0]["loss_scale"] == 2.0**16


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": 0.5, "activation_offload": True},
        {"gradient_checkpointing": "selective"},
        {"tiled_mlp": "on"},
        {"optimizer": "adafactor"},
        {"optimizer": "muon"},
        {"weights": "bfloat16"},
        {"kept_layers": 0, "activation_offload": True},
    ],
    ids=str,
)
def test_every_switch_learns_the_same(quick, on_gpu, settings):
    rounded = "weights" in settings
    asked = dict(adapter={"kind": "full"}, model={"dtype": "auto" if rounded else "float32"})
    found = on_gpu(train, quick("qwen3", "gpu", settings, **asked))
    expected = train(quick("qwen3", "cpu", settings | {"activation_offload": False, "kept_layers": "auto"}, **asked))
    bound = dict(rel=ROUNDING) if rounded else dict(abs=BOUND)
    assert losses(found) == pytest.approx(losses(expected), **bound)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("llama3", {"kept_layers": 0, "activation_offload": True}), ("gpt_oss", {"kept_layers": 1, "micro_batch": 1})],
    ids=str,
)
def test_layers_in_host_memory_learn_the_same(quick, on_gpu, name, settings):
    """Evaluated and sampled on the way, for which the layers come to the GPU as well."""
    asked = dict(model={"dtype": "float32"})
    found = on_gpu(train, quick(name, "gpu", settings, **asked))
    expected = train(quick(name, "cpu", **asked))
    assert losses(found) == pytest.approx(losses(expected), abs=BOUND)
    ends = [[event["loss"] for event in run.events("eval")] for run in (found, expected)]
    assert ends[0] == pytest.approx(ends[1], abs=BOUND) and warnings(found) == warnings(expected)


def test_a_resumed_run_is_the_same_run(quick, on_gpu):
    run = on_gpu(train, quick("llama3", "gpu", {"max_steps": 6, "save_every": 2}, tokens=("<new>",)))
    whole = losses(run)
    for folder in (run.result, *checkpoint.complete(run.checkpoints)[1:]):
        shutil.rmtree(folder)
    on_gpu(resume, run.folder)
    assert losses(run)[-4:] == whole[2:]


def test_a_step_that_does_not_fit_is_done_again(quick, on_gpu, monkeypatch):
    expected = train(quick("llama3", "cpu"))
    method_loss = loop.method_loss

    def limited(method, model, batch, head):
        if model.training and batch.input_ids_BT.numel() > 100:
            raise torch.OutOfMemoryError("injected")
        return method_loss(method, model, batch, head)

    monkeypatch.setattr(loop, "method_loss", limited)
    found = on_gpu(train, quick("llama3", "gpu"))
    assert warnings(found) and losses(found) == pytest.approx(losses(expected), abs=BOUND)


def test_what_fits_is_measured(quick, on_gpu):
    run = on_gpu(train, quick("llama3", "gpu"))
    found = on_gpu(fit.measure, run.folder, run.plan, run.base, [(1, 64), (2, 64)])
    assert [tokens for tokens, _ in found.points] == [0, 64, 128]


@pytest.mark.parametrize("kind", slow_but(["lora"], ["lora", "full"]))
def test_an_export_is_compared_there_and_the_run_is_served_from_there(quick, on_gpu, monkeypatch, kind):
    monkeypatch.setattr(scheduler, "CHUNK", 16)  # the prompt is computed in several steps
    run = train(quick("llama3", kind, adapter={"kind": kind}))
    assert on_gpu(export, run, "merged")["passed"]
    ids = list(range(20, 60))

    def answer() -> str:
        engine = BatchingEngine(open_models([run.folder]))
        try:
            return Collector(engine, Request(kind, ids, 12)).wait().text
        finally:
            engine.close()

    assert on_gpu(answer) == answer()
