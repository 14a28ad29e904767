"""Checks each GPU before a run, and leaves out those that hang, change bytes or cannot be used.

Each GPU is measured in a process of its own (`gpu_measure`), because one that asks a broken GPU may never return.
Nothing is copied from GPU to GPU. This module imports no torch.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from tunesmith.errors import UserError, quoted
from tunesmith.finetune.devices import Devices
from tunesmith.machine import Gpu, best_precision
from tunesmith.run import Run

MEASURE = "tunesmith.finetune.gpu_measure"  # the module that each process runs
START_SECONDS = 60.0  # to import torch and start CUDA
GRACE_SECONDS = 10.0  # to answer, beyond the seconds that a task is given
KILL_SECONDS = 2.0  # for a killed process to end; one whose GPU does not answer may never do

# Seconds of the tasks. The link is measured on one GPU after the other, and the rest on all at once: 2.7 s for one
# GPU and 3.6 s for several, which leaves room for what a task needs at least.
BYTES_SECONDS, PRODUCTS_SECONDS, TOGETHER_SECONDS = 0.7, 0.6, 0.5
MORE_SECONDS = 1.0  # for each of the measurements that only `doctor --measure` asks for
SPEEDS = 4  # of them, in the task "speeds"
MORE = ("together_to_host_bytes_per_second", "speeds")
LINK_SECONDS, MOST_LINK_SECONDS = 0.3, 1.8  # of one direction; of all GPUs and directions


@dataclass(frozen=True)
class GpuCheck:
    """The state of one GPU. Rates are None where the check did not get that far."""

    gpu: Gpu
    """Its link and temperature are those during the copies, if the check got that far."""
    compute: str
    """The precision of the products."""
    to_gpu_bytes_per_second: float | None = None
    to_host_bytes_per_second: float | None = None
    both_bytes_per_second: float | None = None
    """In both directions at once, added up."""
    together_bytes_per_second: float | None = None
    """To this GPU, while all others are copied to as well."""
    flops_per_second: float | None = None
    pinned: bool | None = None
    """Whether the system let the host memory of the copies be pinned."""
    together_to_host_bytes_per_second: float | None = None
    """From this GPU, while all others are copied from as well. This and `speeds` only if more is asked for."""
    speeds: dict[str, float] | None = None
    """The bandwidth of its memory, and the rate of a decoder layer by precision."""
    problem: str | None = None
    """Why the GPU cannot be used."""
    note: str | None = None
    """Why it was not checked, although it may be in order."""

    @property
    def name(self) -> str:
        return self.gpu.label

    def as_dict(self) -> dict[str, Any]:
        """The content of the event: the rates of a check, and which GPU they are of."""
        values = {key: value for key, value in asdict(self).items() if key not in ("gpu", *MORE)}
        return {"index": self.gpu.index, "name": self.gpu.name, "uuid": self.gpu.uuid} | values

    @property
    def rates(self) -> dict[str, Any]:
        """The GPU's entry of rates.json, as far as it was measured."""
        speeds = dict(self.speeds or {})
        entry = {
            "memory_bytes_per_second": speeds.pop("memory_bytes_per_second", None),
            "to_device_bytes_per_second": self.together_bytes_per_second,
            "to_host_bytes_per_second": self.together_to_host_bytes_per_second,
            "flops_per_second": speeds,
        }
        return {key: value for key, value in entry.items() if value}


class _Measuring:
    """The process that measures one GPU, and what it has found."""

    def __init__(self, gpu: Gpu, compute: str):
        self.found = GpuCheck(gpu, compute)
        self.connection: Connection
        self.connection, other = Pipe()
        paths = os.pathsep.join(filter(None, sys.path))  # it must find the modules that this process finds
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MEASURE, str(other.fileno()), compute],
            pass_fds=[other.fileno()],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu.uuid, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        other.close()
        self._has_started = False
        self._doing = "starting CUDA"

    @property
    def is_over(self) -> bool:
        return bool(self.found.problem or self.found.note)

    def ask(self, task: str, seconds: float) -> None:
        self._doing = "computing" if task in ("products", "speeds") else "copying"
        try:
            self.connection.send((task, seconds))
        except OSError:
            self._ended()

    def has_answered(self) -> bool:
        """Reads a message, and returns whether the process is done with its task."""
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self._ended()
            return True
        if kind == "started":
            self._has_started = True
            return False
        values = value if isinstance(value, dict) else {kind: value}
        if "gpu" in values:
            values |= {"gpu": replace(self.found.gpu, **values["gpu"])}
        self.found = replace(self.found, **values)
        return True

    def late(self, seconds: float) -> None:
        """Notes that no answer came in time, and kills the process."""
        if self._has_started:
            problem = f"it hangs: no answer within {seconds:.0f} s of {self._doing}"
            self.found = replace(self.found, problem=problem)
        else:
            note = f"it was not checked, because the process for it did not start within {seconds:.0f} s"
            self.found = replace(self.found, note=note)
        self.kill()

    def _ended(self) -> None:
        """Notes that the process ended by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)
        status = self._process.returncode
        how = signal.Signals(-status).name if status and status < 0 else f"exit status {status or 0}"
        if self._has_started:
            self.found = replace(self.found, problem=f"the process that checked it died: {how}")
        else:
            self.found = replace(self.found, note=f"it was not checked, because the process for it failed: {how}")

    def kill(self) -> None:
        self.connection.close()
        self._process.kill()

    def join(self, seconds: float) -> None:
        """Waits for a killed process. One that waits for its GPU in the kernel may not end, and is left behind."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


