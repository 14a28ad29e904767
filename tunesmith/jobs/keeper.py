"""Starts the jobs of the queue, one after another. A process of its own keeps the queue while anything is due.

It may be killed at any moment: jobs continue without it, and the next one reads their states from their folders.
"""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tunesmith import leases
from tunesmith.errors import UserError
from tunesmith.finetune import control
from tunesmith.jobs import process
from tunesmith.jobs.decision import Decision, Device, Queue, decide
from tunesmith.jobs.state import AT_WORK, ENDED, WAITING, Status, status_of
from tunesmith.jobs.store import Job, Store
from tunesmith.machine import Gpu, find_gpus, memory
from tunesmith.run import Run, try_lock

SECONDS_BETWEEN_LOOKS = 1.0
RECENT_SECONDS = 7 * 24 * 3600.0  # for how long jobs that have ended are listed
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
AFTER_RESTART = "start_after_restart"  # the setting; "yes": jobs that wait start by themselves after a restart


def devices(gpus: Sequence[Gpu] | None = None) -> list[Device]:
    """The GPUs of this machine, or its CPU. `gpus`: those that are known already."""
    gpus = find_gpus()[1] if gpus is None else gpus
    return [Device(gpu.uuid, gpu.label, gpu.free_bytes) for gpu in gpus] or [Device(leases.CPU, "the CPU")]


def look(store: Store, here: list[Device]) -> Queue:
    """The queue at this moment. `here`: the devices."""
    jobs = store.jobs()
    statuses = {job.id: status_of(store, job) for job in jobs}
    outcomes = {job.id: process.outcome(store, job) for job in jobs if statuses[job.id].state in WAITING}
    refused = {number: outcome for number, outcome in outcomes.items() if outcome and outcome.is_later}
    paused = store.setting("paused")
    return Queue(jobs, statuses, here, leases.holders(), time.time(), paused, refused, memory()[1])


def recent(queue: Queue) -> list[Job]:
    """The jobs that have not ended, or not long ago."""
    return [
        job
        for job in queue.jobs
        if queue.statuses[job.id].state not in ENDED or queue.now - (job.started or job.added) < RECENT_SECONDS
    ]


class Keeper:
    """Starts jobs, stops those that must make room, and notifies of those that have ended."""

    def __init__(self, store: Store, here: list[Device]):
        self._store, self._here = store, here
        self._children: list[subprocess.Popen[bytes]] = []

    def step(self) -> bool:
        """Looks once. Returns whether anything is due or at work."""
        self._children = [child for child in self._children if child.poll() is None]
        queue = look(self._store, self._here)
        if queue.refused:  # for want of memory, which is measured again
            self._here = devices()
            queue = replace(queue, devices=self._here)
        decisions = decide(queue)
        for job in queue.jobs:
            if decision := decisions.get(job.id):
                self._follow(queue, job, decision)
            self._notify(job, queue.statuses[job.id])
        return _is_due(queue) or any(status.state in AT_WORK for status in queue.statuses.values())

    def _follow(self, queue: Queue, job: Job, decision: Decision) -> None:
        if decision.devices:
            # Before it starts: if this process is killed between, the job is not started twice.
            self._store.change(job.id, is_due=False, started=time.time(), starts=job.starts + 1)
            try:
                child = process.start(self._store, job, [device.key for device in decision.devices])
            except OSError as problem:  # such as a folder that is gone
                process.note(self._store, job, process.Outcome(1, time.time(), f"it cannot be started: {problem}"))
                return
            self._children.append(child)
            process.wait_for_start(self._store, job, child)
        for number in decision.displaces:
            if queue.statuses[number].state in ("running", "paused"):
                self._store.change(number, is_due=True)  # it continues when there is room again
                with suppress(UserError):  # it has just ended
                    control.request(Run(self._store.job(number).folder), "stop")

    def _notify(self, job: Job, status: Status) -> None:
        """Runs the job's notify command once for each time that it ends."""
        if status.state in ENDED and job.starts and job.notified != status.state:
            self._store.change(job.id, notified=status.state)
            if job.notify:
                self._run_notify(job, status)
        elif status.state not in ENDED and job.notified:
            self._store.change(job.id, notified="")

    def _run_notify(self, job: Job, status: Status) -> None:
        facts = {"JOB": str(job.id), "STATE": status.state, "RUN": job.folder, "DETAIL": status.detail}
        try:
            subprocess.Popen(
                shlex.split(job.notify),
                env=os.environ | {f"TUNESMITH_{name}": value for name, value in facts.items()},
                cwd=job.directory,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as problem:
            with self._store.file_of(job.id, "log").open("a") as log:
                log.write(f"--notify {job.notify}: {problem}\n")


def pause_after_restart(store: Store) -> None:
    """Pauses the queue if the machine was started since the queue was last kept and jobs are still due, because one of
    them may be what brought it down."""
    boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
    before = store.setting("boot")
    if before == boot:
        return
    store.set("boot", boot)
    waits = any(status_of(store, job).state not in ENDED for job in store.jobs())
    if before and waits and store.setting(AFTER_RESTART) != "yes":
        store.set("paused", "the machine was restarted; `tunesmith queue resume` continues it")


@contextmanager
def kept(store: Store) -> Iterator[bool]:
    """Whether this process keeps the queue meanwhile; False if another one does."""
    with open(store.folder / "keeper.lock", "ab") as file:
        yield try_lock(file, fcntl.LOCK_EX) is not False


def keep(store: Store, ended: Callable[[], bool] = lambda: False) -> None:
    """Keeps the queue until nothing is due, or until `ended`. Returns at once if another process keeps it."""
    here, is_due = devices(), True
    while is_due and not ended():
        with kept(store) as is_mine:
            if not is_mine:
                return
            pause_after_restart(store)
            keeper = Keeper(store, here)
            while keeper.step() and not ended():
                time.sleep(SECONDS_BETWEEN_LOOKS)
        # A job may have been added just now, by a process that saw the queue kept.
        is_due = _is_due(look(store, here))


def _is_due(queue: Queue) -> bool:
    """Whether a job may start sooner or later without anybody doing anything."""
    return not queue.paused and any(status.state == "waiting" for status in queue.statuses.values())


def ensure_kept(store: Store) -> None:
    """Starts a process that keeps the queue, unless there is one."""
    with kept(store) as is_mine:
        if not is_mine:
            return
    with open(store.folder / "keeper.log", "ab") as log:
        subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=store.folder,
            start_new_session=True,
        )


def main() -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    keep(Store(), lambda: bool(stopped))


if __name__ == "__main__":
    main()
