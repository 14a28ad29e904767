"""A GGUF in llama.cpp as parity asks it."""

from pathlib import Path

import numpy as np

from tunesmith.inference.llama_cpp import Context, Model, Part


class LlamaCpp:
    """T tokens in, V tokens to choose from. Keys and values are kept in float32, so that what differs is the file."""

    def __init__(self, path: Path, adapter: Path | None = None, context: int = 2048):
        """`adapter`: a LoRA GGUF to lay over the model. `context`: most tokens of a text. Raises UserError."""
        self.model = Model(path)
        self._context: Context | None = None
        try:
            self._context = Context(self.model, context, exact=True)
            if adapter:
                self._context.use(self.model.add_adapter(adapter))
        except Exception:
            self.close()
            raise
        self.stop_ids = self.model.stop_ids

    @property
    def chat_template(self) -> str:
        """The Jinja template that the file carries."""
        return self.model.chat_template()

    def encode(self, text: str, special: bool = True) -> list[int]:
        """As Model.encode."""
        return self.model.encode(text, special)

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, V), float32."""
        self._context.forget(0)
        return self._context.logits([Part(0, 0, ids, range(len(ids)))])

    def generate(self, ids: list[int], max_new_tokens: int) -> tuple[list[int], bool]:
        """Returns the ids of the greedy answer without its stop token, and whether there was one."""
        self._context.forget(0)
        answer: list[int] = []
        fed, at = list(ids), 0
        while len(answer) < max_new_tokens:
            logits = self._context.logits([Part(0, at, fed, [len(fed) - 1])])
            at += len(fed)
            chosen = int(logits[0].argmax())
            if chosen in self.stop_ids:
                return answer, True
            answer.append(chosen)
            fed = [chosen]
        return answer, False

    def close(self) -> None:
        """Gives its memory back."""
        if self._context:
            self._context.close()
        self.model.close()
