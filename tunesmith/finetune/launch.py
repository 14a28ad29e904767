"""Starts training processes, watches them, and says why one ended."""

import multiprocessing.process
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tunesmith.errors import (
    UNGUARDED,
    UNGUARDED_STATUS,
    Diverged,
    Ending,
    Interrupted,
    NotEnoughMemory,
    NotFinite,
    ProcessDied,
    UserError,
)
from tunesmith.finetune.signals import StopSignals, on_signals
from tunesmith.finetune.watchdog import Hang, ThisMachine, Watchdog
from tunesmith.machine import Gpu
from tunesmith.training import progress_marks
from tunesmith.training.distributed import STORE, OthersEnded

START_METHOD = "spawn"
SECONDS_BETWEEN_LOOKS = 0.1
GRACE_SECONDS = 3.0  # for the others to end by themselves when one has failed
KILL_SECONDS = 2.0  # for a killed process to end; one whose GPU does not answer may never do
MOST_TRACE = 20_000  # characters, so that a message fits a pipe
FOR_THE_USER = {kind.__name__: kind for kind in (Interrupted, Diverged, NotEnoughMemory, NotFinite, UserError)}
HARDWARE_ERROR = re.compile("(CUDA|CUBLAS|cuDNN)( driver)? error")  # how the message of a GPU that fails begins


@dataclass(frozen=True)
class Failure:
    """Why the processes of a launch ended. `kind` is the same for the same failure: a signal, an exception, a hang."""

    process: int
    step: int
    kind: str
    error: Ending
    may_pass: bool
    """Whether the processes may be started again: the cause is not in the run."""
    gpu_suspected: bool = False


class Failed(Exception):
    """A training process failed, and all have ended."""

    def __init__(self, failure: Failure):
        super().__init__(str(failure.error))
        self.failure = failure


def launch(entry: Callable, processes: int, *arguments: Any, gpus: Sequence[Gpu] = ()) -> None:
    """Runs `entry(*arguments)` in so many processes, each on one of `gpus` if there are any. If one fails, all end.

    A signal is passed on, and the processes may take what time they need; a second one kills them. Raises Interrupted
    if they ended by that, else Failed.
    """
    context = get_context(START_METHOD)
    marks = context.RawArray(progress_marks.Mark, processes)
    with tempfile.TemporaryDirectory(prefix="tunesmith-") as folder, stop_signals() as signals:
        group: list[LocalProcess] = []
        try:
            with _visible(gpus):
                for rank in range(processes):
                    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, STORE: f"{folder}/store"}
                    group.append(LocalProcess(context, entry, arguments, environment, marks))
            watch(group, Watchdog(marks, ThisMachine([one.pid for one in group]), gpus), signals, _pause)
        finally:
            kill(group)


@contextmanager
def _visible(gpus: Sequence[Gpu]) -> Iterator[None]:
    """Processes that start meanwhile see these GPUs alone, if there are any. They inherit it, because a library that
    they import may start CUDA, which reads it once."""
    name, before = "CUDA_VISIBLE_DEVICES", os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus:
        os.environ[name] = ",".join(gpu.uuid for gpu in gpus)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif gpus:
            del os.environ[name]


class TrainingProcess(ABC):
    """One training process as its launcher sees it."""

    rank: int
    mark: progress_marks.Mark
    exitcode: int | None
    """None while it runs; minus the number of a signal that killed it."""
    said: tuple[str, str, str] | None
    """The type, message and traceback of the exception that ended it."""
    host = ""
    """Its machine, if the processes are on several."""
    lost: str | None = None
    """Why nothing is known about its end."""
    is_killed = False

    @abstractmethod
    def terminate(self) -> None:
        """Asks it to stop."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once, if it runs."""

    @abstractmethod
    def join(self, seconds: float) -> None:
        """Waits for its end, about so long."""

    @property
    def is_running(self) -> bool:
        return self.exitcode is None

    @property
    def has_failed(self) -> bool:
        return bool(self.exitcode) and not self.is_killed


class LocalProcess(TrainingProcess):
    """A training process on this machine."""

    def __init__(self, context: Any, entry: Callable, arguments: tuple, environment: dict, marks: Any):
        self.rank = environment["RANK"]
        self.mark = marks[self.rank]
        self._reader: Connection
        self._reader, writer = context.Pipe(duplex=False)
        settings = {name: str(value) for name, value in environment.items()}
        self.process: BaseProcess = context.Process(target=_run, args=(entry, arguments, settings, marks, writer))
        self.process.start()
        writer.close()
        self._said: tuple[str, str, str] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    @property
    def exitcode(self) -> int | None:
        return self.process.exitcode

    @property
    def said(self) -> tuple[str, str, str] | None:
        with suppress(EOFError, OSError):
            if self._reader.poll():
                self._said = self._reader.recv()
        return self._said

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        if self.is_running:
            self.is_killed = True
            self.process.kill()

    def join(self, seconds: float) -> None:
        """One that waits for its GPU in the kernel may not end, and is left behind."""
        self.process.join(seconds)
        if self.is_running:  # this process must be able to end, and would wait for its children
            multiprocessing.process._children.discard(self.process)


