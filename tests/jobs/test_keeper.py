"""The queue with real processes, which play a training: they hold the run's lock and obey its control file."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.jobs.test_decision import CPU_ALONE
from tunesmith import leases
from tunesmith.finetune import control
from tunesmith.jobs import ask, keeper, process
from tunesmith.jobs.decision import Device, decide
from tunesmith.jobs.keeper import Keeper, pause_after_restart
from tunesmith.jobs.state import Status, status_of
from tunesmith.jobs.store import Job, Store
from tunesmith.run import Run, process_start

# What `tunesmith resume RUN` does as far as the queue can see: argv[2] says how it ends.
PLAYED = """
import os, sys, time
from tunesmith.finetune import control
from tunesmith.run import Run
run, ending = Run(sys.argv[1]), sys.argv[2]
if ending == "mistake":
    sys.exit("tunesmith: data.train: no such file")
if ending == "waits":
    run.log("stop", step=0, reason="no_room", message="GPU 0: too little", needed={"GPU-a": 10 * 10**9})
    print("tunesmith: GPU 0: too little", file=sys.stderr)
    sys.exit(75)
with run.held():
    control.forget(run)
    run.log("start", steps=3)
    while ending == "runs" and control.wish_of(run) != "stop":
        time.sleep(0.02)
    if ending == "crashes":
        os.abort()
    if ending == "finishes":
        run.result.mkdir()
