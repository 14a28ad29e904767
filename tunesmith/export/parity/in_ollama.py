"""A folder for Ollama in Ollama itself: made there under a name of its own, asked, and taken out again."""

import json
import os
import re
import shutil
import subprocess
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import httpx

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.export.parity.subject import Generated, one_by_one
from tunesmith.inference.generate import Progress, unheard

STOP = re.compile(r'^stop +(".*")$', re.MULTILINE)
PORT = 11434


def installed() -> bool:
    return shutil.which("ollama") is not None


def create(folder: Path, name: str) -> None:
    """`ollama create`. Raises UserError."""
    done = subprocess.run(
        ["ollama", "create", name, "-f", "Modelfile"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"ollama create: {(done.stderr.strip().splitlines() or ['failed without a word'])[-1]}")


class Ollama:
    """See subject.Engine. It tells what its template writes and what the model answers, neither ids nor likelihoods."""

    tells_likelihoods = expresses_all = False

    def __init__(self, folder: Path, tokenizer: Tokenizer, render, context: int):
        """`tokenizer`: by which its texts become ids; `render(messages, tools)` gives None for conversations that the
        Modelfile's template is not for. `context`: most tokens of a text and its answer. Raises UserError."""
        self._tokenizer, self._render, self._context = tokenizer, render, context
        self.device_bytes: dict[str, int | None] = {}  # Ollama is a program of its own
        self._bos = tokenizer.bos_token if tokenizer.adds_bos else ""  # Ollama puts it there by itself
        self._model = f"tunesmith-parity-{os.getpid()}"
        self._client = httpx.Client(base_url=address(os.environ.get("OLLAMA_HOST", "")), timeout=None, trust_env=False)
        try:
            self.name = f"Ollama {self._answer('GET', '/api/version')['version']}"
            create(folder, self._model)
            told = self._answer("POST", "/api/show", {"model": self._model}).get("parameters", "")
            stops = [json.loads(text) for text in STOP.findall(told)]
            self.stop_ids = {ids[0] for ids in map(self.encode, stops) if len(ids) == 1}
        except BaseException:
            self.close()
            raise

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)[0]

    def conversation(self, messages: list[dict], tools: list[dict] | None) -> list[int] | None:
        if self._render(messages, tools) is None:
            return None
        found = self._ask("/api/chat", 1, {"messages": messages, "_debug_render_only": True})
        if "_debug_info" not in found:
            raise UserError(f"{self.name} does not show what its template writes; newer versions do")
        return self.encode(self._bos + found["_debug_info"]["rendered_template"].removeprefix(self._bos))

    def generate(self, prompts: list[list[int]], max_new_tokens: int, progress: Progress = unheard) -> list[Generated]:
        def answer(ids: list[int]) -> Generated:
            prompt = self._tokenizer.decode(ids).removeprefix(self._bos)
            told = self._ask("/api/generate", max_new_tokens, {"prompt": prompt, "raw": True})
            return Generated(self.encode(told["response"]), told.get("done_reason") == "stop")

        return one_by_one(answer, prompts, progress)

    def close(self) -> None:
        """Takes the model out of Ollama's memory and store."""
        with suppress(httpx.TransportError):  # it has gone, or never was
            self._client.post("/api/generate", json={"model": self._model, "keep_alive": 0})
            self._client.request("DELETE", "/api/delete", json={"model": self._model})
        self._client.close()

    def _ask(self, path: str, most: int, what: dict) -> dict:
        greedy = {"temperature": 0.0, "repeat_penalty": 1.0, "num_predict": most, "num_ctx": self._context}
        return self._answer("POST", path, {"model": self._model, "stream": False, "options": greedy} | what)

    def _answer(self, method: str, path: str, body: dict | None = None) -> dict:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.TransportError:
            raise UserError(f"no Ollama answers at {self._client.base_url}; `ollama serve` starts it") from None
        if response.is_error:
            raise UserError(f"Ollama: {response.text}")
        return response.json()


def address(host: str) -> str:
    """Where Ollama listens, of OLLAMA_HOST as it reads it: host, host:port or an address. Raises UserError."""
    scheme, _, rest = host.strip().strip("\"'").rpartition("://")
    rest, port = rest.partition("/")[0], {"": PORT, "http": 80, "https": 443}.get(scheme)
    with suppress(ValueError):  # an address alone, which may be full of colons
        rest = str(ip_address(rest.strip("[]")))
        rest = f"[{rest}]" if ":" in rest else rest
    found = re.fullmatch(r"(\[[^]]*\]|[^:]*):?(\d*)", rest)
    if not (port and found):
        raise UserError(f"OLLAMA_HOST: {host!r} is no address")
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(found[1], found[1])
    return f"{scheme or 'http'}://{name}:{found[2] or port}"
