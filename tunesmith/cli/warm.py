"""A process that runs commands in forks of itself, once it has imported the libraries that they use.

`tunesmith plan` of a small model takes 8 s, of which 6 s are imports. A fork has these behind it. The studio
starts the process as `python -m tunesmith.cli.warm DESCRIPTOR`, with the descriptor of a UNIX socket that listens. A
client sends one line of JSON, {arguments, folder}, and receives {status, output, errors}; a command whose client closes
the connection ends. The process ends when its standard input does, thus with the studio.
"""

import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import traceback
from contextlib import suppress

from tunesmith.cli.main import main

READY = "ready\n"
# A plan imports these at some point, and takes most of its time for them. Nothing more is done in advance, since
# autograd works in no fork of a process in which it has worked.
LIBRARIES = (
    "numpy.ma",
    "sympy",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "peft",
    "transformers.generation",
    "transformers.models.llama.modeling_llama",
    "tunesmith.planner.most",
)


def serve(listening: socket.socket) -> None:
    """Runs the command of each connection in a fork, until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that forks which have ended leave nothing behind
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _answer(connection)
        connection.close()


def _answer(connection: socket.socket) -> None:
    """Runs one command and ends the process."""
    os.setsid()  # so that the command's own processes end with it
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(OSError), connection.makefile("rw", encoding="utf-8") as stream:
        asked = json.loads(stream.readline())
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        os.chdir(asked["folder"])
        status, output, errors = _run(asked["arguments"])
        json.dump({"status": status, "output": output, "errors": errors}, stream)
    os._exit(0)


def _end_with(connection: socket.socket) -> None:
    """Waits until the client closes the connection, and then ends the command and its processes."""
    with suppress(OSError):
        connection.recv(1)
    os.killpg(0, signal.SIGKILL)


def _run(arguments: list[str]) -> tuple[int, str, str]:
    """Runs a command. Returns its exit status and what it wrote to standard output and standard error."""
    status = 0
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        saved = [os.dup(1), os.dup(2)]
        os.dup2(output.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        try:
            main(arguments)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
        output.seek(0)
        errors.seek(0)
        return status, output.read().decode(errors="replace"), errors.read().decode(errors="replace")


def prepare() -> None:
    """Imports the libraries. A fork has none of torch's threads, so there must be none."""
    import torch

    torch.set_num_threads(1)
    for library in LIBRARIES:
        importlib.import_module(library)


if __name__ == "__main__":
    prepare()
    print(READY, end="", flush=True)
    serve(socket.socket(fileno=int(sys.argv[1])))