sys.exit(130 if ending == "runs" else 0)
"""


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    def played(job: Job) -> list[str]:
        return [sys.executable, "-c", PLAYED, job.folder, *job.arguments]

    monkeypatch.setattr(process, "command_of", played)
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))  # where leases are
    store = Store(tmp_path / "queue")
    yield store
    for job in store.jobs():
        process.kill(store, job)


def added(store: Store, ending: str, **wishes) -> Job:
    folder = store.folder.parent / "runs" / f"{len(store.jobs())}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("model: {path: m}\ndata: {train: d.jsonl}\n")
    return store.add("train", folder, [ending], **wishes)


def status(store: Store, job: Job) -> Status:
    return status_of(store, store.job(job.id))


def state(store: Store, job: Job) -> str:
    return status(store, job).state


def until(keep: Keeper, store: Store, job: Job, wanted: str) -> None:
    deadline = time.monotonic() + 30
    while state(store, job) != wanted:
        assert time.monotonic() < deadline, status(store, job)
        keep.step()
        time.sleep(0.02)


def test_jobs_run_one_after_another_and_the_queue_goes_on_after_a_failure(store):
    first, second, third = added(store, "mistake"), added(store, "crashes"), added(store, "finishes")
    keep = Keeper(store, CPU_ALONE)
    until(keep, store, third, "finished")
    assert status(store, first).detail == "tunesmith: data.train: no such file"
    assert status(store, second).detail.startswith("its process was ended by signal 6")
    assert state(store, first) == state(store, second) == "failed"
    assert not keep.step() and [store.job(job.id).starts for job in (first, second, third)] == [1, 1, 1]


def test_a_job_that_finds_too_little_memory_waits_until_that_is_free(store, monkeypatch):
    free = [9 * 10**9]
    monkeypatch.setattr(keeper, "devices", lambda: [Device("GPU-a", "GPU 0", free[0])])
    large, small = added(store, "waits", gpus=1), added(store, "finishes")
    keep = Keeper(store, keeper.devices())
    until(keep, store, small, "finished")  # a later job runs meanwhile
    for _ in range(3):
        assert keep.step()  # it is due, and somebody keeps the queue for it
    assert status(store, large) == Status("waiting", "tunesmith: GPU 0: too little")
    assert not store.job(large.id).is_due and store.job(large.id).starts == 1
    why = decide(keeper.look(store, keeper.devices()))[large.id].why
    assert why == "it needs 10.0 GB of memory, and GPU 0 has 9.0 GB free"
    free[0] = 11 * 10**9
    keep.step()
    assert "it is tried again in" in decide(keeper.look(store, keeper.devices()))[large.id].why
    monkeypatch.setattr("tunesmith.jobs.decision.SECONDS_BETWEEN_TRIES", 0.0)
    until(keep, store, large, "waiting")
    keep.step()
    assert store.job(large.id).starts == 2
    until(keep, store, large, "waiting")
    free[0] = 0
    store.change(large.id, held=True)
    assert state(store, large) == "held"
    ask.cancel(store, large.id)
    assert state(store, large) == "cancelled" and not Path(large.folder).exists()  # it was never prepared


def test_a_device_that_was_taken_meanwhile_is_waited_for(store):
    job = added(store, "finishes")
    with leases.held([leases.CPU], "training", exclusive=True):
        child = process.start(store, job, [leases.CPU])
        assert not child.wait(30)
        store.change(job.id, is_due=False, starts=1)
        found = status(store, job)
        assert found.state == "waiting" and "held by" in found.detail


def test_a_job_outlives_its_keeper_and_another_keeper_adopts_it(store):
    first, second = added(store, "runs"), added(store, "finishes")
    until(Keeper(store, CPU_ALONE), store, first, "running")
    keep = Keeper(store, CPU_ALONE)  # as after kill -9 of the one before
    assert keep.step() and state(store, second) == "waiting" and store.job(first.id).starts == 1
    ask.cancel(store, first.id)
    until(keep, store, second, "finished")
    assert state(store, first) == "cancelled"


def test_a_job_that_is_killed_is_interrupted_and_goes_on_only_when_asked(store):
    job = added(store, "runs")
    keep = Keeper(store, CPU_ALONE)
    until(keep, store, job, "running")
    process.kill(store, job)
    until(keep, store, job, "interrupted")
    assert not keep.step() and not leases.holders()
    ask.retry(store, job.id)
    until(keep, store, job, "running")
    assert store.job(job.id).starts == 2


def test_a_run_that_a_terminal_trains_is_seen_and_can_be_stopped(store):
    job = added(store, "runs", held=True)
    run = Run(job.folder)
    with run.held(), leases.held([leases.CPU], "training", exclusive=True, folder=run.folder):
        assert state(store, job) == "running"
        waiting = added(store, "finishes")
        assert Keeper(store, CPU_ALONE).step() and state(store, waiting) == "waiting"
        ask.cancel(store, job.id)
        assert control.wish_of(run) == "stop" and state(store, job) == "stopping"
    assert state(store, job) == "cancelled"


def test_a_job_of_high_priority_goes_first_and_the_displaced_one_goes_on(store):
    low = added(store, "runs", priority="low")
    keep = Keeper(store, CPU_ALONE)
    until(keep, store, low, "running")
    high = added(store, "finishes", priority="high")
    until(keep, store, high, "finished")
    until(keep, store, low, "running")
    assert [store.job(job.id).starts for job in (low, high)] == [2, 1]


def test_only_one_keeper_keeps_the_queue(store):
    job = added(store, "finishes", held=True)
    with keeper.kept(store) as is_mine:
        assert is_mine
        keeper.keep(store)  # returns at once
        keeper.ensure_kept(store)
        assert not (store.folder / "keeper.log").exists()
    store.change(job.id, held=False)
    keeper.keep(store)
    assert state(store, job) == "finished"


def test_a_number_that_another_process_has_by_now_is_not_killed(store, monkeypatch):
    """A lock that is held and names a process that began at another time."""
    job = added(store, "runs")
    keep = Keeper(store, CPU_ALONE)
    until(keep, store, job, "running")
    facts = process.holder(store, job)
    assert facts == {"pid": facts["pid"], "started": process_start(facts["pid"])}
    with monkeypatch.context() as patch:
        patch.setattr(process, "process_start", lambda pid: facts["started"] + 1)
        process.kill(store, job)
        assert state(store, job) == "running"


def test_a_command_is_told_once_how_a_job_ended(store, tmp_path):
    script = (
        "import os; open('told', 'a').write(' '.join(os.environ[f'TUNESMITH_{x}'] for x in ('JOB', 'STATE')) + ';')"
    )
    job = added(store, "mistake", notify=f'{sys.executable} -c "{script}"', directory=str(tmp_path))
    keep = Keeper(store, CPU_ALONE)
    until(keep, store, job, "failed")
    for _ in range(3):
        keep.step()
    ask.retry(store, job.id)
    until(keep, store, job, "failed")
    keep.step()
    deadline = time.monotonic() + 20
    while (tmp_path / "told").read_text() != "1 failed;1 failed;" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "told").read_text() == "1 failed;1 failed;"


def test_a_job_that_cannot_be_started_and_a_command_that_is_not_there_do_not_stop_the_queue(store, tmp_path):
    lost = added(store, "finishes", directory=str(tmp_path / "gone"))
    job, other = added(store, "finishes", notify="no-such-command --x"), added(store, "finishes", notify="'")
    keep = Keeper(store, CPU_ALONE)
    for one, wanted in ((lost, "failed"), (job, "finished"), (other, "finished")):
        until(keep, store, one, wanted)
    keep.step()
    assert "it cannot be started: " in status(store, lost).detail
    assert "--notify no-such-command --x: " in store.file_of(job.id, "log").read_text()


def test_after_a_restart_of_the_machine_the_queue_waits(store, tmp_path, monkeypatch):
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(keeper, "BOOT_ID", boot)

    def started_again(name: str) -> str:
        boot.write_text(name)
        pause_after_restart(store)
        return store.setting("paused")

    job = added(store, "finishes")
    assert started_again("one") == started_again("one") == ""  # nothing was kept before
    assert "the machine was restarted" in started_again("two")
    ask.resume(store)
    assert started_again("two") == ""
    store.set(keeper.AFTER_RESTART, "yes")
    assert started_again("three") == ""
    store.set(keeper.AFTER_RESTART, "")
    ask.cancel(store, job.id)
    assert started_again("four") == ""  # nothing is due


@pytest.mark.parametrize("at_once", [False, True])
def test_a_waiting_job_that_is_cancelled_leaves_no_run_behind(store, at_once):
    job = added(store, "finishes")
    ask.cancel(store, job.id, at_once)
    assert not Path(job.folder).exists() and state(store, job) == "cancelled"
    with pytest.raises(Exception, match="is cancelled already"):
        ask.cancel(store, job.id)
    with pytest.raises(Exception, match="cannot be tried again"):
        ask.retry(store, job.id)


def test_a_run_folder_that_is_deleted_does_not_stop_the_queue(store):
    job, other = added(store, "finishes"), added(store, "finishes")
    shutil.rmtree(job.folder)
    until(Keeper(store, CPU_ALONE), store, other, "finished")
    assert status(store, job).detail == "its run was deleted"


def test_the_processes_of_a_job_are_a_session_of_their_own(store):
    job = added(store, "runs")
    until(Keeper(store, CPU_ALONE), store, job, "running")
    pid = process.holder(store, job)["pid"]
    assert os.getsid(pid) == pid != os.getsid(0)
    os.kill(pid, signal.SIGTERM)  # is for the command, which is not asked here
    time.sleep(0.2)
    assert state(store, job) == "running"
    held = leases.holders([leases.CPU])
    assert [(one.job, one.exclusive, one.folder) for one in held] == [(job.id, True, job.folder)]
    assert json.loads(store.file_of(job.id, "lock").read_text())["pid"] == pid