def _run(entry: Callable, arguments: tuple, environment: dict, marks: Any, writer: Connection) -> None:
    """The training process."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    os.environ |= environment
    progress_marks.share(marks[int(environment["RANK"])])
    try:
        entry(*arguments)
    except KeyboardInterrupt:  # Ctrl-C in a terminal, before the entry listens to signals
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        trace = "" if isinstance(error, Ending) else traceback.format_exc()[-MOST_TRACE:]
        writer.send((type(error).__name__, str(error)[:MOST_TRACE], trace))
        sys.exit(1)
    progress_marks.mark("ending")


def _end_with_launcher() -> None:
    """Ends this process when its launcher is killed, so that no two launchers work on one run."""
    launcher = parent_process()
    if launcher:
        launcher.join()
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """The signals that asked to stop: a first one, and one that came so much later that it is a second one."""
    came, taken = StopSignals(), []

    def note(number: int, frame: Any) -> None:
        if came.again() or not taken:
            taken.append(number)

    with on_signals(note):
        yield taken


Pause = Callable[[list[Any]], None]  # waits a moment for news of these processes


def watch(group: Sequence[TrainingProcess], watchdog: Watchdog, signals: list[int], pause: Pause) -> None:
    """Until all have ended well. Raises Interrupted or Failed."""
    is_told = False
    while running := [one for one in group if one.is_running]:
        if signals and not is_told:
            is_told = True
            print(
                "stopping: what was learned is saved first, however long it takes; a second signal stops at once",
                file=sys.stderr,
                flush=True,
            )
            for one in running:
                one.terminate()
        if len(signals) > 1:
            raise Interrupted("stopped")
        if any(one.has_failed for one in group):
            _let_end(group, watchdog, signals, pause)
            break
        if hang := watchdog.look([one.rank for one in running]):
            raise Failed(_of_hang(hang, may_pass=not signals))
        pause(running)
    if failed := [one for one in group if one.has_failed]:
        if signals:
            raise Interrupted("stopped")
        raise Failed(min((_of_end(one, len(group), watchdog) for one in failed), key=_distance))


def _let_end(group: Sequence[TrainingProcess], watchdog: Watchdog, signals: list[int], pause: Pause) -> None:
    """Lets the others end when one has failed. They notice as soon as they exchange anything with it; what is still
    there after a while is killed, unless it saves what an error of the run left."""
    killed_at = time.monotonic() + GRACE_SECONDS
    while running := [one for one in group if one.is_running]:
        is_error_of_run = any((one.said or ("",))[0] in FOR_THE_USER for one in group)
        saves = is_error_of_run and any(one.mark.phase_name == "saving" for one in running)
        is_late = time.monotonic() > killed_at and not saves
        if is_late or len(signals) > 1 or watchdog.look([one.rank for one in running]):
            return kill(group)
        pause(running)


def _pause(running: list[LocalProcess]) -> None:
    wait([one.process.sentinel for one in running], SECONDS_BETWEEN_LOOKS)


def kill(group: Sequence[TrainingProcess]) -> None:
    """Kills all that still run."""
    for one in group:
        one.kill()
    until = time.monotonic() + KILL_SECONDS
    for one in group:
        one.join(max(0.0, until - time.monotonic()))


def _of_hang(hang: Hang, may_pass: bool) -> Failure:
    return Failure(hang.process, hang.step, "hang", ProcessDied(hang.text), may_pass, hang.gpu_suspected)


def _distance(failure: Failure) -> int:
    """How far a failure is from the cause: errors of the run, then what broke a process, then what followed from that
    in another process."""
    if isinstance(failure.error, ProcessDied):
        return 3 if failure.kind == OthersEnded.__name__ else 1 if failure.may_pass else 2
    return 0


def _of_end(one: TrainingProcess, processes: int, watchdog: Watchdog) -> Failure:
    """Why a process ended: its own exception where that is for the user, else with its traceback, once."""
    status, step = one.exitcode or 0, one.mark.step
    name = f"training process {one.rank} of {processes}{f' on {one.host}' if one.host else ''}"
    if one.lost:
        text = f"{name}, last seen at step {step}, {one.mark.place}: {one.lost}"
        return Failure(one.rank, step, "lost", ProcessDied(text), True)
    where = f"{name} died at step {step}"
    if status == UNGUARDED_STATUS:
        return Failure(one.rank, step, "unguarded", UserError(UNGUARDED), False)
    if one.said:
        kind, message, trace = one.said
        if kind in FOR_THE_USER:
            return Failure(one.rank, step, kind, FOR_THE_USER[kind](message), False)
        is_hardware = bool(HARDWARE_ERROR.match(message))
        is_network = kind == OthersEnded.__name__ and bool(one.host)  # a connection broke, if nothing else did
        xid = watchdog.outside.xid(one.rank) if is_hardware else None
        text = f"{where}: {kind}: {xid or message}\n{trace}".strip()
        kind = "CUDA error" if is_hardware else kind
        return Failure(one.rank, step, kind, ProcessDied(text), is_hardware or is_network)
    if status < 0:
        kind = signal.Signals(-status).name
        why = ", as the system does when memory runs out" if kind == "SIGKILL" else ""
        return Failure(one.rank, step, kind, ProcessDied(f"{where}, {one.mark.place}: {kind}{why}"), True)
    return Failure(
        one.rank, step, f"status {status}", ProcessDied(f"{where}, {one.mark.place}: exit status {status}"), False
    )
