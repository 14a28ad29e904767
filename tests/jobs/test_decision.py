"""Which jobs start, and why the others wait. Nothing runs here: the queue is made by hand."""

import time
from dataclasses import replace

import pytest

from tunesmith.errors import NotNow
from tunesmith.jobs.decision import SECONDS_BETWEEN_TRIES, Device, Queue, decide
from tunesmith.jobs.process import Outcome
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


def queue(*jobs: Job, states=None, holders=(), devices=THREE, paused="", **facts) -> Queue:
    """`states`: of jobs that do not wait."""
    statuses = {one.id: Status((states or {}).get(one.id, "held" if one.held else "waiting")) for one in jobs}
    return Queue(jobs, statuses, devices, holders, NOW, paused, **facts)


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


def refused(gb: float = 21.4, devices=("GPU-a",), ended: float = NOW - 3600, **needed: float) -> Outcome:
    """The outcome of a job that needs so much free memory on these devices, and more on others by key."""
    asked = dict.fromkeys(devices, gb) | needed
    said = "tunesmith: RTX 4090: a training step needs too much"
    return Outcome(NotNow.status, ended, said, {key: int(nbytes * 1e9) for key, nbytes in asked.items()})


def with_free(*gigabytes: float) -> list[Device]:
    return [replace(device, free_bytes=int(gb * 1e9)) for device, gb in zip(THREE, gigabytes)]


def test_a_job_waits_until_enough_memory_is_free_and_says_who_uses_it():
    chat = holder("GPU-a", exclusive=False, use="chat", nbytes=5_200_000_000, folder="models/m", since=NOW - 840)

    def one(*gigabytes: float, **facts):
        return decide(queue(job(1, gpus=1), devices=with_free(*gigabytes), refused={1: refused()}, **facts))[1]

    assert one(18.0, holders=[chat]).why == (
        "it needs 21.4 GB of memory, and GPU 0 (RTX 4090) has 18.0 GB free; it is used by models/m (chat, 5.2 GB, "
        "for 14 min 00 s)"
    )
    assert one(21.3).why and not one(21.3).devices
    assert [device.key for device in one(21.4).devices] == ["GPU-a"]
    assert [device.key for device in one(18.0, 12.0, 22.0).devices] == ["GPU-c"]  # another one has room
    assert one(24.0, paused="since 10:00").why == "the queue is paused: since 10:00"


def test_who_waits_for_memory_keeps_nobody_waiting():
    jobs = [job(1, gpus=1), job(2, gpus=1)]
    found = decide(queue(*jobs, devices=with_free(18.0), refused={1: refused()}))
    assert started(found) == {2: ["GPU-a"]} and "21.4 GB" in found[1].why
    held = decide(queue(*jobs, devices=with_free(24.0), refused={1: refused()}, holders=[holder("GPU-a", 7)]))
    assert not started(held) and "is held by job 7" in held[1].why  # memory is not the reason then
    assert started(decide(queue(*jobs, devices=with_free(24.0), refused={1: refused()}))) == {1: ["GPU-a"]}


def test_a_job_that_was_refused_is_not_tried_again_at_once():
    """Also not if enough is free, as after a prediction that differs, or a device that another process took."""
    for outcome in (refused(ended=NOW - 20), refused(devices=(), ended=NOW - 20)):
        found = decide(queue(job(1, gpus=1), job(2, gpus=1), devices=with_free(24.0), refused={1: outcome}))
        assert found[1].why == f"it was refused: {outcome.said}; it is tried again in 40.0 s"
        assert started(found) == {2: ["GPU-a"]}
    outcome = refused(devices=(), ended=NOW - SECONDS_BETWEEN_TRIES)
    assert started(decide(queue(job(1, gpus=1), devices=with_free(0.0), refused={1: outcome}))) == {1: ["GPU-a"]}


def test_each_gpu_needs_the_memory_of_its_own_part():
    both = refused(devices=(), **{"GPU-a": 20.0, "GPU-b": 10.0})

    def devices_of(outcome, *gigabytes: float) -> list[str]:
        found = decide(queue(job(1, gpus=2), devices=with_free(*gigabytes), refused={1: outcome}))[1]
        return [device.key for device in found.devices] or found.why

    assert devices_of(both, 20.0, 10.0) == ["GPU-a", "GPU-b"]
    assert "GPU 1 (RTX 3090) has 9.0 GB" in devices_of(both, 20.0, 9.0)
    assert devices_of(both, 19.0, 10.0, 20.0) == ["GPU-b", "GPU-c"]
    assert devices_of(refused(), 22.0, 1.0) == ["GPU-a", "GPU-b"]  # it was planned for one of those it gets
    assert "GPU 0" in devices_of(refused(), 1.0, 1.0)


def test_a_job_waits_for_host_memory():
    def one(devices, **facts):
        return decide(queue(job(1), devices=devices, **facts))[1]

    asked = {1: refused(cpu=7.0, devices=())}
    server = holder(CPU, exclusive=False, use="serving", folder="runs/one")
    assert one(CPU_ALONE, refused=asked, host_free_bytes=6 * 10**9, holders=[server]).why == (
        "it needs 7.0 GB of memory, and the host has 6.0 GB free; it is used by runs/one (serving, for 1 min 30 s)"
    )
    assert one(CPU_ALONE, refused=asked, host_free_bytes=7 * 10**9).devices == CPU_ALONE
    layers_at_home = {1: refused(20.0, cpu=64.0)}
    [gpu] = with_free(24.0)
    assert "the host has 60.0 GB" in one([gpu], refused=layers_at_home, host_free_bytes=60 * 10**9).why
    assert one([gpu], refused=layers_at_home, host_free_bytes=64 * 10**9).devices == [gpu]
