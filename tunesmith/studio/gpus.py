"""The GPUs as they are now. A driver whose GPU hangs may never answer, so a thread asks it, and the studio does not
wait."""

import threading
import time
from dataclasses import dataclass

from tunesmith.machine import Gpu, find_gpus, gpu_watts

FRESH_SECONDS = 1.0  # for which an answer is used again
WAIT_SECONDS = 3.0  # for the driver, before the last answer is used


@dataclass(frozen=True)
class GpuNow:
    """A GPU and the power that it takes, in watts; None: unknown."""

    gpu: Gpu
    watts: float | None


class Gpus:
    """Asks the driver for all clients of the studio, at most once a second."""

    def __init__(self) -> None:
        self._found: list[GpuNow] = []
        self._asked_at = -FRESH_SECONDS
        self._asking: threading.Thread | None = None
        self._lock = threading.Lock()

    def now(self) -> list[GpuNow]:
        """The GPUs of this machine, as the driver last told."""
        with self._lock:
            if self._asking is None and time.monotonic() - self._asked_at > FRESH_SECONDS:
                self._asking = threading.Thread(target=self._ask, daemon=True)
                self._asking.start()
            asking = self._asking
        if asking:
            asking.join(WAIT_SECONDS)
        return self._found

    def _ask(self) -> None:
        try:
            self._found = [GpuNow(gpu, gpu_watts(gpu.uuid)) for gpu in find_gpus()[1]]
        finally:
            self._asked_at, self._asking = time.monotonic(), None
