"""The processes that follow a run for its trackers, from the side of the user's process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tunesmith.run import Run
from tunesmith.trackers import _follower

SECONDS_AFTER_END = 30.0  # that trackers have for the last numbers of a run; a new MLflow database takes about 10


@contextmanager
def followed(run: Run) -> Iterator[None]:
    """While this holds, a process for each tracker of the recipe follows the run. Nothing that happens to them reaches
    the run: one that crashes or hangs is a warning event."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    for name in dict.fromkeys(run.recipe.trackers):
        try:
            processes[name] = _start(run, name)
        except OSError as error:
            _warn(run, f"{name} cannot be started: {error}")
    try:
        yield
    finally:
        _end(run, processes)


def _start(run: Run, name: str) -> subprocess.Popen[bytes]:
    log = _follower.log_file(run, name)
    log.parent.mkdir(exist_ok=True)
    path = os.pathsep.join(os.path.abspath(place) for place in sys.path if place)
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", _follower.__name__, str(run.folder), name],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for the run
        )


def _end(run: Run, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    """Waits for trackers to send the last numbers, and kills those that take too long."""
    deadline = time.monotonic() + SECONDS_AFTER_END
    for process in processes.values():
        process.stdin.close()
    try:
        for name, process in processes.items():
            try:
                status = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _warn(run, f"{name} did not end within {SECONDS_AFTER_END:g} s of the run, and was killed")
            else:
                if status:
                    _warn(
                        run, f"{name} crashed (exit status {status}); {_follower.log_file(run, name)} has the details"
                    )
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # what the tracker itself started, too
                process.wait()


def _warn(run: Run, message: str) -> None:
    with suppress(OSError):  # a full disk, say, is for training to report
        run.log("warning", message=f"trackers: {message}")
