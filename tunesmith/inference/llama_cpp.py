"""GGUF files in llama.cpp itself, in this process, through llama-cpp-python, which is in the extra `gguf`.

T tokens in, N of them asked about, V tokens to choose from.
"""

import ctypes
import importlib
import os
from collections import deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tunesmith.errors import UserError, first_line

HOW = "pip install 'tunesmith[gguf]'"
F32, F16 = 0, 1  # ggml's numbers of the types
said: deque[str] = deque(maxlen=40)
"""The last warnings and errors of llama.cpp, which it does not print."""


def gguf_package():
    """The package that reads and writes the format. Raises UserError."""
    return _imported("gguf", "GGUF files")


@cache
def llama_cpp():
    """llama.cpp's C interface. Raises UserError."""
    library = _imported("llama_cpp", "running GGUF files and the K-quants")
    library.llama_log_set(_listener(library), None)
    library.llama_backend_init()
    return library


def reason() -> str:
    """Why llama.cpp's last call failed, as it said it."""
    return said[-1] if said else "it gave no reason"


def threads() -> int:
    """Returns the threads for llama.cpp: as many as OMP_NUM_THREADS gives torch, else one for each core."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


@cache
def _listener(library):
    """Kept by the cache: llama.cpp calls it as long as the process lives."""
    warning, error = 2, 3

    @library.llama_log_callback
    def listen(level, text, _):
        if level in (warning, error):
            said.append(first_line(text.decode("utf-8", "replace")))

    return listen


def _imported(name: str, what: str):
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        why = f"needs the package {name.replace('llama_cpp', 'llama-cpp-python')}" if missing else first_line(error)
        raise UserError(f"{what}: {why}; {HOW}") from None


class Model:
    """A file that llama.cpp has read."""

    def __init__(self, path: Path, on_gpu: bool = False):
        """`on_gpu`: computes on a GPU where llama.cpp was built for one. Raises UserError."""
        self.path = path
        self._library = library = llama_cpp()
        options = library.llama_model_default_params()
        if not on_gpu:
            options.n_gpu_layers = 0
        self.handle = library.llama_model_load_from_file(os.fsencode(path), options)
        if not self.handle:
            raise UserError(f"{path}: llama.cpp cannot read it: {reason()}")
        self.vocabulary = library.llama_model_get_vocab(self.handle)
        self.vocab_size = library.llama_vocab_n_tokens(self.vocabulary)
        self.stop_ids = {i for i in range(self.vocab_size) if library.llama_vocab_is_eog(self.vocabulary, i)}
        """Tokens at which llama.cpp stops."""

    def close(self) -> None:
        """Gives its memory back, and that of its adapters."""
        if self.handle:
            self._library.llama_model_free(self.handle)
        self.handle = None

    @property
    def description(self) -> str:
        """Architecture, size and kind of weights, for people."""
        room = ctypes.create_string_buffer(256)
        self._library.llama_model_desc(self.handle, room, len(room))
        return room.value.decode("utf-8", "replace")

    def metadata(self, key: str) -> str | None:
        """A value of the file's head as text."""
        room = ctypes.create_string_buffer(4096)
        length = self._library.llama_model_meta_val_str(self.handle, key.encode(), room, len(room))
        return None if length < 0 else room.value.decode("utf-8", "replace")

    def chat_template(self, name: str | None = None) -> str:
        """The Jinja template that the file carries, or another of its templates by name; "" if there is none."""
        found = self._library.llama_model_chat_template(self.handle, None if name is None else name.encode())
        return (found or b"").decode()

    def add_adapter(self, path: Path):
        """A LoRA GGUF to use in a context of this model. Raises UserError."""
        loaded = self._library.llama_adapter_lora_init(self.handle, os.fsencode(path))  # freed with the model
        if not loaded:
            raise UserError(f"{path}: llama.cpp cannot lay it over {self.path}: {reason()}")
        return loaded

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids; adds none. `special`: what spells a special token is that token; say False for what a user typed."""
        given = text.encode()
        room = len(given) + 16
        found = (self._library.llama_token * room)()
        count = self._library.llama_tokenize(self.vocabulary, given, len(given), found, room, False, special)
        return list(found[:count])

    def piece(self, token: int) -> bytes:
        """A token as text; of a character of several tokens a part."""
        room = ctypes.create_string_buffer(64)
        length = self._library.llama_token_to_piece(self.vocabulary, token, room, len(room), 0, True)
        if length < 0:  # that is how much room it needs
            room = ctypes.create_string_buffer(-length)
            length = self._library.llama_token_to_piece(self.vocabulary, token, room, len(room), 0, True)
        return room.raw[:length]

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that keys and values of a token take in all layers."""
        library, handle = self._library, self.handle
        heads = library.llama_model_n_head_kv(handle)
        width = library.llama_model_n_embd(handle) // max(1, library.llama_model_n_head(handle))
        family = self.metadata("general.architecture")
        widths = [int(self.metadata(f"{family}.attention.{which}_length") or width) for which in ("key", "value")]
        return library.llama_model_n_layer(handle) * heads * sum(widths)


