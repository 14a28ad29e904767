"""A process that measures an invented GPU: `gpu_check` starts this module in place of `gpu_measure`.

It measures this machine's memory and CPU. The GPU's UUID names its fault and the task in which it shows, as in
`GPU-1 hangs bytes`.
"""

import os
import signal
import sys
import time
from multiprocessing.connection import Connection


def fail(fault: str) -> None:
    if fault == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(10_000)
    elif fault == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault == "exits":
        os._exit(3)
    elif fault == "raises":
        raise RuntimeError("CUDA error: unspecified launch failure\nmore")
    elif fault == "errs":
        raise KeyError("a bug")
    elif fault == "full":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory.")


class Failing:
    """A connection on which a certain task fails."""

    def __init__(self, connection: Connection, fault: str, task: str):
        self.connection, self.fault, self.task = connection, fault, task

    def send(self, message: tuple) -> None:
        self.connection.send(message)

    def recv(self) -> tuple:
        task, seconds = self.connection.recv()
        if task == self.task:
            fail(self.fault)
        return task, seconds


def flip(target, source) -> None:
    target.copy_(source)
    target[len(target) // 2] ^= 1 << 40


def main() -> None:
    connection = Connection(int(sys.argv[1]))
    _, fault, task = os.environ["CUDA_VISIBLE_DEVICES"].split(" ")
    if task == "import":
        fail(fault)
    connection.send(("started", {}))
    if task == "start":
        fail(fault)
    import torch  # takes seconds, which a process that has failed by now need not spend

    from tunesmith.finetune import gpu_measure, speed

    speed.CPU_SHAPE, speed.MEMORY_NUMBERS = (128, 128, 8), 2**12
    gpu_measure.MOST_NUMBERS = gpu_measure.FIRST_NUMBERS
    gpu_measure.FIRST_WIDTH = gpu_measure.MOST_WIDTH = 64
    copy = flip if fault == "flips" else gpu_measure.copy
    gpu_measure.answer(Failing(connection, fault, task), torch.device("cpu"), sys.argv[2], copy)


if __name__ == "__main__":
    main()
