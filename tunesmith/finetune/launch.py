"""Starts the training processes, one or several, and says why one ended."""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from typing import Any

from tunesmith.errors import (
    UNGUARDED,
    UNGUARDED_STATUS,
    Diverged,
    Interrupted,
    NotEnoughMemory,
    NotFinite,
    ProcessDied,
    UserError,
    quoted,
)
from tunesmith.finetune.signals import StopSignals, on_signals
from tunesmith.plan import Plan
from tunesmith.run import Run


def start_processes(run: Run) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from tunesmith.finetune.worker import work

    try:
        with _silent_launcher():
            launch(work, run.plan.processes, run.folder)
    except SignalException:  # the processes have saved, or a second signal killed them
        raise Interrupted(f"stopped; `tunesmith resume {quoted(run.folder)}` continues it") from None
    except ChildFailedError as error:
        raise _cause(run.plan, *error.get_first_failure()) from None


@contextmanager
def _silent_launcher() -> Iterator[None]:
    """The launcher logs what it then raises; once is enough."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _cause(plan: Plan, rank: int, failure: Any) -> Exception:
    """Why a training process ended: its own exception where that is for the user, else with its traceback, once."""
    if failure.exitcode == UNGUARDED_STATUS:
        return UserError(UNGUARDED)
    found = failure.message
    text, trace = (found["message"], found["extraInfo"]["py_callstack"]) if isinstance(found, dict) else (found, "")
    name, _, message = text.partition(": ")
    for kind in (Interrupted, Diverged, NotEnoughMemory, NotFinite, UserError):
        if name == kind.__name__:
            return kind(message)
    return ProcessDied(f"training process {rank} of {plan.processes} died, so all stopped: {text}\n{trace}".strip())


def launch(entry, processes: int, *arguments) -> None:
    """Runs `entry(*arguments)` in so many processes through torch's elastic launcher; if one dies, all stop.

    A signal is passed on, and the processes may take what time they need; a second one kills them. Raises
    SignalException if they ended by that, ChildFailedError with the first failure if by themselves (both are of
    torch.distributed.elastic).
    """
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        signals_to_handle="",
    )
    with _waiting_on_signals():
        elastic_launch(config, entry)(*arguments)


@contextmanager
def _waiting_on_signals():
    """Instead of torch's handlers, which kill after 30 s, when a large model may not have been saved."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    others, came = active_children(), StopSignals()

    def stop(number, frame) -> None:
        processes = [process for process in active_children() if process not in others]
        first, again = not came, came.again()
        if first:
            print(
                "stopping: what was learned is saved first, however long it takes; a second signal stops at once",
                file=sys.stderr,
                flush=True,
            )
            for process in processes:
                process.terminate()
        elif again:
            for process in processes:
                process.kill()
        if again or not processes:
            raise SignalException(f"signal {number}", signal.Signals(number))

    try:
        with on_signals(stop):
            yield
    except ChildFailedError:
        if came:
            raise SignalException("stopped", signal.SIGTERM) from None
        raise