class Part(NamedTuple):
    """New tokens `ids` of a sequence that has `at` tokens; `wanted` are the places whose logits are returned."""

    sequence: int
    at: int
    ids: Sequence[int]
    wanted: Sequence[int]


class Context:
    """Sequences of one model, each with its keys and values; they share `tokens` places."""

    def __init__(self, model: Model, tokens: int, sequences: int = 1, batch: int | None = None, exact: bool = False):
        """`batch`: most new tokens of a call, all if not said. `exact`: keys and values are kept in float32 instead of
        float16, and attention is computed in the plain way. Raises UserError."""
        self._library = library = llama_cpp()
        self._model, self.tokens = model, tokens
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_seq_max = tokens, batch or tokens, sequences
        settings.n_threads = settings.n_threads_batch = threads()
        settings.kv_unified = True
        settings.pooling_type = library.LLAMA_POOLING_TYPE_NONE
        settings.type_k = settings.type_v = F32 if exact else F16
        if exact:
            settings.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._handle = library.llama_init_from_model(model.handle, settings)
        if not self._handle:
            raise UserError(f"{model.path}: llama.cpp has no room for {tokens:,} tokens: {reason()}")
        self._memory = library.llama_get_memory(self._handle)
        self._adapter = None

    def close(self) -> None:
        if self._handle:
            self._library.llama_free(self._handle)
        self._handle = None

    def use(self, adapter) -> None:
        """Switches to one of the model's adapters, or with None to the base."""
        if adapter == self._adapter:
            return
        one = (self._library.llama_adapter_lora_p_ctypes * 1)(adapter)
        scale = (ctypes.c_float * 1)(1.0)
        self._library.llama_set_adapters_lora(self._handle, one, int(adapter is not None), scale)
        self._adapter = adapter

    def forget(self, sequence: int) -> None:
        self._library.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Lets a sequence begin with the first tokens of another; they take no more room."""
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, tokens)

    def logits(self, parts: Sequence[Part]) -> np.ndarray:
        """(N, V), float32: what follows each wanted token, in their order. Raises UserError."""
        places = self._decode(parts)
        found = [self._library.llama_get_logits_ith(self._handle, place) for place in places]
        return _stacked(found, self._model.vocab_size)

    def embeddings(self, parts: Sequence[Part]) -> np.ndarray:
        """(N, width), float32: the last hidden state of each wanted token. Raises UserError."""
        self._library.llama_set_embeddings(self._handle, True)
        try:
            places = self._decode(parts)
            found = [self._library.llama_get_embeddings_ith(self._handle, place) for place in places]
            return _stacked(found, self._library.llama_model_n_embd(self._model.handle))
        finally:
            self._library.llama_set_embeddings(self._handle, False)

    def _decode(self, parts: Sequence[Part]) -> list[int]:
        """Computes, and returns where in the batch the wanted tokens stand."""
        count = sum(len(part.ids) for part in parts)
        if count + max(part.at for part in parts) > self.tokens:
            raise UserError(f"{self._model.path}: {count:,} more tokens do not fit into a context of {self.tokens:,}")
        batch = self._library.llama_batch_init(count, 0, 1)
        try:
            places, n = [], 0
            for part in parts:
                wanted = set(part.wanted)
                for offset, token in enumerate(part.ids):
                    batch.token[n], batch.pos[n], batch.logits[n] = token, part.at + offset, offset in wanted
                    batch.n_seq_id[n], batch.seq_id[n][0] = 1, part.sequence
                    places += [n] if offset in wanted else []
                    n += 1
            batch.n_tokens = n
            if self._library.llama_decode(self._handle, batch):
                raise RuntimeError(f"llama.cpp: {reason()}")
            return places
        finally:
            self._library.llama_batch_free(batch)


def _stacked(rows: list, width: int) -> np.ndarray:
    """A copy of rows that llama.cpp writes over the next time."""
    if not rows:
        return np.empty((0, width), np.float32)
    return np.stack([np.ctypeslib.as_array(row, shape=(width,)) for row in rows])
