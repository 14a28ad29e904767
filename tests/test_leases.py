"""Leases between real processes: who holds a device, who is refused, and that nothing dead holds one."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from tests.leasing import holding
from tunesmith import leases
from tunesmith.errors import UserError
from tunesmith.leases import DeviceHeld, Holder, held, holders
from tunesmith.run import process_start

ONE, TWO = "GPU-11111111-2222", "GPU-33333333-4444"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(leases.JOB, raising=False)
    return tmp_path / "cache" / "leases"


def test_holders_are_listed_until_they_end(folder):
    before = time.time()
    with holding([ONE, TWO], "serving", False, 5 * 10**9) as process:
        one, two = holders()
        assert one == Holder(
            one.device,
            "serving",
            5 * 10**9,
            False,
            process.pid,
            process_start(process.pid),
            one.since,
            os.path.abspath("runs/alpha"),
            None,
        )
        assert {one.device, two.device} == {ONE, TWO} and before <= one.since <= time.time()
        assert holders([TWO]) == [h for h in (one, two) if h.device == TWO] and not holders(["GPU-else"])
        assert f"process {process.pid}" in str(one) and "alpha" in str(one) and "5.0 GB" in str(one)
    assert not holders() and not list(folder.glob("*/*"))


def test_a_second_exclusive_holder_is_refused_in_one_line():
    with holding([ONE]) as process:
        with pytest.raises(DeviceHeld) as refused, held([TWO, ONE], "training", exclusive=True):
            pass
        text = str(refused.value)
        assert isinstance(refused.value, UserError) and "\n" not in text
        for part in (ONE, "alpha", str(process.pid), "queue add", "CUDA_VISIBLE_DEVICES", "--share-gpus"):
            assert part in text
        assert [holder.device for holder in holders()] == [ONE]  # the other one of the two was not taken
        with held([ONE], "chat"), held([TWO], "training", exclusive=True):
            assert [(h.device, h.exclusive) for h in holders()] == [(ONE, True), (ONE, False), (TWO, True)]
    with held([ONE], "chat"), held([ONE], "training", exclusive=True) as lease:
        assert not lease.problem and len(holders()) == 2


def test_a_part_of_what_is_asked_for_is_taken():
    with holding([TWO]) as process, held([ONE, TWO], "training", exclusive=True, partial=True) as lease:
        assert lease.devices == [ONE] and [(h.device, h.pid) for h in lease.refused] == [(TWO, process.pid)]
        with held([ONE, TWO], "training", exclusive=True, partial=True) as nothing:
            assert not nothing.devices and [h.device for h in nothing.refused] == [TWO, ONE]
        with held([ONE, TWO], "chat") as lease:
            assert lease.devices == [ONE, TWO] and not lease.refused
            assert [(h.device, h.pid) for h in lease.beside] == [(TWO, process.pid), (ONE, os.getpid())]


def test_a_cpu_on_another_machine_is_another_one(monkeypatch):
    """The cache may be on a network share."""
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with held(["cpu", ONE], "training", exclusive=True):
        assert {holder.device for holder in holders()} == {"cpu", ONE}
        monkeypatch.setattr("socket.gethostname", lambda: "here")
        assert [holder.device for holder in holders()] == [ONE]


def test_a_cpu_is_not_shared_by_flags():
    with (
        held(["cpu"], "training", exclusive=True),
        pytest.raises(DeviceHeld, match="^cpu: held by a program .*queue add` do so$"),
        held(["cpu"], "training", exclusive=True),
    ):
        pass


def test_a_part_is_released():
    with held([ONE, TWO, ""], "training", exclusive=True) as lease:
        assert lease.devices == [ONE, TWO]
        lease.keep([TWO, "GPU-else"])
        assert lease.devices == [TWO] == [holder.device for holder in holders()]
        with held([ONE], "training", exclusive=True):
            assert {holder.device for holder in holders()} == {ONE, TWO}
    assert not holders()


def test_the_queue_s_job_is_noted(monkeypatch):
    monkeypatch.setenv(leases.JOB, "17")
    with held([ONE], "export"), held([ONE], "chat", job=3):
        assert [holder.job for holder in holders()] == [17, 3] and "job 17" in str(holders()[0])
    monkeypatch.setenv(leases.JOB, "no number")
    assert leases.queued_job() is None


def test_a_mig_device_with_a_slash_is_held():
    name = "MIG-GPU-5c89852c/1/0"
    with held([name], "training"):
        assert [holder.device for holder in holders([name])] == [name]


FORK = """import os
    reading, writing = os.pipe()
    if not os.fork():  # the child says its number, and that it runs
        print(os.getpid(), flush=True)
        os.write(writing, b"x")
        time.sleep(600)
    os.read(reading, 1)"""
EXECUTE = "print(subprocess.Popen(['sleep', '600'], stdin=subprocess.DEVNULL, close_fds=False).pid, flush=True)"


@pytest.mark.parametrize("child", ["pass", FORK, EXECUTE], ids=["alone", "forked child", "executed child"])
def test_a_killed_holder_frees_its_device(folder, child):
    """Also if a child of it lives on, which inherits open files."""
    with holding([ONE], first=child) as process:
        orphan = next(map(int, process.said), None)
        assert (orphan is None) == (child == "pass")
        try:
            assert [holder.pid for holder in holders()] == [process.pid]
            process.kill()
            process.wait()
            [stale] = folder.glob("*/*.json")
            with held([ONE], "training", exclusive=True):
                assert [holder.pid for holder in holders()] == [os.getpid()]
            assert not stale.exists()
            if orphan:
                os.kill(orphan, 0)  # it lives
        finally:
            if orphan:
                os.kill(orphan, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_frees_nothing():
    with held([ONE], "training", exclusive=True):
        with suppress(SystemExit), held([TWO], "training"):
            if not (child := os.fork()):
                raise SystemExit
        if not child:
            while holders([TWO]):  # until the other process has left the block
                time.sleep(0.01)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert [holder.pid for holder in holders([ONE])] == [os.getpid()]


def contend(barrier, won, rounds: int) -> None:
    """Tries to take a device at the same moment as others, so many times, and counts how often it got it."""
    for number in range(rounds):
        barrier.wait(60)
        with suppress(DeviceHeld), held([ONE, TWO][:: (-1) ** number], "training", exclusive=True) as lease:
            assert not lease.problem
            won[number] += 1
            barrier.wait(60)  # all have tried
            continue
        barrier.wait(60)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_one_of_those_who_race_gets_a_device(kind):
    rounds, context = 15, multiprocessing.get_context("spawn")
    barrier = (threading if kind == "threads" else context).Barrier(3)
    won = [[0] * rounds if kind == "threads" else context.Array("i", rounds) for _ in range(3)]
    make = threading.Thread if kind == "threads" else context.Process
    group = [make(target=contend, args=(barrier, mine, rounds), daemon=True) for mine in won]
    for one in group:
        one.start()
    for one in group:
        one.join(120)
    assert [sum(counts) for counts in zip(*map(list, won))] == [1] * rounds and not holders()


def test_files_that_are_no_holder_s_are_passed_over(folder):
    with held([ONE], "chat"):
        [file] = folder.glob("*/*.json")
        values = json.loads(file.read_text())
        for text in ("", "[]", "{}", json.dumps(values | {"added by a later version": 1})):
            other = file.with_name("999-1.json")
            other.write_text(text)
            with open(other) as locked:
                fcntl.flock(locked, fcntl.LOCK_EX)
                assert len(holders()) == (2 if "later" in text else 1)


def no_locks(monkeypatch, folder):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def no_folder(monkeypatch, folder):
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file where the cache's folder should be")


def no_space(monkeypatch, folder):
    def text(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(leases, "json_text", text)


def no_end(monkeypatch, folder):
    """Another process was stopped while it looked."""
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    file = open(folder / ".lock")  # noqa: SIM115  until the test ends
    fcntl.flock(file, fcntl.LOCK_EX)
    monkeypatch.setattr(leases, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(leases, "_kept_open", file, raising=False)


@pytest.mark.parametrize("trouble", [no_locks, no_folder, no_space, no_end])
def test_without_a_working_ledger_nothing_is_held_and_nothing_conflicts(monkeypatch, folder, trouble):
    trouble(monkeypatch, folder)
    with held([ONE], "training", exclusive=True) as lease, held([ONE], "training", exclusive=True):
        assert not lease.devices and str(folder) in lease.problem and "\n" not in lease.problem
        assert not holders()
    with held([], "training", exclusive=True) as lease:
        assert not lease.problem
    monkeypatch.undo()
    assert not list(folder.glob("*/*.json"))


def test_an_error_in_the_block_is_not_taken_for_the_ledger_s():
    with pytest.raises(FileNotFoundError, match="no data"), held([ONE], "training"):
        raise FileNotFoundError("no data")
    assert not holders()
