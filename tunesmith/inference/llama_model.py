"""GGUF models computed by llama.cpp in this process, with adapters in GGUF laid over them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from tunesmith.errors import UserError
from tunesmith.inference.llama_cpp import Context, Model, gguf_package, llama_cpp
from tunesmith.inference.llama_cpp import Part as Tokens
from tunesmith.inference.loaded_model import Part
from tunesmith.leases import CPU
from tunesmith.machine import find_gpus, memory

BYTES_PER_VALUE = 2  # keys and values are kept in float16
SCORED = 128  # logits of so many tokens of a prompt are computed at once
CONTEXTS = 8  # as many whole ones have room; the memory is taken at the start


class LlamaWeights:
    """See loaded_model.Weights."""

    divides = True

    def __init__(self, path: Path, exact: bool = False):
        """`exact`: computes on the CPU in the plain way, with keys and values in float32. Raises UserError."""
        self.model = Model(path, on_gpu=not exact)
        self._file_bytes = path.stat().st_size  # now, because the file may be deleted once it is read
        library = llama_cpp()
        self.context = library.llama_model_n_ctx_train(self.model.handle)
        self.bytes_per_token = self.model.kv_values_per_token * BYTES_PER_VALUE
        self._exact = exact
        self._on_gpu = bool(not exact and library.llama_supports_gpu_offload() and torch.cuda.is_available())
        self._adapters: dict[str, object] = {}
        self._computing: Context | None = None
        self._free: list[int] = []

    def add(self, path: Path) -> str:
        """Loads one more adapter; returns its name."""
        name = f"adapter{len(self._adapters)}"
        self._adapters[name] = self.model.add_adapter(path)
        return name

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0] if self._on_gpu else memory()[1]

    def device_bytes(self, kv_bytes: int) -> dict[str, int | None]:
        """llama.cpp spreads a model over the GPUs as it decides."""
        gpus = find_gpus()[1]
        nbytes = self._file_bytes + kv_bytes
        if not gpus:
            return {CPU: nbytes}
        return {gpu.uuid: nbytes if len(gpus) == 1 else None for gpu in gpus} if self._on_gpu else {}

    def reserve(self, limit_bytes: int, context: int, sequences: int, step: int) -> tuple[int, str]:
        library, handle = llama_cpp(), self.model.handle
        if (
            library.llama_model_has_encoder(handle)
            or library.llama_model_is_recurrent(handle)
            or library.llama_model_is_hybrid(handle)
        ):
            raise UserError(
                f"{self.model.path}: only models of attention over keys and values are served from a GGUF here; "
                "llama.cpp's own llama-server takes this one, and `tunesmith serve` the model's folder"
            )
        most = library.llama_max_parallel_sequences()
        if sequences > most:
            raise UserError(
                f"--batch: llama.cpp keeps {most} sequences at most, those of prefixes with them; "
                f"take {sequences - most} less"
            )
        tokens = min(CONTEXTS * context, limit_bytes // self.bytes_per_token)
        # A step may go over the limit, which is checked between steps.
        self.open_context(tokens + step, sequences, step)
        where = "a GPU" if self._on_gpu else "cpu"
        return tokens, f"llama.cpp in this process, {where}, {self.model.description}"

    def open_context(self, tokens: int, sequences: int, step: int) -> None:
        """Makes room for so many sequences that share `tokens` places; at most `step` are computed at once. Raises
        UserError."""
        self._computing = Context(self.model, tokens, sequences, step, self._exact)
        self._free = list(range(sequences))

    def new_kv(self) -> "Slot":
        return Slot(self, self._free.pop())

    def kv_maker(self, sequences: int, tokens: int) -> Callable[[], "Slot"]:
        return self.new_kv

    def logits(self, adapter: str | None, parts: list[Part]) -> torch.Tensor:
        return torch.from_numpy(self._computing.logits(self._tokens(adapter, parts)))

    def embedding(self, adapter: str | None, ids: list[int]) -> list[float]:
        context = Context(self.model, len(ids), exact=self._exact)
        try:
            context.use(self._adapters.get(adapter))
            mean = context.embeddings([Tokens(0, 0, ids, range(len(ids)))]).mean(0)
            return (mean / np.linalg.norm(mean)).tolist()
        finally:
            context.close()

    def prompt_logits(self, adapter: str | None, ids: list[int]) -> Iterator[torch.Tensor]:
        context = Context(self.model, len(ids), batch=SCORED, exact=self._exact)
        try:
            context.use(self._adapters.get(adapter))
            for at in range(0, len(ids), SCORED):
                part = ids[at : at + SCORED]
                yield torch.from_numpy(context.logits([Tokens(0, at, part, range(len(part)))]))
        finally:
            context.close()

    def close(self) -> None:
        if self._computing:
            self._computing.close()
        self.model.close()

    def _tokens(self, adapter: str | None, parts: list[Part]) -> list[Tokens]:
        self._computing.use(self._adapters.get(adapter))
        for part in parts:
            part.kv.tokens = part.at + len(part.ids)
        return [Tokens(part.kv.number, part.at, part.ids, [len(part.ids) - 1] if part.last else []) for part in parts]

    def _head(self, slot: "Slot", tokens: int) -> "Slot":
        head = self.new_kv()
        self._computing.copy(slot.number, head.number, tokens)
        head.tokens = tokens
        return head

    def _forget(self, slot: "Slot") -> None:
        self._computing.forget(slot.number)
        self._free.append(slot.number)


class Slot:
    """See loaded_model.KV: one of llama.cpp's sequences."""

    def __init__(self, weights: LlamaWeights, number: int):
        self.number, self.tokens = number, 0
        self._weights = weights

    @property
    def nbytes(self) -> int:
        return self.tokens * self._weights.bytes_per_token

    def head(self, tokens: int) -> "Slot":
        return self._weights._head(self, tokens)

    def free(self) -> None:
        self._weights._forget(self)
        self.tokens = 0


def is_adapter(path: Path) -> bool:
    """Whether a GGUF is an adapter to lay over a model. Raises UserError."""
    try:
        field = gguf_package().GGUFReader(path).get_field("general.type")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a GGUF file that can be read: {error}") from None
    return field is not None and field.contents() == "adapter"
