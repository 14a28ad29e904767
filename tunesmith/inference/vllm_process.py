"""A `vllm serve` process: how it is found, started, and ended together with every process that it started."""

import asyncio
import os
import re
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tunesmith.errors import UserError
from tunesmith.files import cache_folder
from tunesmith.leases import CPU
from tunesmith.machine import best_precision, find_gpus
from tunesmith.model.load import config_of
from tunesmith.recipe import Recipe

SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
# The shell's child waits for the end of our standard input, which comes whatever way we end, and then kills the group.
GUARDED = 'exec 3<&0; (read _ <&3; kill -KILL 0) & exec "$@" 3<&- </dev/null'
PATIENCE = 15.0  # seconds for vLLM to end by itself
LAST = 50_000  # bytes at the end of the log that are searched
# The beginning of vLLM's lines: the process, and in lines of its logger the level, the time and the place.
BEFORE = re.compile(r"^(\([^()]* pid=\d+\) )?([A-Z]+ [\d-]+ [\d:]+ \[[^]]*\] )?")
ERROR = re.compile(r"[\w.]*(Error|Exception|error): ")
VAGUE = re.compile("[Ss]ee (root cause|stack trace)")  # only points at the lines above it


def find() -> str | None:
    """Returns the path of the program, beside this Python or on PATH."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return shutil.which("vllm", path=places)


def precision_of(folder: Path) -> str:
    """Returns the precision of the saved weights; "auto" if they are quantised, as some kernels lack float32."""
    config = config_of(folder)
    if getattr(config, "quantization_config", None):
        return "auto"
    return str(config.dtype or "auto").removeprefix("torch.")


def adapter_hindrances(recipe: Recipe) -> list[str]:
    """Returns the features of a run's adapter that vLLM does not load."""
    parts = {
        "DoRA": recipe.adapter.dora,
        "modules_to_save": recipe.adapter.modules_to_save,
        "new tokens": recipe.model.new_tokens,
    }
    return [name for name, there in parts.items() if there]


def serve_arguments(folder: Path, name: str, precision: str, context: int) -> list[str]:
    """Returns the arguments of `vllm serve` for a model folder. `context`: most tokens of a prompt and its answer.
    vLLM does not compute bfloat16 on a GPU that has none."""
    if precision == "bfloat16":
        precision = best_precision(find_gpus()[1])
    names = ["--served-model-name", name, "--dtype", precision, "--max-model-len", str(context)]
    return [str(folder), *names]


class Child:
    """`vllm serve` in a process group of its own. `log` is the file of its output; that of the last one is kept."""

    def __init__(self, arguments: Sequence[str], log: str, environment: dict[str, str] | None = None):
        """`log`: its name in the cache folder. Raises UserError if vLLM is not installed."""
        program = find()
        if program is None:
            raise UserError(
                "--engine vllm: no program `vllm` beside this Python or on PATH; `uv tool install vllm` "
                "puts it there, with an environment of its own"
            )
        self.key = secrets.token_hex(16)
        self.port = _free_port()
        self.log = cache_folder() / log
        self._environment = os.environ | SETTINGS | {"VLLM_API_KEY": self.key} | (environment or {})
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._command = [program, "serve", *arguments, *place, "--disable-uvicorn-access-log"]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)  # another server may be writing to it
        self._file = open(self.log, "a+b")  # noqa: SIM115  open as long as the process
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *("sh", "-c", GUARDED, "sh", *self._command),
            stdin=asyncio.subprocess.PIPE,
            stdout=self._file,
            stderr=self._file,
            start_new_session=True,
            env=self._environment,
        )

    @property
    def device_bytes(self) -> dict[str, int | None]:
        """See interface.Engine. Without --tensor-parallel-size it is the first GPU."""
        return dict.fromkeys([gpu.uuid for gpu in find_gpus()[1]][:1] or [CPU])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    async def wait(self) -> None:
        await self._process.wait()

    async def stop(self) -> None:
        """Ends all its processes, if it has started."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), PATIENCE)
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self._process.stdin.close()

    def close(self) -> None:
        """Closes the log, after the process has ended."""
        self._file.close()

    def lines(self) -> list[str]:
        """Returns the last lines of its output."""
        size = os.fstat(self._file.fileno()).st_size
        text = os.pread(self._file.fileno(), LAST, max(0, size - LAST)).decode("utf-8", "replace")
        return [line for line in (BEFORE.sub("", line).strip() for line in text.splitlines()) if line]

    def reason(self) -> str:
        """Returns the last error in its output, or the last line if there is none."""
        lines = self.lines()
        errors = [line for line in lines if ERROR.match(line) and not VAGUE.search(line)]
        return (errors or lines or ["it wrote nothing"])[-1]

    def explained(self, message: str) -> str:
        """Returns the message, or the reason if the message is empty or only points at the log."""
        return message if message and not VAGUE.search(message) else self.reason()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
