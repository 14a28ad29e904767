"""A GGUF in llama.cpp itself, in this process."""

import ctypes
import os
from pathlib import Path

import numpy as np

from tunesmith.errors import UserError
from tunesmith.export.gguf.packages import llama_cpp, reason, threads

F32 = 0  # ggml's number of the type


class LlamaCpp:
    """T tokens in, V tokens to choose from. Keys and values are kept in float32, so that what differs is the file."""

    def __init__(self, path: Path, adapter: Path | None = None, context: int = 2048):
        """`adapter`: a LoRA GGUF to lay over the model. `context`: most tokens of a text. Raises UserError."""
        self._library = library = llama_cpp()
        self._model = self._context = None
        options = library.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = library.llama_model_load_from_file(os.fsencode(path), options)
        if not self._model:
            raise UserError(f"{path}: llama.cpp cannot read it: {reason()}")
        settings = library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = context
        settings.n_threads = settings.n_threads_batch = threads()
        settings.type_k = settings.type_v = F32
        settings.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = library.llama_init_from_model(self._model, settings)
        if not self._context:
            self.close()
            raise UserError(f"{path}: llama.cpp has no room for {context} tokens: {reason()}")
        self._limit = context
        self._vocabulary = library.llama_model_get_vocab(self._model)
        self._size = library.llama_vocab_n_tokens(self._vocabulary)
        self.stop_ids = {i for i in range(self._size) if library.llama_vocab_is_eog(self._vocabulary, i)}
        """Tokens at which llama.cpp stops."""
        if adapter:
            self._lay(adapter)

    @property
    def chat_template(self) -> str:
        """The Jinja template that the file carries."""
        return (self._library.llama_model_chat_template(self._model, None) or b"").decode()

    def _lay(self, adapter: Path) -> None:
        loaded = self._library.llama_adapter_lora_init(self._model, os.fsencode(adapter))  # freed with the model
        if not loaded:
            self.close()
            raise UserError(f"{adapter}: llama.cpp cannot lay it over the model: {reason()}")
        one = (self._library.llama_adapter_lora_p_ctypes * 1)(loaded)
        self._library.llama_set_adapters_lora(self._context, one, 1, (ctypes.c_float * 1)(1.0))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids; adds none. `special`: what spells a special token is that token; say False for what a user typed."""
        given = text.encode()
        room = len(given) + 16
        found = (self._library.llama_token * room)()
        count = self._library.llama_tokenize(self._vocabulary, given, len(given), found, room, False, special)
        return list(found[:count])

    def logits(self, ids: list[int]) -> np.ndarray:
        """(T, V), float32."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        self._decode(ids, 0, range(len(ids)))
        return np.stack([self._logits_at(position) for position in range(len(ids))])

    def generate(self, ids: list[int], max_new_tokens: int) -> tuple[list[int], bool]:
        """The likeliest answer's ids without the token that stops it, and whether one did."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        answer: list[int] = []
        fed, at = list(ids), 0
        while len(answer) < max_new_tokens:
            self._decode(fed, at, [len(fed) - 1])
            at += len(fed)
            chosen = int(self._logits_at(len(fed) - 1).argmax())
            if chosen in self.stop_ids:
                return answer, True
            answer.append(chosen)
            fed = [chosen]
        return answer, False

    def close(self) -> None:
        """Gives its memory back."""
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._model = self._context = None

    def _decode(self, ids: list[int], at: int, wanted) -> None:
        """Reads tokens that stand from position `at` on; logits are kept for the `wanted` of them."""
        if at + len(ids) > self._limit:
            raise UserError(f"{at + len(ids)} tokens do not fit into a context of {self._limit}")
        batch = self._library.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for position, token in enumerate(ids):
                batch.token[position], batch.pos[position] = token, at + position
                batch.n_seq_id[position], batch.seq_id[position][0] = 1, 0
                batch.logits[position] = 0
            for position in wanted:
                batch.logits[position] = 1
            if self._library.llama_decode(self._context, batch):
                raise RuntimeError(f"llama.cpp: {reason()}")
        finally:
            self._library.llama_batch_free(batch)

    def _logits_at(self, position: int) -> np.ndarray:
        pointer = self._library.llama_get_logits_ith(self._context, position)
        return np.ctypeslib.as_array(pointer, shape=(self._size,)).copy()
