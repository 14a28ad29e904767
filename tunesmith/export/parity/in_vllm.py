"""A model folder in vLLM as parity asks it: a server for that alone, started as users start it."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import torch

from tunesmith.errors import UserError
from tunesmith.export.parity.probes import most_tokens
from tunesmith.inference.vllm_process import Child, find, precision_of
from tunesmith.model.load import config_of, eos_ids
from tunesmith.run import Run

TOLD = 256  # the number of top tokens whose log-probabilities it returns
NAME = "exported"
# A row as long as the model reads is followed by a token that is not looked at.
SETTINGS = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}


def elsewhere(run: Run, folder: Path, settings, say: Callable[[str], None]) -> dict[str, Callable[[], "Vllm"]]:
    """Other engines that open a model folder: vLLM, if it is installed."""
    return {"vLLM": lambda: Vllm(folder, most_tokens(run) + 1, say)} if find() else {}


class Vllm:
    """See engine.Engine. T tokens in, V tokens to choose from; of log probabilities it tells those of TOLD tokens."""

    tells_likelihoods = expresses_all = True

    def __init__(self, folder: Path, context: int, say: Callable[[str], None] = lambda line: None):
        """`context`: most tokens of a text and its answer. Raises UserError if vLLM does not start."""
        config = config_of(folder).get_text_config()
        self._words, self._context = config.vocab_size, context
        self._child = Child(
            [
                str(folder),
                "--served-model-name",
                NAME,
                "--dtype",
                precision_of(folder),
                "--max-model-len",
                str(context),
                "--max-logprobs",
                str(TOLD),
                "--enforce-eager",
                *_share_of_gpu(),
            ],
            "vllm-parity.log",
            SETTINGS,
        )
        self._loop = asyncio.new_event_loop()
        self._client = self._child.client()
        try:
            self._loop.run_until_complete(self._start(say))
            version = self._answer("GET", "/version")["version"]
            self.name = f"vLLM {version}"
            self.stop_ids = {i for i in eos_ids(folder) if self._stops_at(i)}
        except BaseException:
            self.close()
            raise

    async def _start(self, say: Callable[[str], None]) -> None:
        await self._child.start()
        if not await self._child.healthy(self._client, say):
            raise UserError(self._child.failure("did not start"))

    def excuses(self, text: str) -> bool:
        return False

    def encode(self, text: str) -> list[int]:
        return self._tokens(prompt=text)

    def conversation(self, messages: list[dict], tools: list[dict] | None) -> list[int] | None:
        try:
            return self._tokens(
                messages=[_in_json(message) for message in messages], tools=tools, add_generation_prompt=True
            )
        except _Refused:
            return None

    def log_probs(self, ids: list[int]) -> np.ndarray:
        choice = self._complete(ids, 1, prompt_logprobs=min(TOLD, self._words))
        found = np.full((len(ids) - 1, self._words), -np.inf, np.float32)
        for row, told in zip(found, choice["prompt_logprobs"][1:], strict=True):
            row[[int(token) for token in told]] = [one["logprob"] for one in told.values()]
        return found

    def generate(self, ids: list[int], max_new_tokens: int) -> tuple[list[int], bool]:
        choice = self._complete(ids, min(max_new_tokens, self._context - len(ids)))
        answer, stopped = choice["token_ids"], choice["finish_reason"] == "stop"
        return answer[:-1] if stopped else answer, stopped

    def close(self) -> None:
        """Ends vLLM and all that it started."""
        if self._loop.is_closed():
            return
        self._loop.run_until_complete(self._child.stop())
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()
        self._child.close()

    def _stops_at(self, token: int) -> bool:
        """Whether an answer ends where it must write that token."""
        return self._complete([token], 2, logit_bias={str(token): 100.0})["finish_reason"] == "stop"

    def _complete(self, ids: Sequence[int], max_tokens: int, **more) -> dict:
        choice = self._answer(
            "POST",
            "/v1/completions",
            {
                "model": NAME,
                "prompt": list(ids),
                "max_tokens": max_tokens,
                "temperature": 0.0,
                "repetition_penalty": 1.0,
                "return_token_ids": True,
            }
            | more,
        )["choices"][0]
        if choice.get("token_ids") is None:
            raise UserError("this vLLM does not tell token ids; a newer one does")
        return choice

    def _tokens(self, **what) -> list[int]:
        return self._answer("POST", "/tokenize", {"model": NAME, "add_special_tokens": False} | what)["tokens"]

    def _answer(self, method: str, path: str, body: dict | None = None) -> dict:
        try:
            response = self._loop.run_until_complete(self._client.request(method, path, json=body))
        except httpx.TransportError:
            raise UserError(self._child.failure("has broken off")) from None
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise _Refused(f"vLLM does not take what it is asked: {response.text}")
        if response.is_error:
            raise UserError(self._child.failure(f"answers with {response.status_code}"))
        return response.json()


class _Refused(UserError):
    """vLLM does not take what it was sent."""


def _in_json(message: dict) -> dict:
    """As clients send it: the arguments of calls are text."""
    calls = [
        call
        | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in message.get("tool_calls", ())
    ]
    return message | ({"tool_calls": calls} if calls else {})


def _share_of_gpu() -> list[str]:
    """vLLM does not start where less is free of a GPU than it is to take: something else may be on it."""
    if not torch.cuda.is_available():
        return []
    free, whole = torch.cuda.mem_get_info()
    return ["--gpu-memory-utilization", f"{min(0.9, 0.95 * free / whole):.2f}"]
