"""Leases: which processes of this user hold which devices, so that no two runs train on one GPU by mistake.

A device is the UUID of a GPU, or `cpu` on a machine without one. Each holder has a file in the folder of the device,
`leases/<device>/<pid>-<number>.json` in the cache folder, and keeps a lock on it. The kernel frees the lock when the
process ends, also when it is killed: a file whose lock is free is stale, and readers remove it.

A lease belongs to the process that took it, which for a run is the one that the user started. Its training processes
end with it (finetune/launch.py), and so does vLLM (inference/vllm_process.py). Programs that it starts do not inherit
the lock, and a forked child closes its copy, so no orphan keeps a device that nothing computes on.

Leases are advice: where the folder cannot be written, or its file system has no locks, nothing is held and nothing
conflicts.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Literal
from urllib.parse import quote

from tunesmith.errors import UserError
from tunesmith.files import cache_folder, json_text
from tunesmith.run import process_start, try_lock
from tunesmith.units import size

CPU = "cpu"
JOB = "TUNESMITH_JOB"  # the environment variable in which the queue names the job that it starts
LOCK_SECONDS = 5.0  # for another process to look and take, which takes milliseconds
SECONDS_BETWEEN_TRIES = 0.01

Use = Literal["training", "serving", "chat", "evaluation", "export"]


class DeviceHeld(UserError):
    """Another process holds a device exclusively."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a device."""

    device: str
    use: Use
    nbytes: int | None
    """How much of the device's memory it asked for. None: all of it, or an unknown amount."""
    exclusive: bool
    pid: int
    started: int | None
    """When the process began, as `run.process_start`."""
    since: float
    """When it took the device, in Unix seconds."""
    folder: str
    """The run or the model, if it has one."""
    job: int | None
    """The number of its job in the queue."""

    def conflicts_with(self, other: "Holder") -> bool:
        """Whether both want the device for themselves."""
        return self.exclusive and other.exclusive and not self.is_of_job(other.job)

    def is_of_job(self, job: int | None) -> bool:
        """Whether it belongs to this job of the queue. The processes of one job are one."""
        return self.job is not None and self.job == job

    def __str__(self) -> str:
        facts = [self.use, f"process {self.pid}"]
        facts += [f"job {self.job}"] if self.job is not None else []
        facts += [size(self.nbytes)] if self.nbytes is not None else []
        return f"{Path(self.folder).name or 'a program'} ({', '.join(facts)})"


class Lease:
    """Devices that this process holds."""

    def __init__(self) -> None:
        self.problem: str | None = None
        """Why nothing is held, although it was asked for."""
        self.refused: list[Holder] = []
        """Holders of the devices that were not taken."""
        self.beside: list[Holder] = []
        """Other holders of the devices of this lease, when it took them."""
        self._files: dict[str, IO[bytes]] = {}

    @property
    def devices(self) -> list[str]:
        return list(self._files)

    def keep(self, devices: Iterable[str]) -> None:
        """Releases all devices but these."""
        kept = set(devices)
        for device in [device for device in self._files if device not in kept]:
            file = self._files.pop(device)
            if not file.closed:  # it is, in a forked child
                _remove(file)
                _close(file)

    def take(self, holder: Holder) -> None:
        """Adds a device, which must be free. Raises OSError."""
        folder = _folder(holder.device)
        folder.mkdir(exist_ok=True)
        file = _opened(folder / f"{holder.pid}-{time.time_ns()}.json", "xb")
        self._files[holder.device] = file
        if not try_lock(file, fcntl.LOCK_EX):
            raise OSError(f"{file.name} cannot be locked")
        file.write(json_text(asdict(holder)).encode())


def leases_folder() -> Path:
    return cache_folder() / "leases"


def queued_job() -> int | None:
    """Returns the number of the job that this process is, if the queue started it."""
    number = os.environ.get(JOB, "")
    return int(number) if number.isdigit() else None


def holders(devices: Iterable[str] | None = None) -> list[Holder]:
    """Returns those that hold one of these devices, or any, in the order in which they took it. This process may be
    among them."""
    if not leases_folder().exists():
        return []
    try:
        with _looking():
            return _live(devices)
    except OSError:
        return []


@contextmanager
def held(
    devices: Iterable[str],
    use: Use,
    *,
    nbytes: int | None = None,
    exclusive: bool = False,
    folder: str | Path = "",
    job: int | None = None,
    partial: bool = False,
) -> Iterator[Lease]:
    """Holds all these devices, or none of them, until the block ends or `keep` of the lease releases them. A device
    without a name is not held.

    `nbytes`: how much of the memory of each device is asked for. `exclusive`: no other process may hold it exclusively
    meanwhile; others never conflict. `folder`: of the run or the model. `job`: by default the one that the queue
    started this process for. `partial`: holds only those devices that it can, and none is no error. Raises DeviceHeld.
    """
    lease, names = Lease(), list(dict.fromkeys(filter(None, devices)))
    place = str(Path(folder).absolute()) if folder else ""
    pid, now, job = os.getpid(), time.time(), queued_job() if job is None else job
    asked = [Holder(name, use, nbytes, exclusive, pid, process_start(pid), now, place, job) for name in names]
    try:
        if asked:
            _take(lease, asked, partial)
        yield lease
    finally:
        lease.keep([])


