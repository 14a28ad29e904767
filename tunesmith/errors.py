"""Exceptions that end a command with a one-line message. Any other exception is a bug and shows its traceback."""

import errno
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tunesmith.units import size

DISK_FULL = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EFBIG: "File too large",
}  # libraries written in Rust raise these texts without an errno


class Ending(Exception):
    """Ends a command. The message is for the user; `status` is the exit status, `reason` that of the stop event."""

    status = 1
    reason = "error"


class UserError(Ending):
    """A mistake that the user can fix. The message says what is wrong, where (`file:line` or recipe key), what to
    do."""

    status = 2


class Interrupted(Ending):
    """The user stopped the run. The state so far is saved."""

    status = 130


class NotFinite(Ending):
    """A loss or gradient is NaN or infinite. The message names the rows."""

    reason = "not_finite"


class Diverged(Ending):
    """Training made the model much worse than the base model. The message says what to try."""

    reason = "diverged"


class NotEnoughMemory(Ending):
    """A training step does not fit in memory, even with the out-of-memory fallback."""

    reason = "out_of_memory"


class NotNow(Ending):
    """Too little memory is free for a run that the queue started. It waits until there is enough. `needed`: the bytes
    that must be free, by device."""

    status = 75  # EX_TEMPFAIL of sysexits.h
    reason = "no_room"

    def __init__(self, message: str, needed: Mapping[str, int]):
        super().__init__(message)
        self.needed = dict(needed)


class ProcessDied(Ending):
    """A training process ended unexpectedly."""


class NotTheSame(Ending):
    """The parity gate found that an export differs from the trained model."""


@contextmanager
def report_full_disk(folder: Path, remedy: str) -> Iterator[None]:
    """Turns an exception for a full disk, raised in this block, into a UserError about the disk of `folder`."""
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
UNGUARDED_STATUS = 78  # exit status of a child process that imports such a script
CHILD_DIED = (
    "a process started for it ended unexpectedly: memory ran out, or a script calls Tunesmith outside of "
    '`if __name__ == "__main__":`'
)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def quoted(path: Path | str) -> str:
    """Quotes a path for a shell, in commands that a user may copy."""
    return shlex.quote(str(path))
