"""Writes checkpoints while training continues."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tunesmith.machine import memory
from tunesmith.training import checkpoint
from tunesmith.training.optimizer import Optimizer
from tunesmith.training.progress_marks import mark
from tunesmith.units import size

MEMORY_MARGIN_BYTES = 2**30


class Saver:
    """Writes one checkpoint at a time and removes old ones; at the end of its `with` block all is written.

    `save` copies what it is given into memory and returns, and a thread writes the copy. If there is no room for a
    copy, training waits for the disk. A full disk fails one save, and a warning says so.
    """

    def __init__(self, folder: Path, keep: int, log: Callable):
        self._folder, self._keep, self._log = folder, keep, log
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *_) -> None:
        try:
            self._wait()
        finally:
            self._writer.shutdown()

    def save(self, optimizer: Optimizer, state: checkpoint.State) -> None:
        began = time.monotonic()
        self._wait()
        contents = checkpoint.Contents.of(optimizer, state)
        _, free = memory()
        short = contents.nbytes + MEMORY_MARGIN_BYTES > free
        if short and contents.on_gpu:  # writing would copy all of it, too
            self._log(
                "warning",
                message=f"checkpoint at step {state.step} not saved: it needs "
                f"{size(contents.nbytes)} of the machine's memory, {size(free)} are free; training "
                "continues",
            )
        elif short:
            self._write(contents, began)
        else:
            copy = contents.copied()
            self._writing = self._writer.submit(self._write, copy, began, time.monotonic())

    def _wait(self) -> None:
        """Until the checkpoint before is written; raises what its thread raised."""
        if self._writing:
            mark("saving")
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, contents: checkpoint.Contents, stall_began: float, stall_ended: float | None = None) -> None:
        """Without `stall_ended`, training stands still until this is done."""
        state, began = contents.state, time.monotonic()
        try:
            size = checkpoint.save(self._folder, contents)
        except OSError as error:
            self._log("warning", message=f"checkpoint at step {state.step} not saved: {error}; training continues")
            return
        checkpoint.prune(self._folder, self._keep, state.best_step)
        ended = time.monotonic()
        self._log(
            "checkpoint",
            step=state.step,
            path=f"checkpoints/step-{state.step:06d}",
            bytes=size,
            seconds=round(ended - began, 3),
            stall_seconds=round((stall_ended or ended) - stall_began, 3),
            best=state.best_step == state.step,
        )
