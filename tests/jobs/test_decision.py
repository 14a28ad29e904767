"""Which jobs start, and why the others wait. Nothing runs here: the queue is made by hand."""

import time
from dataclasses import replace

import pytest

from tunesmith.jobs.decision import Device, Queue, decide
from tunesmith.jobs.state import Status
from tunesmith.jobs.store import Job
from tunesmith.leases import CPU, Holder

NOW = time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, -1))
CPU_ALONE = [Device(CPU, "the CPU")]
THREE = [Device("GPU-a", "GPU 0 (RTX 4090)"), Device("GPU-b", "GPU 1 (RTX 3090)"), Device("GPU-c", "GPU 2 (RTX 3060)")]


def job(number: int, **facts) -> Job:
    values = {
        "id": number,
        "kind": "train",
        "folder": f"/runs/{number}",
        "directory": "/",
        "arguments": [],
        "added": NOW,
        "position": float(number),
        "priority": "normal",
        "gpus": None,
        "held": False,
        "cancelled": False,
        "after": None,
        "after_success": False,
        "not_before": None,
        "batch": "",
        "notify": "",
        "asked_by": "terminal",
        "is_due": True,
        "started": None,
        "starts": 0,
        "notified": "",
    }
    return Job(**values | facts)


def holder(device: str, number: int | None = None, exclusive: bool = True, **facts) -> Holder:
    values = dict(use="training", nbytes=None, pid=77, started=1, since=NOW - 90, folder="", job=number)
    return Holder(device=device, exclusive=exclusive, **values | facts)


def queue(*jobs: Job, states=None, holders=(), devices=THREE, paused="") -> Queue:
    """`states`: of jobs that do not wait."""
    statuses = {one.id: Status((states or {}).get(one.id, "held" if one.held else "waiting")) for one in jobs}
    return Queue(jobs, statuses, devices, holders, NOW, paused)


def started(found: dict) -> dict[int, list[str]]:
    return {number: [device.key for device in one.devices] for number, one in found.items() if one.devices}


def test_jobs_take_turns_on_a_cpu():
    found = decide(queue(job(1), job(2), devices=CPU_ALONE))
    assert started(found) == {1: [CPU]}
    assert found[2].why == "it needs the CPU: the CPU is for job 1, which is before it"
    found = decide(queue(job(1), job(2), states={1: "running"}, holders=[holder(CPU, 1)], devices=CPU_ALONE))
    assert found[2].why == "it needs the CPU: the CPU is held by job 1 (training, for 1 min 30 s)" and 1 not in found


def test_jobs_share_the_gpus_of_a_machine():
    assert started(decide(queue(job(1, gpus=1), job(2, gpus=2), job(3, gpus=1)))) == {
        1: ["GPU-a"],
        2: ["GPU-b", "GPU-c"],
    }
    assert started(decide(queue(job(1), job(2, gpus=1)))) == {1: ["GPU-a", "GPU-b", "GPU-c"]}
    assert started(decide(queue(job(1, gpus=9)))) == {1: ["GPU-a", "GPU-b", "GPU-c"]}  # a GPU was taken out since


def test_a_later_job_does_not_take_what_an_earlier_one_waits_for():
    held = [holder("GPU-a", folder="runs/one", pid=9)]
    found = decide(queue(job(1, gpus=3), job(2, gpus=1), holders=held))
    assert not started(found)
    assert found[1].why == (
        "it needs 3 GPUs, of which 2 are free: GPU 0 (RTX 4090) is held by runs/one (training, for 1 min 30 s)"
    )
    assert "GPU 1 (RTX 3090) is for job 1" in found[2].why
    assert started(decide(queue(job(1, gpus=2), job(2, gpus=1), holders=[held[0]]))) == {1: ["GPU-b", "GPU-c"]}


def test_a_job_waits_for_a_training_of_a_terminal_on_the_cpu():
    """Which does not hold the CPU for itself, as several small ones may."""
    found = decide(queue(job(1), holders=[holder(CPU, exclusive=False, folder="runs/one")], devices=CPU_ALONE))
    assert found[1].why == "it needs the CPU: the CPU is held by runs/one (training, for 1 min 30 s)"
    served = holder(CPU, exclusive=False, use="serving")
    assert started(decide(queue(job(1), holders=[served], devices=CPU_ALONE))) == {1: [CPU]}


def test_who_shares_a_gpu_does_not_keep_training_from_it():
    assert started(decide(queue(job(1, gpus=1), holders=[holder("GPU-a", exclusive=False, use="chat")]))) == {
        1: ["GPU-a"]
    }


@pytest.mark.parametrize(
    ("facts", "states", "why"),
    [
        ({"held": True}, {}, "it is held; `tunesmith queue release 2` releases it"),
        ({"not_before": NOW + 3600}, {}, ", in 1 h 00 min"),
        ({"after": 1}, {1: "running"}, "it starts after job 1, which is running"),
        ({"after": 1}, {1: "waiting"}, "it starts after job 1, which is waiting"),
        ({"after": 1, "after_success": True}, {1: "failed"}, "after job 1 has finished, and that is failed"),
    ],
)
def test_a_job_waits_for_a_time_a_job_or_a_person(facts, states, why):
    found = decide(queue(job(1, gpus=1), job(2, gpus=1, **facts), job(3, gpus=1), states=states))
    assert why in found[2].why and not found[2].devices
    assert found[3].devices  # it keeps nobody waiting


@pytest.mark.parametrize("state", ["failed", "interrupted", "finished", "cancelled"])
def test_a_job_after_another_starts_whatever_became_of_that(state):
    assert 2 in started(decide(queue(job(1), job(2, after=1), states={1: state})))
    found = decide(queue(job(1), job(2, after=1, after_success=True), states={1: state}))
    assert (2 in started(found)) is (state == "finished")


def test_a_time_that_has_passed_and_a_job_that_was_removed_keep_nobody():
    assert started(decide(queue(job(2, not_before=NOW - 1, after=1)))) == {2: [device.key for device in THREE]}


def test_no_job_starts_while_the_queue_is_paused():
    found = decide(queue(job(1), paused="since 10:00"))
    assert found[1].why == "the queue is paused: since 10:00" and not found[1].devices


def test_high_priority_displaces_as_few_jobs_as_it_needs():
    running = [job(1, gpus=1), job(2, gpus=1, priority="low"), job(3, gpus=1, priority="high")]
    held = [holder("GPU-a", 1), holder("GPU-b", 2), holder("GPU-c", 3)]
    urgent = job(4, gpus=1, priority="high")

    def displaced(new: Job) -> list[int]:
        jobs = sorted([*running, new], key=lambda one: -["low", "normal", "high"].index(one.priority))
        return decide(queue(*jobs, states=dict.fromkeys((1, 2, 3), "running"), holders=held))[4].displaces

    assert displaced(urgent) == [2]
    running[1] = replace(running[1], kind="export")  # which cannot continue where it was stopped
    assert displaced(urgent) == [1]
    running[1] = replace(running[1], kind="train")
    assert displaced(replace(urgent, gpus=2)) == [2, 1]
    assert displaced(replace(urgent, gpus=3)) == []  # job 3 does not make room, so that nobody need stop
    assert displaced(replace(urgent, priority="normal")) == []
