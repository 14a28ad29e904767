"""The first metadata of a GGUF file. It is read without the package gguf, which is not always installed and reads the
whole vocabulary and all tensors, which takes seconds."""

import struct
from pathlib import Path
from typing import IO, Any

from tunesmith.files import open_file

MAGIC = b"GGUF"
MOST_KEYS = 256  # general keys and those of the architecture come first
MOST_TEXT = 1 << 20  # bytes of one text
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
STOP = "tokenizer."  # keys from which on there is nothing that is needed, and much


def read_header(file: Path) -> dict[str, Any] | None:
    """The texts and numbers before the vocabulary; None if it is no GGUF file, or a damaged one."""
    values: dict[str, Any] = {}
    try:
        with open_file(file) as stream:
            if stream.read(4) != MAGIC:
                return None
            version, _, keys = _numbers(stream, "IQQ")
            if version not in (2, 3):
                return None
            for _ in range(min(keys, MOST_KEYS)):
                key = _text(stream)
                if key.startswith(STOP):
                    break
                value = _value(stream, _numbers(stream, "I")[0])
                if value is not None:
                    values[key] = value
    except (OSError, OverflowError, struct.error, ValueError):
        return None
    return values


def _numbers(stream: IO[bytes], kinds: str) -> tuple[Any, ...]:
    layout = struct.Struct(f"<{kinds}")
    return layout.unpack(stream.read(layout.size))


def _text(stream: IO[bytes]) -> str:
    (length,) = _numbers(stream, "Q")
    data = stream.read(length) if length <= MOST_TEXT else b""
    if len(data) != length:
        raise ValueError("cut off")
    return data.decode("utf-8", "replace")


def _value(stream: IO[bytes], kind: int) -> Any:
    """A text or a number; None for an array, which is skipped."""
    if kind == TEXT:
        return _text(stream)
    if kind != ARRAY:
        return _numbers(stream, _number_kind(kind))[0]
    inner, count = _numbers(stream, "IQ")
    if inner == TEXT:
        for _ in range(min(count, MOST_TEXT)):
            _text(stream)
    else:
        stream.seek(struct.calcsize(f"<{_number_kind(inner)}") * count, 1)
    return None


def _number_kind(kind: int) -> str:
    if kind not in NUMBERS:
        raise ValueError(f"unknown kind {kind}")
    return NUMBERS[kind]
