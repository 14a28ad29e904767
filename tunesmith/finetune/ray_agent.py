"""The side of a Ray cluster's machines: an agent holds a GPU, or a core, and runs one training process at a time there.

Ray starts agents as actors. The training process is a child of the agent, as on one machine it is one of the launcher.
"""

import os
from collections.abc import Callable
from multiprocessing import get_context

from tunesmith import machine
from tunesmith.finetune import launch
from tunesmith.finetune.layout import answering_gpus
from tunesmith.finetune.watchdog import ThisMachine
from tunesmith.machine import Gpu
from tunesmith.training import progress_marks

News = tuple[tuple[int, ...], int | None, tuple[str, str, str] | None]  # values of the mark, exit code, last words


class Agent:
    """Runs a training process. Ray shows it one GPU, or none."""

    def __init__(self, folder: str):
        """`folder`: that in which the user started the run."""
        os.chdir(folder)
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray's, for its own tasks
        self._process: launch.LocalProcess | None = None
        self._outside = ThisMachine([])
        self._gpu = next(iter(machine.find_gpus()[1]), None)

    def gpu(self) -> Gpu | None:
        return self._gpu

    def is_usable(self) -> bool:
        """Whether its GPU answers the driver, if it has one."""
        return self._gpu is None or bool(answering_gpus([self._gpu]))

    def start(self, entry: Callable, arguments: tuple, environment: dict) -> None:
        context = get_context(launch.START_METHOD)
        marks = context.RawArray(progress_marks.Mark, environment["WORLD_SIZE"])
        self._process = launch.LocalProcess(context, entry, arguments, environment, marks)
        self._outside = ThisMachine([self._process.pid])

    def news(self) -> News:
        return self._process.mark.values, self._process.exitcode, self._process.said

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> News:
        launch.kill([self._process])
        return self.news()

    def state(self) -> str:
        return self._outside.state(0)

    def activity(self) -> tuple[float, int] | None:
        return self._outside.activity(0)

    def xid(self) -> str | None:
        return self._outside.xid(0)
