"""The process of a job. It has no parent that must live, so it continues when the queue or the studio ends.

It is a session of its own, begun by a small parent process that holds the job's lock as long as the job computes and
then writes how it ended. So any process can find the job's state at any time, also after a signal that nothing
survives.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tunesmith import leases
from tunesmith.errors import NotNow
from tunesmith.files import json_text, read_json, write_json
from tunesmith.jobs.store import Job, Kind, Store
from tunesmith.run import Run, process_start, try_lock

SECONDS_TO_START = 10.0
USES: dict[Kind, leases.Use] = {"train": "training", "export": "export"}  # of devices


@dataclass(frozen=True)
class Outcome:
    """How a job's command ended."""

    status: int
    """Its exit status; negative: the signal that ended it."""
    ended: float
    """Unix seconds."""
    said: str
    """The last line that it wrote."""
    needed: dict[str, int] = field(default_factory=dict)
    """The bytes that must be free by device, of a training that waits for memory."""

    @property
    def is_later(self) -> bool:
        """Whether it is to be tried again by itself, once there is room."""
        return self.status == NotNow.status


def start(store: Store, job: Job, devices: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a job on these devices."""
    for ending in ("log", "outcome"):
        store.file_of(job.id, ending).unlink(missing_ok=True)
    log = store.file_of(job.id, "log")
    log.parent.mkdir(exist_ok=True)
    environment = os.environ | {leases.JOB: str(job.id), "PYTHONUNBUFFERED": "1"}
    if devices and leases.CPU not in devices:
        environment |= {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", __name__),
                *(str(log), job.folder, ",".join(devices), USES[job.kind], *command_of(job)),
            ],
            cwd=job.directory,
            env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def wait_for_start(store: Store, job: Job, process: subprocess.Popen[bytes]) -> None:
    """Waits until a job that was started has its devices and its lock, or has ended."""
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until and process.poll() is None and not is_alive(store, job):
        time.sleep(0.02)


def command_of(job: Job) -> list[str]:
    """The command that does a job."""
    name = {"train": "resume", "export": "export"}[job.kind]
    return [sys.executable, "-m", "tunesmith", name, job.folder, *job.arguments]


def is_alive(store: Store, job: Job) -> bool:
    """Whether the job's process has not ended."""
    return holder(store, job) is not None


def holder(store: Store, job: Job) -> dict[str, Any] | None:
    """{pid, started} of the job's process; None if it has ended."""
    try:
        with store.file_of(job.id, "lock").open("rb") as file:
            return json.loads(file.read() or b"{}") if try_lock(file, fcntl.LOCK_SH) is False else None
    except FileNotFoundError:
        return None


def outcome(store: Store, job: Job) -> Outcome | None:
    """How the job's last process ended; None if it has not, or was killed together with its parent."""
    found = read_json(store.file_of(job.id, "outcome"))
    return Outcome(**found) if found else None


def note(store: Store, job: Job, outcome: Outcome) -> None:
    """Writes how a job has ended."""
    _write(store.file_of(job.id, "log"), outcome)


def _write(log: Path, outcome: Outcome) -> None:
    write_json(log.with_suffix(".outcome"), vars(outcome))


def kill(store: Store, job: Job) -> None:
    """Ends the job's processes at once."""
    facts = holder(store, job)
    if facts and facts["started"] == process_start(facts["pid"]):  # else the number is another process's by now
        os.killpg(facts["pid"], signal.SIGKILL)


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def main() -> None:
    """Runs a job's command while it holds its devices and its lock, and writes the outcome beside its log."""
    log, folder, devices, use, *command = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are for the command
        signal.signal(number, lambda *_: None)
    try:
        with (
            leases.held(devices.split(","), cast(leases.Use, use), exclusive=True, folder=folder),
            open(Path(log).with_suffix(".lock"), "a+b") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX)  # waits for a reader, never for long
            file.truncate(0)
            file.write(json_text({"pid": os.getpid(), "started": process_start(os.getpid())}).encode())
            file.flush()
            status = subprocess.run(command).returncode
            needed = _needed(Run(folder)) if status == NotNow.status else {}
            _write(Path(log), Outcome(status, time.time(), last_line(Path(log)), needed))
    except leases.DeviceHeld as problem:  # another process took it since the queue looked
        _write(Path(log), Outcome(NotNow.status, time.time(), str(problem)))


def _needed(run: Run) -> dict[str, int]:
    """The bytes that must be free for a training that has just been refused, by device."""
    stops = run.events("stop")
    return stops[-1].get("needed", {}) if stops else {}


if __name__ == "__main__":
    main()
