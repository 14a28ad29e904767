"""vLLM in a process of its own: found, started, waited for, ended with all that it started."""

import asyncio
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from tunesmith.errors import UserError
from tunesmith.files import cache_folder
from tunesmith.model.load import config_of
from tunesmith.recipe import Recipe

SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
# The shell's child waits for the end of our standard input, which comes whatever way we end, and then kills the group.
GUARDED = 'exec 3<&0; (read _ <&3; kill -KILL 0) & exec "$@" 3<&- </dev/null'
PATIENCE = 15.0  # seconds for vLLM to end by itself
SAID_EVERY = 10.0  # seconds
LAST = 50_000  # bytes of the log that are looked at
# What vLLM writes before each line: whose it is, and for those of its log the level, the time and the place.
BEFORE = re.compile(r"^(\([^()]* pid=\d+\) )?([A-Z]+ [\d-]+ [\d:]+ \[[^]]*\] )?")
ERROR = re.compile(r"[\w.]*(Error|Exception|error): ")
VAGUE = re.compile("[Ss]ee (root cause|stack trace)")  # says only that the reason stands above


def find() -> str | None:
    """The program, beside this Python or on PATH."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return shutil.which("vllm", path=places)


def precision_of(folder: Path) -> str:
    """That of the weights as they are saved; of quantised ones vLLM's choice, as not all its kernels have float32."""
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


class Child:
    """`vllm serve` in a process group of its own. `log` is the file of what it says; the last one's is kept."""

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
        self._command = [
            program,
            "serve",
            *arguments,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--disable-uvicorn-access-log",
        ]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)  # another server may be writing to it
        self._file = open(self.log, "a+b")  # noqa: SIM115  open as long as the process
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            GUARDED,
            "sh",
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=self._file,
            stderr=self._file,
            start_new_session=True,
            env=self._environment,
        )

    async def healthy(
        self, client: httpx.AsyncClient, say: Callable[[str], None], given_up: Callable[[], bool] = lambda: False
    ) -> bool:
        """Waits until vLLM answers; False if it ends or the wait is given up. `say` receives its messages."""
        said = time.monotonic()
        while not (self.ended or given_up()):
            with suppress(httpx.TransportError):
                if (await client.get("/health")).status_code == httpx.codes.OK:
                    return True
            if time.monotonic() - said > SAID_EVERY:
                said = time.monotonic()
                say(f"vLLM is starting: {(self.lines() or ['nothing said yet'])[-1]}")
            await asyncio.sleep(0.1)
        return False

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}",
            timeout=None,
            trust_env=False,
            headers={"Authorization": f"Bearer {self.key}"},
            limits=httpx.Limits(max_connections=None),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    async def wait(self) -> None:
        await self._process.wait()

    async def stop(self) -> None:
        """Ends all its processes."""
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
        """The last it said."""
        size = os.fstat(self._file.fileno()).st_size
        text = os.pread(self._file.fileno(), LAST, max(0, size - LAST)).decode("utf-8", "replace")
        return [line for line in (BEFORE.sub("", line).strip() for line in text.splitlines()) if line]

    def reason(self) -> str:
        """Its last error, else its last line."""
        lines = self.lines()
        errors = [line for line in lines if ERROR.match(line) and not VAGUE.search(line)]
        return (errors or lines or ["it said nothing"])[-1]

    def failure(self, what: str) -> str:
        """A sentence about what vLLM did, with its reason."""
        return f"vLLM {what}: {self.reason()} (its log is {self.log})"

    def explained(self, said: str) -> str:
        """Returns the message, or the reason if the message only points at the lines above it."""
        return self.reason() if VAGUE.search(said) else said

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
