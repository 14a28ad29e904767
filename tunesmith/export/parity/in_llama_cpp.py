"""A GGUF in llama.cpp as parity asks it."""

from pathlib import Path

import numpy as np
import torch

from tunesmith.inference.generate import generate
from tunesmith.inference.llama_model import LlamaWeights


class LlamaCpp:
    """T tokens in, V tokens to choose from. Keys and values are kept in float32, so that what differs is the file."""

    def __init__(self, path: Path, adapter: Path | None = None, context: int = 2048):
        """`adapter`: a LoRA GGUF to lay over the model. `context`: most tokens of a text. Raises UserError."""
        self._weights = LlamaWeights(path, exact=True)
        self.model, self.stop_ids = self._weights.model, self._weights.model.stop_ids
        try:
            self._weights.open_context(context, sequences=1, step=context)
            self._adapter = self._weights.add(adapter) if adapter else None
        except Exception:
            self.close()
            raise

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

    def generate(self, ids: list[int], max_new_tokens: int) -> tuple[list[int], bool]:
        """Returns the ids of the greedy answer without its stop token, and whether there was one."""
        ((answer,),) = generate(
            self._weights,
            [ids],
            max_new_tokens=max_new_tokens,
            stop_ids=frozenset(self.stop_ids),
            adapter=self._adapter,
        )
        return answer.text_ids, answer.ended

    def close(self) -> None:
        """Gives its memory back."""
        self._weights.close()