@contextmanager
def using(device_bytes: Mapping[str, int | None], use: Use, folder: str | Path = "") -> Iterator[None]:
    """Holds devices beside other processes. `device_bytes`: how much of the memory of each is asked for."""
    with ExitStack() as stack:
        for device, nbytes in device_bytes.items():
            stack.enter_context(held([device], use, nbytes=nbytes, folder=folder))
        yield


def _take(lease: Lease, asked: Sequence[Holder], partial: bool) -> None:
    try:
        with _looking():
            live = _live(one.device for one in asked)
            lease.refused = [one for one in live if asked[0].conflicts_with(one)]
            if lease.refused and not partial:
                raise DeviceHeld(refusal(lease.refused))
            refused = {one.device for one in lease.refused}
            lease.beside = [one for one in live if one.device not in refused and not one.is_of_job(asked[0].job)]
            for one in asked:
                if one.device not in refused:
                    lease.take(one)
    except OSError as error:
        lease.keep([])
        lease.problem = f"{leases_folder()}: {error.strerror or error}; so other runs cannot see what this one uses"


def refusal(others: Sequence[Holder], names: dict[str, str] | None = None) -> str:
    """Says in one line who holds devices, and what to do. `names`: of devices, for people."""
    held_by: dict[str, list[str]] = {}
    for one in others:
        held_by.setdefault(str(one), []).append((names or {}).get(one.device, one.device))
    texts = [f"{', '.join(devices)}: held by {holder}" for holder, devices in held_by.items()]
    remedy = "wait for its end, or let `tunesmith queue add` do so"
    if all(one.device != CPU for one in others):
        remedy += "; or choose another GPU with CUDA_VISIBLE_DEVICES, or train beside it with --share-gpus"
    return "; ".join([*texts, remedy])


def _folder(device: str) -> Path:
    """Returns the folder of a device. The cache may be on a network share, where each machine has a CPU of its own."""
    name = f"{CPU}-{socket.gethostname()}" if device == CPU else device
    return leases_folder() / quote(name, safe="")  # names of MIG devices may have a slash


@contextmanager
def _looking() -> Iterator[None]:
    """While this holds, no other process looks at leases or takes one. Raises OSError."""
    leases_folder().mkdir(parents=True, exist_ok=True)
    file, until = _opened(leases_folder() / ".lock", "ab"), time.monotonic() + LOCK_SECONDS
    try:
        while (locked := try_lock(file, fcntl.LOCK_EX)) is False and time.monotonic() < until:
            time.sleep(SECONDS_BETWEEN_TRIES)
        if not locked:
            raise OSError("this file system has no locks" if locked is None else "another process keeps it locked")
        yield
    finally:
        _close(file)


def _live(devices: Iterable[str] | None) -> list[Holder]:
    """Returns the holders in the order in which they took devices, and removes the files of those that have ended."""
    wanted = None if devices is None else set(devices)
    found = []
    for path in sorted(leases_folder().glob("*/*.json"), key=lambda path: path.stem.partition("-")[2]):
        with suppress(FileNotFoundError), open(path, "rb") as file:  # its holder may end now
            if try_lock(file, fcntl.LOCK_SH) is not False:
                _remove(file)
            elif (holder := _read(file)) and (wanted is None or holder.device in wanted):
                found += [holder] if _folder(holder.device) == path.parent else []
    return found


def _read(file: IO[bytes]) -> Holder | None:
    """Returns the content of a file; None if it is not a holder's. Another version of Tunesmith may write more."""
    try:
        values = json.load(file)
        return Holder(**{field.name: values[field.name] for field in fields(Holder)})
    except (ValueError, KeyError, TypeError):
        return None


def _remove(file: IO[bytes]) -> None:
    with suppress(OSError):
        os.unlink(file.name)


# A forked child has copies of the open files, and with them the locks. `_guard` lets no child be forked between
# opening a file and noting it.
_open: set[IO[bytes]] = set()
_guard = threading.RLock()


def _opened(path: Path, mode: Literal["ab", "xb"]) -> IO[bytes]:
    with _guard:
        file = open(path, mode, buffering=0)  # noqa: SIM115  open as long as it is locked
        _open.add(file)
        return file


def _close(file: IO[bytes]) -> None:
    with _guard:
        _open.discard(file)
        file.close()


def _close_copies() -> None:
    """In a forked child. To close its copy of a file frees no lock of the parent."""
    for file in _open:
        file.close()
    _open.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_close_copies)
