"""The packages of the extra `gguf`, imported when they are first needed."""

import importlib
import os
from collections import deque
from functools import cache

from tunesmith.errors import UserError, first_line

HOW = "pip install 'tunesmith[gguf]'"
said: deque[str] = deque(maxlen=40)
"""What llama.cpp said last, warnings and errors only; it goes to no screen."""


def gguf_package():
    """The package that writes the format. Raises UserError."""
    return _imported("gguf", "writing GGUF files")


@cache
def llama_cpp():
    """llama.cpp's C interface. Raises UserError."""
    library = _imported("llama_cpp", "running GGUF files and the K-quants")
    library.llama_log_set(_listener(library), None)
    library.llama_backend_init()
    return library


def reason() -> str:
    """Why llama.cpp's last call failed, as it said it."""
    return said[-1] if said else "it gave no reason"


def threads() -> int:
    """Threads for llama.cpp: those torch and others are told to use, else every core."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


@cache
def _listener(library):
    """Kept by the cache: llama.cpp calls it as long as the process lives."""
    warning, error = 2, 3

    @library.llama_log_callback
    def listen(level, text, _):
        if level in (warning, error):
            said.append(first_line(text.decode("utf-8", "replace")))

    return listen


def _imported(name: str, what: str):
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        why = f"needs the package {name.replace('llama_cpp', 'llama-cpp-python')}" if missing else first_line(error)
        raise UserError(f"export: {what}: {why}; {HOW}") from None
