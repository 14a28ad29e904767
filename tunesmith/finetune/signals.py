"""Signals that stop a run: the first after a step, the second at once."""

import os
import signal
import time
from contextlib import contextmanager

SECOND_SIGNAL_AFTER_SECONDS = 1.0  # sooner it is the same one: Ctrl-C comes from the terminal and from the launcher


class StopSignals(list):
    """The times at which signals to stop arrived."""

    def again(self) -> bool:
        """Notes one more; whether it is a second one, and not the same by another way."""
        self.append(time.monotonic())
        return self[-1] - self[0] > SECOND_SIGNAL_AFTER_SECONDS


@contextmanager
def on_signals(handler):
    """While this holds, what asks a run to stop goes to `handler`. A hangup does not where it is ignored (nohup)."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    try:
        previous = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # a notebook's thread: signals belong to the main thread
        previous = {}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def stop_on_signal():
    """Yields a function that tells whether a signal to stop came. A second one ends the process at once."""
    received = StopSignals()

    def note(number, frame) -> None:
        if received.again():
            os._exit(128 + number)

    with on_signals(note):
        yield lambda: bool(received)
