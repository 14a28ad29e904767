"""Runs hold their GPUs: one that another run holds is left out or refused, by name, on invented GPUs."""

import os

import pytest

from tests.finetune.conftest import messages_of
from tests.leasing import holding
from tests.test_machine import install
from tunesmith import leases
from tunesmith.cli.main import main
from tunesmith.errors import UserError
from tunesmith.finetune import gpu_check, job, launch
from tunesmith.finetune.gpu_check import GpuCheck
from tunesmith.machine import find_gpus
from tunesmith.run import Run


@pytest.fixture
def busy(machine, tmp_path, monkeypatch):
    """The function of `machine`, with leases of its own. Its `checked` has the GPUs of each check."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(leases.JOB, raising=False)
    check = gpu_check.check_gpus

    def noted(gpus, compute=None):
        machine.checked.append([one.index for one in gpus])
        return check(gpus, compute)

    machine.checked = []
    monkeypatch.setattr("tunesmith.finetune.prepare.surely_fits", lambda *_: True)  # nothing is traced
    monkeypatch.setattr(gpu_check, "check_gpus", noted)
    return machine


def held_now() -> list[tuple]:
    return [(one.device, one.exclusive, one.folder, one.pid) for one in leases.holders()]


def test_a_gpu_that_another_run_holds_is_left_out(busy, recipe, monkeypatch):
    """It is not even checked, which would slow the other run down."""
    gpus, launched = busy(None, None, None), launch.launch
    seen = []

    def look_and_launch(*arguments, **settings):
        seen.extend(one for one in held_now() if one[3] == os.getpid())
        launched(*arguments, **settings)

    monkeypatch.setattr(launch, "launch", look_and_launch)
    with holding([gpus[1].uuid]) as other:
        run = job.train(recipe())
        assert busy.checked == busy.launched == [[0, 2]] and run.plan.processes == 2
        problem = f"held by alpha (training, process {other.pid})"
        assert messages_of(run) == [f"GPU 1 (RTX 3090) is left out: {problem}"]
        assert run.events("gpu_check")[0]["gpus"][1]["problem"] == problem
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-0 works always,GPU-2 works always"
        assert seen == [(gpus[n].uuid, True, str(run.folder), os.getpid()) for n in (0, 2)]
        assert [pid for *_, pid in held_now()] == [other.pid]
    busy(None, None, None)
    job.resume(run.folder)  # on the same ones, although the other one is free now
    assert busy.checked[1:] == [[0, 1, 2]] and busy.launched[1:] == [[0, 2]]
    assert seen[2:] == seen[:2] and not held_now()


def test_a_machine_of_unlike_gpus_is_planned_without_one_that_is_held(busy, recipe, monkeypatch):
    """Its precision too: without the oldest GPU the others compute bfloat16."""
    free = (2**34, 2**34)
    models = {"GPU-old": ("Tesla P100", (6, 0)), "GPU-new": ("RTX 3090", (8, 6)), "GPU-best": ("RTX 4090", (8, 9))}
    install(monkeypatch, {uuid: (name, free, capability) for uuid, (name, capability) in models.items()})
    monkeypatch.setattr(gpu_check, "check_gpus", lambda gpus, compute: [GpuCheck(one, compute) for one in gpus])
    monkeypatch.setattr("tunesmith.machine.find_gpus", find_gpus)
    asked = recipe(model={"dtype": "auto"})
    run = job.train(asked.model_copy(update={"name": "whole"}))
    assert run.plan.compute == "float16" and run.plan.processes == 3
    with holding(["GPU-old"]):
        run = job.train(asked)
    assert run.plan.compute == "bfloat16" and run.plan.processes == 2 and busy.launched == [[0, 1, 2], [1, 2]]


def test_a_run_without_a_free_gpu_is_refused_in_one_line(busy, recipe, tmp_path, monkeypatch, capsys):
    asked = recipe()
    gpus = busy(None, None)
    with holding([one.uuid for one in gpus]) as other:
        with pytest.raises(leases.DeviceHeld) as refused:
            job.train(asked)
        text = str(refused.value)
        assert text.startswith(
            f"GPU 0 (RTX 3090), GPU 1 (RTX 3090): held by alpha (training, process {other.pid}); wait for its end"
        )
        assert "\n" not in text and all(part in text for part in ("queue add", "CUDA_VISIBLE_DEVICES", "--share-gpus"))
        assert not (asked.output / "run").exists() and not busy.checked and not busy.launched

        (tmp_path / "recipe.yaml").write_text(asked.dump())
        command = ["tunesmith", "train", str(tmp_path / "recipe.yaml"), "--share-gpus"]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        run = Run(asked.output / "run")
        shared = f"(RTX 3090) is shared with alpha (training, process {other.pid})"
        assert messages_of(run) == [f"GPU 0 {shared}", f"GPU 1 {shared}"] and busy.launched == [[0, 1]]
        with pytest.raises(leases.DeviceHeld):
            job.resume(run.folder)
        monkeypatch.setattr("sys.argv", ["tunesmith", "resume", str(run.folder), "--share-gpus"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code and busy.launched == [[0, 1]] * 2


def test_mistakes_are_found_before_a_gpu_is_asked_for(busy, recipe, tmp_path):
    with holding([busy(None)[0].uuid]), pytest.raises(UserError, match="nowhere"):
        job.train(recipe(data={"train": str(tmp_path / "nowhere.jsonl")}))


def test_a_run_that_needs_more_gpus_than_are_free_names_who_holds_them(busy, recipe):
    with holding([busy(None, None)[1].uuid]) as other, pytest.raises(UserError) as refused:
        job.train(recipe(train={"processes": 2}))
    assert str(refused.value) == (
        "train.processes: 2 asked for, but 1 of 2 GPUs can be used "
        f"(GPU 1 (RTX 3090): held by alpha (training, process {other.pid})); set train.processes to 1"
    )


def test_gpus_that_the_plan_leaves_out_are_released(busy, recipe, monkeypatch):
    gpus, seen = busy(None, None, None), []

    def look(*_, **__):
        seen.append({device for device, *_ in held_now()})

    check = gpu_check.check_gpus
    monkeypatch.setattr(gpu_check, "check_gpus", lambda *arguments: look() or check(*arguments))
    monkeypatch.setattr(launch, "launch", look)
    job.train(recipe(train={"processes": 1}), apart=True)
    assert seen == [{one.uuid for one in gpus}, {gpus[0].uuid}] and not held_now()


def test_what_else_uses_a_gpu_is_a_warning(busy, recipe):
    with holding([busy(None)[0].uuid], "chat", exclusive=False, nbytes=5 * 10**9) as other:
        run = job.train(recipe(), apart=True)
    assert messages_of(run) == [f"GPU 0 (RTX 3090) is shared with alpha (chat, process {other.pid}, 5.0 GB)"]


def test_a_queued_run_shares_with_the_process_that_holds_its_gpus_for_it(busy, recipe, monkeypatch):
    gpus = busy(None)
    monkeypatch.setenv(leases.JOB, "3")
    with holding([gpus[0].uuid]):  # which has the same environment
        run = job.train(recipe(), apart=True)
        assert not messages_of(run) and busy.launched == [[0]]
        monkeypatch.setenv(leases.JOB, "4")
        with pytest.raises(leases.DeviceHeld, match=r"held by alpha \(training, process \d+, job 3\)"):
            job.resume(run.folder)


def test_runs_share_a_cpu_unless_the_queue_started_them(busy, recipe, monkeypatch):
    busy()
    seen = []
    monkeypatch.setattr("tunesmith.finetune.worker.work", lambda folder: seen.append(held_now()))
    with holding(["cpu"]):
        run = job.train(recipe())
        assert [one[:2] for one in seen[0]] == [("cpu", True), ("cpu", False)] and not messages_of(run)
        monkeypatch.setenv(leases.JOB, "3")
        with pytest.raises(leases.DeviceHeld, match="cpu: held by alpha"):
            job.resume(run.folder)
    job.resume(run.folder)
    assert seen[1] == [("cpu", True, str(run.folder), os.getpid())]


def test_a_broken_ledger_is_one_warning(busy, recipe, tmp_path):
    busy(None, None)
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "leases").touch()
    run = job.train(recipe())
    assert busy.launched == [[0, 1]]
    assert messages_of(run) == [f"{tmp_path}/cache/leases: File exists; so other runs cannot see what this one uses"]
