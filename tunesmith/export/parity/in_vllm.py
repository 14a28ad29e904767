"""A model folder opened in vLLM for the parity gate: one server for it, started as you would start it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tunesmith.export.parity.probes import most_tokens
from tunesmith.export.parity.subject import Generated, one_by_one
from tunesmith.inference.generate import Progress, unheard
from tunesmith.inference.vllm_client import VllmClient, VllmRefusal
from tunesmith.inference.vllm_process import Child, find, precision_of, serve_arguments
from tunesmith.model.load import config_of, eos_ids
from tunesmith.run import Run

NAME = "exported"
MAX_LOGPROBS = 256  # most likely tokens whose log-probabilities vLLM reports
# A row as long as the model's context is followed by a token that is not compared.
SETTINGS = {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}


def elsewhere(run: Run, folder: Path, settings, say: Callable[[str], None]) -> dict[str, Callable[[], "Vllm"]]:
    """Other engines that open a model folder: vLLM, if it is installed."""
    return {"vLLM": lambda: Vllm(folder, most_tokens(run) + 1, say)} if find() else {}


class Vllm:
    """See subject.Engine. It reports log-probabilities of MAX_LOGPROBS tokens, not of the whole vocabulary."""

    tells_likelihoods = expresses_all = True

    def __init__(self, folder: Path, context: int, say: Callable[[str], None] = lambda line: None):
        """`context`: most tokens of a prompt and its answer. Raises UserError if vLLM does not start."""
        self._vocabulary_size, self._context = config_of(folder).get_text_config().vocab_size, context
        arguments = serve_arguments(folder, NAME, precision_of(folder), context)
        arguments += ["--max-logprobs", str(MAX_LOGPROBS), "--enforce-eager", *_share_of_gpu()]
        self._child = Child(arguments, "vllm-parity.log", SETTINGS)
        self.device_bytes = self._child.device_bytes
        self._client = VllmClient(self._child)
        self._runner = asyncio.Runner()
        try:
            self._runner.run(self._client.start(say))
            self.name = f"vLLM {self._runner.run(self._client.version())}"
            self.stop_ids = {token for token in eos_ids(folder) if self._stops_at(token)}
        except BaseException:
            self.close()
            raise

    def excuses(self, text: str) -> bool:
        return False

    def encode(self, text: str) -> list[int]:
        return self._runner.run(self._client.tokenize(NAME, text))

    def conversation(self, messages: list[dict], tools: list[dict] | None) -> list[int] | None:
        try:
            return self._runner.run(self._client.tokenize_conversation(NAME, messages, tools))
        except VllmRefusal:
            return None

    def log_probs(self, ids: list[int]) -> np.ndarray:
        count = min(MAX_LOGPROBS, self._vocabulary_size)
        places = self._runner.run(self._client.prompt_logprobs(NAME, ids, count))
        found = np.full((len(ids) - 1, self._vocabulary_size), -np.inf, np.float32)
        for row, place in zip(found, places, strict=True):
            row[list(place)] = list(place.values())
        return found

    def generate(self, prompts: list[list[int]], max_new_tokens: int, progress: Progress = unheard) -> list[Generated]:
        def answer(ids: list[int]) -> Generated:
            most = min(max_new_tokens, self._context - len(ids))
            completion = self._runner.run(self._client.complete(NAME, ids, most))
            stopped = completion.finish == "stop"
            return Generated(completion.ids[:-1] if stopped else completion.ids, stopped)

        return one_by_one(answer, prompts, progress)

    def close(self) -> None:
        """Ends vLLM and everything that it started."""
        with self._runner:
            self._runner.run(self._child.stop())
            self._runner.run(self._client.close())
        self._child.close()

    def _stops_at(self, token: int) -> bool:
        """Whether an answer ends with that token if a logit bias forces it."""
        return self._runner.run(self._client.complete(NAME, [token], 2, {token: 100.0})).finish == "stop"


def _share_of_gpu() -> list[str]:
    """Returns the option for the share of the GPU that is free: vLLM does not start if it is to take more."""
    if not torch.cuda.is_available():
        return []
    free, whole = torch.cuda.mem_get_info()
    return ["--gpu-memory-utilization", f"{min(0.9, 0.95 * free / whole):.2f}"]
