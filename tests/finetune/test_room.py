"""A run of the queue for which too little memory is free waits; what never fits fails. GPUs are invented."""

from dataclasses import replace

import pytest

from tests.test_machine import install
from tunesmith import leases
from tunesmith.cli.main import main
from tunesmith.errors import NotNow, UserError
from tunesmith.finetune import gpu_check, job, prepare, room
from tunesmith.finetune.gpu_check import GpuCheck
from tunesmith.machine import find_gpus, probe
from tunesmith.model.load import config_of
from tunesmith.planner.predict import predict

MB = 10**6


@pytest.fixture
def queued(monkeypatch, tmp_path):
    """Plays a process of job 7, with leases of its own."""

    def predicted(recipe, machine, base):
        return predict(recipe, machine, config_of(base), base)

    for module in (prepare, room):
        monkeypatch.setattr(module, "predict_apart", predicted)  # here, as to start a process takes seconds
    monkeypatch.setattr("tunesmith.planner.predict._remedies", lambda *_: [])  # each is traced
    monkeypatch.setenv(leases.JOB, "7")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def host(monkeypatch):
    """Returns a function that sets the memory of this machine, which has no GPU."""

    def memory(free: int, total: int) -> None:
        changed = {"free_memory_bytes": free, "memory_bytes": total}
        monkeypatch.setattr(prepare, "probe", lambda folder: replace(probe(folder), **changed))
        monkeypatch.setattr(room, "memory", lambda: (total, free))

    return memory


def reasons(run) -> list[str]:
    return [event["reason"] for event in run.events("stop")]


def test_on_a_cpu_it_waits_for_host_memory_and_then_trains(recipe, queued, host):
    run = job.new_run(recipe("qwen3", train={"max_steps": 1}))
    host(950 * MB, 16_000 * MB)
    with pytest.raises(NotNow, match=r"^CPU: a training step needs 9\d\d.\d MB, and it may take 90") as refused:
        job.resume(run.folder)
    needed = refused.value.needed
    assert reasons(run) == ["no_room"] and run.events("stop")[0]["needed"] == needed and not run.is_prepared
    host(needed[leases.CPU], 16_000 * MB)  # what it named is enough, exactly
    assert job.resume(run.folder).result.is_dir() and reasons(run)[-1] == "done"


def test_what_the_empty_machine_has_no_room_for_fails_and_so_does_a_run_of_a_terminal(
    recipe, queued, host, monkeypatch
):
    run = job.new_run(recipe("qwen3", train={"max_steps": 1}))
    host(900 * MB, 950 * MB)
    with pytest.raises(UserError, match="of 900.0 MB that are free"):
        job.resume(run.folder)
    monkeypatch.delenv(leases.JOB)
    host(950 * MB, 16_000 * MB)
    with pytest.raises(UserError, match="of 950.0 MB that are free"):
        job.resume(run.folder)
    assert reasons(run) == ["error"] * 2


def test_a_run_goes_on_only_with_the_memory_it_was_planned_with(recipe, queued, host, monkeypatch, capsys):
    """Nothing is planned again then. A run that was forced is not refused, and neither is one of a terminal."""
    run = job.new_run(recipe("qwen3", train={"max_steps": 2}))
    monkeypatch.setattr(prepare, "surely_fits", lambda *_: False)
    host(2_000 * MB, 16_000 * MB)
    monkeypatch.setattr(job, "_start", lambda *_, **__: None)
    job.resume(run.folder)
    needed = run.plan.predicted["needed_bytes"][leases.CPU]
    host(needed - MB, 16_000 * MB)
    with pytest.raises(SystemExit) as ended:
        main(["resume", str(run.folder)])
    said = capsys.readouterr().err
    assert ended.value.code == 75 and said.splitlines()[-1].startswith("tunesmith: the host: the run needs ")
    assert reasons(run) == ["no_room"]
    host(needed - MB, needed - MB)
    job.resume(run.folder)
    host(needed - MB, 16_000 * MB)
    monkeypatch.delenv(leases.JOB)
    job.resume(run.folder)


@pytest.mark.slow
def test_on_a_gpu_it_names_the_memory_of_the_gpu(recipe, queued, monkeypatch):
    def gpu(free: int, total: int = 24_000 * MB) -> None:
        install(monkeypatch, {"GPU-a": ("RTX 3090", (total, free), (8, 6))})

    monkeypatch.setattr(gpu_check, "check_gpus", lambda gpus, compute: [GpuCheck(one, compute) for one in gpus])
    monkeypatch.setattr("tunesmith.machine.find_gpus", find_gpus)
    run = job.new_run(recipe("qwen3", train={"max_steps": 1}))
    gpu(400 * MB)
    with pytest.raises(NotNow, match="^RTX 3090: a training step needs ") as refused:
        job.resume(run.folder)
    [(device, needed)] = refused.value.needed.items()
    assert device == "GPU-a" and 400 * MB < needed < 1_000 * MB
    started = []
    monkeypatch.setattr(job, "_start", lambda *given: started.append(given))
    gpu(needed)
    job.resume(run.folder)
    assert started and run.plan.predicted["needed_bytes"] == {"GPU-a": needed}
    gpu(needed - MB)
    with pytest.raises(NotNow, match=r"^GPU 0 \(RTX 3090\): the run needs .* MB of memory, and .* MB are free"):
        job.resume(run.folder)
