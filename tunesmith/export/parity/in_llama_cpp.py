"""A GGUF in llama.cpp as parity asks it."""

from pathlib import Path

import numpy as np
import torch

from tunesmith.export.parity.subject import Generated
from tunesmith.inference.generate import TOGETHER, Progress, generate, unheard
from tunesmith.inference.llama_model import LlamaWeights

TOKENS = 8192  # of sequences computed together


class LlamaCpp:
    """T tokens in, V tokens to choose from. Keys and values are kept in float32, so that what differs is the file."""

    def __init__(self, path: Path, adapter: Path | None = None, context: int = 2048):
        """`adapter`: a LoRA GGUF to lay over the model. `context`: most tokens of a text. Raises UserError."""
        self._weights = LlamaWeights(path, exact=True)
        self.model, self.stop_ids = self._weights.model, self._weights.model.stop_ids
        try:
            self._together = max(1, min(TOGETHER, TOKENS // context))
            room = self._together * context
            self._weights.open_context(room, self._together, step=room)
            self._adapter = self._weights.add(adapter) if adapter else None
        except Exception:
            self.close()
            raise

    @property
    def device_bytes(self) -> dict[str, int | None]:
        """As subject.Engine."""
        return self._weights.device_bytes(kv_bytes=0)

    @property
    def chat_template(self) -> str:
        """The Jinja template that the file carries."""
        return self.model.chat_template()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """As Model.encode."""
        return self.model.encode(text, special)

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, V), float32."""
        return torch.cat([*self._weights.prompt_logits(self._adapter, ids)]).numpy()

    def generate(self, prompts: list[list[int]], max_new_tokens: int, progress: Progress = unheard) -> list[Generated]:
        """As subject.Engine."""
        answers = generate(
            self._weights,
            prompts,
            max_new_tokens=max_new_tokens,
            stop_ids=frozenset(self.stop_ids),
            together=self._together,
            adapter=self._adapter,
            progress=progress,
        )
        return [Generated(answer.text_ids, answer.ended) for (answer,) in answers]

    def close(self) -> None:
        """Gives its memory back."""
        self._weights.close()
