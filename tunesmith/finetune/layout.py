"""The processes that train a run, and the GPUs that they use."""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith import machine
from tunesmith.machine import Gpu
from tunesmith.planner.decide import check_processes
from tunesmith.run import Run

GONE = 3  # exit status of a process that asked for a GPU in vain
PROBE_SECONDS = 30.0  # for the driver to answer for a GPU


@dataclass(frozen=True)
class Layout:
    """The processes of a launch. `gpus`: one for each process; none on a CPU. `seats`: their places in a cluster; none
    on one machine."""

    processes: int
    gpus: Sequence[Gpu] = ()
    seats: Sequence[Any] = ()


def layout_of(run: Run, asked: int | None) -> Layout:
    """How many processes train a run on this machine: `asked`, else those of its plan, or fewer if GPUs are gone since.
    Raises UserError if `asked` is too many."""
    plan = run.plan
    gpus = machine.find_gpus()[1] if plan.device == "cuda" else []
    if asked is not None:
        check_processes("--processes", asked, len(gpus), machine.cores())
    planned = [gpu for gpu in gpus if gpu.uuid in plan.gpus]
    if not asked or asked <= len(planned):
        gpus = planned or gpus
    processes = asked or (min(plan.processes, len(gpus)) if gpus else plan.processes)
    return Layout(processes, gpus[:processes])


def answering_gpus(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Returns the GPUs that still answer the driver. Other processes ask, because one that asks for a broken GPU may
    wait without end."""
    code = f"import sys; from tunesmith.machine import answers; sys.exit(0 if answers(sys.argv[1]) else {GONE})"
    probes = [subprocess.Popen([sys.executable, "-c", code, gpu.uuid]) for gpu in gpus]
    until = time.monotonic() + PROBE_SECONDS
    while any(probe.poll() is None for probe in probes) and time.monotonic() < until:
        time.sleep(0.05)
    for probe in probes:
        if probe.returncode is None:
            probe.kill()
    return [gpu for gpu, probe in zip(gpus, probes) if probe.returncode not in (None, GONE)]
