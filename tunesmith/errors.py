"""The ends of a command that are said in one line; any other exception is a fault of ours and is shown whole."""

import errno
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.units import size

DISK_FULL = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
}  # in words, as libraries in Rust say it


class Ending(Exception):
    """Its message is for the user; `status` is the command's exit status, `reason` that of a run's stop event."""

    status = 1
    reason = "error"


class UserError(Ending):
    """A mistake that the user can mend: what is wrong, where (`file:line` or recipe key) and what to do."""

    status = 2


class Interrupted(Ending):
    """The user stopped the run; what there is has been saved."""

    status = 130


class NotFinite(Ending):
    """A loss or gradient that is not a number; the message names the rows."""

    reason = "not_finite"


class Diverged(Ending):
    """Training has made the model much worse than it was; the message says what to try."""

    reason = "diverged"


class NotEnoughMemory(Ending):
    """A step that does not fit, whatever is tried."""

    reason = "out_of_memory"


class ProcessDied(Ending):
    """A training process ended without being asked to."""


class NotTheSame(Ending):
    """An export that is not the trained model."""


@contextmanager
def report_full_disk(folder: Path, remedy: str) -> Iterator[None]:
    """Raises UserError where what is done in this block finds no room on the disk of `folder`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Ending) or not is_disk_full(error):
            raise
        free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
        raise UserError(f"{folder}: no room on the disk ({size(free)} free); {remedy}") from None


def is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno:
        return error.errno in DISK_FULL
    return any(words in str(error) for words in DISK_FULL.values())


UNGUARDED = 'a script calls tunesmith.train outside of `if __name__ == "__main__":`'
UNGUARDED_STATUS = 78  # exit status of a process of ours that imports such a script
CHILD_DIED = (
    "a process started for it ended unexpectedly: memory ran out, or a script calls Tunesmith outside of "
    '`if __name__ == "__main__":`'
)


def first_line(error: Exception) -> str:
    """What a library's error says, without the rest that it says beside."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def quoted(path: Path | str) -> str:
    """A path as a shell takes it, for commands that a user may copy."""
    return shlex.quote(str(path))
