"""Finds a training process that hangs, from its progress marks and from what the system says about it.

It runs in the launcher, which does not train, so it also notices a process that is stopped or whose GPU does not
answer.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunesmith.machine import Gpu
from tunesmith.training.progress_marks import Mark

HANG_SECONDS = 60.0
LONGEST_SECONDS = 3600.0  # between two marks, however much the process computes, reads or writes
GPU_PHASES = ("forward", "loss", "backward", "exchanging gradients", "updating")
BUSY_SHARE = 0.05  # of one core; less is what idle threads take
BUSY_BYTES = 2**16

XIDS = {
    31: "a GPU memory page fault, by a faulty kernel or faulty memory",
    43: "the GPU stopped processing, after an error of the program",
    48: "a memory error that ECC could not correct",
    63: "a faulty memory row was remapped; reset the GPU",
    64: "a faulty memory row could not be remapped",
    74: "an NVLink error",
    79: "the GPU has fallen off the bus; check power, riser and slot",
    94: "a contained memory error; restart the program",
    95: "an uncontained memory error; reset the GPU",
    119: "the GPU's firmware (GSP) did not answer the driver",
    120: "an error of the GPU's firmware (GSP)",
}
XID_LINE = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)")


@dataclass(frozen=True)
class Hang:
    """A process without progress. `gpu_suspected`: it computed on its GPU and was not merely stopped."""

    process: int
    step: int
    text: str
    gpu_suspected: bool


@dataclass
class _Seen:
    """The state of one process at the last looks."""

    values: tuple[int, ...]
    marked: float
    """When its mark last changed."""
    progressed: float
    """When it last made progress: its mark changed, or it was busy in a phase that may take long."""
    measured: float | None = None
    """When its activity was measured."""
    activity: tuple[float, int] | None = None
    stopped: float | None = None
    """Since when it is stopped."""


class Outside(Protocol):
    """Asks the systems of the processes about them. Each is named by its number."""

    def state(self, process: int) -> str: ...
    def activity(self, process: int) -> tuple[float, int] | None: ...
    def xid(self, process: int) -> str | None: ...


class ThisMachine:
    """Processes of this machine."""

    def __init__(self, pids: Sequence[int]):
        self._pids, self._began = pids, time.monotonic()

    def state(self, process: int) -> str:
        return state(self._pids[process])

    def activity(self, process: int) -> tuple[float, int] | None:
        return activity(self._pids[process])

    def xid(self, process: int) -> str | None:
        return newest_xid(kernel_log(), self._began)


@dataclass
class Watchdog:
    """Looks at processes from time to time. `gpus`: that of each process; none on a CPU. `hosts`: the machine of each,
    if they are on several."""

    marks: Sequence[Mark]
    outside: Outside
    gpus: Sequence[Gpu] = ()
    hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._last_look = time.monotonic()
        self._seen: list[_Seen] = []

    def look(self, running: Sequence[int]) -> Hang | None:
        """Looks at the processes with these numbers; returns the one that hangs, if any."""
        now, limit = time.monotonic(), HANG_SECONDS
        if not self._seen or now - self._last_look > limit / 2:  # this process was stopped, or the machine slept
            self._seen = [_Seen(mark.values, now, now) for mark in self.marks]
        self._last_look = now
        for process in running:
            self._follow(process, now, limit)
        late = [p for p in running if now - self._seen[p].progressed >= limit]
        stopped = [p for p in running if now - (self._seen[p].stopped or now) >= limit]
        stuck = [p for p in late if not self.marks[p].waiting] or stopped
        if not stuck and len(late) == len(running):  # all wait for each other
            stuck = [p for p in late if self.outside.state(p) in ("T", "D")]
            stuck = stuck or [min(late, key=lambda p: self.marks[p].collectives)]
        if not stuck:
            return None
        return self._hang(min(stuck, key=lambda p: self._seen[p].progressed), limit)

    def _follow(self, process: int, now: float, limit: float) -> None:
        mark, seen = self.marks[process], self._seen[process]
        values = mark.values
        if values != seen.values:
            self._seen[process] = _Seen(values, now, now)
            return
        if now - seen.marked < limit / 8:  # the system is only asked about processes that take long
            return
        if self.outside.state(process) != "T":
            seen.stopped = None
        elif seen.stopped is None:
            seen.stopped = now
        if not self._may_take_long(mark):
            return
        if seen.measured is None:
            seen.measured, seen.activity = now, self.outside.activity(process)
        elif now - seen.measured >= limit / 4:
            found = self.outside.activity(process)
            if _was_busy(seen.activity, found, now - seen.measured) and now - seen.marked < LONGEST_SECONDS:
                seen.progressed = now
            seen.measured, seen.activity = now, found

    def _may_take_long(self, mark: Mark) -> bool:
        """Whether computing, reading and writing count as progress. A process that waits for its GPU computes too, so
        there only marks count, if the GPU makes any."""
        return not (self.gpus and mark.gpu_layer and mark.phase_name in GPU_PHASES)

    def _hang(self, process: int, limit: float) -> Hang:
        mark, on_gpu = self.marks[process], bool(self.gpus)
        is_stopped = self.outside.state(process) == "T"
        name = f"process {process} of {len(self.marks)}" + (f" on {self.hosts[process]}" if self.hosts else "")
        if on_gpu:
            name = f"GPU {self.gpus[process].index} ({self.gpus[process].name}, {name})"
        cause = self._cause(process)
        text = f"{name} made no progress for {limit:g} s at step {mark.step}, {mark.place}: {cause}"
        return Hang(process, mark.step, text, on_gpu and not is_stopped and mark.phase_name in GPU_PHASES)

    def _cause(self, process: int) -> str:
        now = self.outside.state(process)
        if now == "T":
            return "the process is stopped (SIGSTOP)"
        if self.gpus and (xid := self.outside.xid(process)):
            return xid
        if now == "D":
            return "the process is in uninterruptible sleep: a driver, a disk or a network share does not answer"
        return "no cause found"


def _was_busy(before: tuple[float, int] | None, after: tuple[float, int] | None, seconds: float) -> bool:
    """Whether a process computed, read or wrote in these seconds; a system that does not say so counts as yes."""
    if before is None or after is None:
        return True
    return after[0] - before[0] >= BUSY_SHARE * seconds or after[1] - before[1] >= BUSY_BYTES


def state(pid: int) -> str:
    """The state of a process as in proc(5): T is stopped, D in uninterruptible sleep (also if only one of its threads
    is), R running. "" if it is unknown."""
    found = {_stat(file)[0] for file in Path(f"/proc/{pid}/task").glob("*/stat")} - {""}
    return next((letter for letter in "TDR" if letter in found), next(iter(found), ""))


def activity(pid: int) -> tuple[float, int] | None:
    """Seconds of computing, and bytes read and written, of a process and its children so far. None if unknown."""
    try:
        fields = _stat(Path(f"/proc/{pid}/stat"))
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (ValueError, IndexError):
        return None
    transferred = 0
    with suppress(OSError):
        transferred = sum(int(line.split()[1]) for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    for child in _children(pid):
        inner = activity(child) or (0.0, 0)
        seconds, transferred = seconds + inner[0], transferred + inner[1]
    return seconds, transferred


def _stat(file: Path) -> list[str]:
    """The fields of a stat file from the state on; one empty field if the process has ended."""
    try:
        return file.read_text().rpartition(")")[2].split()
    except OSError:
        return [""]


def _children(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            yield from map(int, file.read_text().split())


def newest_xid(lines: Sequence[tuple[float, str]], since: float) -> str | None:
    """The last error of an NVIDIA GPU among the lines of a kernel's log, each with its time. `since`: not earlier."""
    for seconds, line in reversed(lines):
        if seconds >= since and (found := XID_LINE.search(line)):
            number = int(found[2])
            return f"Xid {number} of the GPU at PCI {found[1]}: {XIDS.get(number, 'see the NVIDIA Xid catalogue')}"
    return None


def kernel_log() -> list[tuple[float, str]]:
    """The kernel's messages, each with its time in seconds since the machine started; empty where it may not be read,
    which is usual."""
    with suppress(OSError):
        return list(_kernel_messages())
    with suppress(OSError, subprocess.SubprocessError):
        text = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=5, check=True).stdout
        return [(float(found[1]), found[2]) for found in re.finditer(r"^\[ *([\d.]+)\] (.*)$", text, re.MULTILINE)]
    return []


def _kernel_messages() -> Iterator[tuple[float, str]]:
    file = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            with suppress(BrokenPipeError):  # messages that were overwritten meanwhile
                head, _, text = os.read(file, 8192).decode(errors="replace").partition(";")
                yield int(head.split(",")[2]) / 1e6, text
    except BlockingIOError:  # all are read
        return
    finally:
        os.close(file)
