"""Ends a command together with the studio that runs it, also where nothing else can: after `kill -9` of the studio.

The studio keeps the other end of the command's standard input open, and the kernel closes it when the studio ends.
"""

import os
import signal
import threading

VARIABLE = "TUNESMITH_ENDS_WITH_STDIN"  # the environment variable that asks a command for it


def follow() -> None:
    """Ends this process and those that it started as soon as its standard input ends, if the studio asks for that."""
    if os.environ.pop(VARIABLE, None):  # processes that it starts have another standard input
        threading.Thread(target=_end_with_input, daemon=True).start()


def _end_with_input() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)