def check_gpus(
    gpus: Sequence[Gpu], compute: str | None = None, more: bool = False, show: Callable[[str], None] = lambda _: None
) -> list[GpuCheck]:
    """Measures GPUs, which takes up to 5 seconds once CUDA has started on them, and longer only if one hangs.

    `compute`: the precision of products, by default the one that a run uses on such a GPU. `more`: measure also what
    the planner's cost model needs, which takes 6 seconds more. `show` gets a few words about each part as it begins.
    """
    group: list[_Measuring] = []
    try:
        for gpu in gpus:
            usual = best_precision([gpu])
            group.append(_Measuring(gpu, compute or usual))
        show("starting CUDA")
        _await(group, START_SECONDS)
        show("copying and comparing bytes")
        _all(group, "bytes", BYTES_SECONDS)
        show("computing products")
        _all(group, "products", PRODUCTS_SECONDS)
        for one in group:
            show(f"the link of {one.found.name}")
            _all([one], "link", min(LINK_SECONDS, MOST_LINK_SECONDS / 3 / len(group)))
        show("all links at once")
        _all(group, "together", TOGETHER_SECONDS)
        if more:
            _all(group, "together to host", TOGETHER_SECONDS)
            show("memory, and a decoder layer in each precision")
            _all(group, "speeds", MORE_SECONDS, SPEEDS)
    finally:
        for one in group:
            one.kill()
        until = time.monotonic() + KILL_SECONDS
        for one in group:
            one.join(max(0.0, until - time.monotonic()))
    return [one.found for one in group]


def _all(group: Sequence[_Measuring], task: str, seconds: float, parts: int = 1) -> None:
    """Lets processes carry out a task at the same time: none has a task when the first is asked. The task has so many
    parts of so many seconds each."""
    able = [one for one in group if not one.is_over]
    for one in able:
        one.ask(task, seconds)
    _await(able, parts * (seconds + GRACE_SECONDS))


def _await(group: Sequence[_Measuring], seconds: float) -> None:
    """Waits until all have answered, or for so many seconds."""
    until = time.monotonic() + seconds
    waiting = [one for one in group if not one.is_over]
    while waiting and (left := until - time.monotonic()) > 0:
        ready = wait([one.connection for one in waiting], left)
        waiting = [one for one in waiting if one.connection not in ready or not one.has_answered()]
    for one in waiting:
        one.late(seconds)


def usable_gpus(devices: Devices, gpus: Sequence[Gpu], compute: str, processes: int | None = None) -> list[Gpu]:
    """Holds and checks devices before a run, and returns the GPUs that can be used. The others are left out with a
    warning, and hidden from this process and from those that it starts. Without any GPU the CPU is held.

    `processes`: as many as `resume --processes` asks for, instead of `train.processes`. Raises UserError if fewer GPUs
    can be used than the user asks for, or none.
    """
    holders = {one.device: one for one in devices.hold(gpus, partial=True)}
    if not gpus:
        return []
    free = [gpu for gpu in gpus if gpu.uuid not in holders]
    checked = dict(zip(free, check_gpus(free, compute)))
    found = [checked.get(gpu) or GpuCheck(gpu, compute, problem=f"held by {holders[gpu.uuid]}") for gpu in gpus]
    run = devices.run
    run.log("gpu_check", gpus=[one.as_dict() for one in found])
    left = [one.gpu for one in found if not one.problem]
    if not left:
        raise UserError(f"no GPU can be used: {problems(found)}")
    if len(left) < len(gpus):
        _check_enough(run, found, len(left), processes)
    for one in found:
        if one.note:
            run.log("warning", message=f"{one.name}: {one.note}")
        elif one.problem:
            run.log("warning", message=f"{one.name} is left out: {one.problem}")
    if len(left) < len(gpus):
        _hide(gpus, left)
    return left


def _check_enough(run: Run, found: Sequence[GpuCheck], left: int, processes: int | None) -> None:
    """Raises UserError if the user asks for more processes than GPUs are left."""
    option, asked = ("--processes", processes) if processes else ("train.processes", run.recipe.train.processes)
    if asked and asked > left:
        remedy = f"set {option} to {left}"
        if run.is_prepared and not processes:
            remedy = f"`tunesmith resume {quoted(run.folder)} --processes {left}` continues with the rest"
        raise UserError(
            f"{option}: {asked} asked for, but {left} of {len(found)} GPUs can be used ({problems(found)}); {remedy}"
        )


def problems(found: Sequence[GpuCheck]) -> str:
    """Returns the problems of GPUs in one line, each once with the GPUs that have it."""
    names: dict[str, list[str]] = {}
    for one in found:
        if one.problem:
            names.setdefault(one.problem, []).append(one.name)
    return "; ".join(f"{', '.join(those)}: {problem}" for problem, those in names.items())


def _hide(gpus: Sequence[Gpu], left: Sequence[Gpu]) -> None:
    """Hides all but these GPUs from CUDA, which reads the variable once in a process. So they stay hidden until this
    process ends, also for a later run in it."""
    torch = sys.modules.get("torch")
    visible = ",".join(gpu.uuid for gpu in left)
    if torch and torch.cuda.is_initialized() and left[0].uuid != gpus[0].uuid:
        raise UserError(
            f"{gpus[0].label} cannot be used, and CUDA has already started on it in this process; "
            f"start again with CUDA_VISIBLE_DEVICES={visible}"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
