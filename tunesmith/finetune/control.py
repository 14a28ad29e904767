"""The user's wish for a running job: run, pause or stop. It is a file in the run's folder, so that any program can
write it; a signal to the process means stop too."""

from collections.abc import Callable
from typing import Literal

from tunesmith.errors import UserError, quoted
from tunesmith.files import read_text, write_atomic
from tunesmith.run import Run

Wish = Literal["run", "pause", "stop"]


def request(run: Run, wish: Wish) -> None:
    """Asks a running job. It complies after its current step. Raises UserError if no process works on the run."""
    if not run.is_held:
        hint = "" if run.result.exists() else f"; `tunesmith resume {quoted(run.folder)}` continues it"
        raise UserError(f"{run.folder}: this run is not running{hint}")
    write_atomic(run.control_file, wish)


def forget(run: Run) -> None:
    """Drops an earlier wish, which was meant for a process that has ended."""
    run.control_file.unlink(missing_ok=True)


def wish_of(run: Run) -> Wish:
    """The last wish for a run; "run" if there is none."""
    try:
        text = read_text(run.control_file).strip()
    except OSError:
        return "run"
    return "stop" if text == "stop" else "pause" if text == "pause" else "run"


def listen(run: Run, stop_requested: Callable[[], bool]) -> Callable[[], str]:
    """A function that tells the current wish; `stop_requested`: whether a signal asked this process to stop."""

    return lambda: "stop" if stop_requested() else wish_of(run)
