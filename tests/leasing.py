"""Processes that hold devices, as other runs do."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CODE = """
import subprocess, sys, time
from tunesmith.leases import held
with held({devices!r}, {use!r}, exclusive={exclusive}, nbytes={nbytes}, folder="runs/alpha"):
    {first}
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(
    devices: Sequence[str],
    use: str = "training",
    exclusive: bool = True,
    nbytes: int | None = None,
    first: str = "pass",
) -> Iterator[subprocess.Popen]:
    """A process that holds devices for the run alpha until the block ends. `first`: what it does then; `said` of the
    process has the lines that this prints."""
    code = CODE.format(devices=list(devices), use=use, exclusive=exclusive, nbytes=nbytes, first=first)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.said = []
        while (line := process.stdout.readline()) != b"held\n":
            assert line, "it ended"
            process.said.append(line)
        try:
            yield process
        finally:
            process.stdin.close()
            assert process.wait() in (0, -signal.SIGKILL)
