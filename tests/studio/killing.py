"""Processes that are killed at a certain file operation."""

import os
import sys
from collections.abc import Callable

OPERATIONS = ("open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir")  # names of audit events


def is_killed(action: Callable[[], object], folder: str | os.PathLike, operations: int) -> bool:
    """Does something in a process that is killed before it changes a file in a folder once more after so many times.
    Returns whether it was killed."""
    child = os.fork()
    if not child:
        left, within = [operations], str(folder)

        def count(event: str, given: tuple) -> None:
            if event not in OPERATIONS or isinstance(given[0], int):
                return
            if os.path.isabs(given[0]) and not str(given[0]).startswith(within):  # else it is in an open folder
                return
            if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR):
                return
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)

        sys.addaudithook(count)
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
