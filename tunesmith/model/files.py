"""Reads a model folder's files, and only the headers of its safetensors: without torch, and without the weights."""

import json
import math
from pathlib import Path

from tunesmith.data.read import POINTER
from tunesmith.errors import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_POINTER_BYTES = 1024
HEADER_LENGTH_BYTES = 8
FROM_SCRATCH = "To train from scratch: model.initialize: random"


def check_folder(folder: Path, needs_weights: bool) -> None:
    """Raises UserError unless the folder has a config.json and, if `needs_weights`, complete safetensors files."""
    if not (folder / "config.json").exists():
        raise UserError(f"model.path: {folder} has no config.json, so it is not a model folder{_instead(folder)}")
    for file in sorted(folder.iterdir()):
        if _is_pointer(file):
            raise UserError(
                f"model.path: {file} is a git-lfs pointer, not the file itself; run `git lfs pull` in {folder}"
            )
    if needs_weights:
        shapes(folder)


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files that Transformers reads: model.safetensors, or those in the index. Raises UserError
    if one is missing."""
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    index = _json(folder / INDEX)
    if index is None:
        raise UserError(f"model.path: {folder} has neither {WHOLE} nor {INDEX}{_instead(folder)}. {FROM_SCRATCH}")
    files = [folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise UserError(
            f"model.path: {folder}: {INDEX} names {missing[0]}, which is missing"
            f"{f' with {len(missing) - 1} more' if missing[1:] else ''}; download the model again"
        )
    return files


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(folder))


def shapes(folder: Path) -> dict[str, list[int]]:
    """Returns the shape of each tensor in the weight files. Raises UserError for a damaged file."""
    return {name: entry["shape"] for name, entry in _headers(folder).items()}


def masks(folder: Path) -> set[str]:
    """Returns the tensors in the weight files that are not weights: integers, booleans or scalars. Older models saved
    their causal masks this way."""
    return {
        name
        for name, entry in _headers(folder).items()
        if not entry["dtype"].startswith(("F", "BF")) or math.prod(entry["shape"]) == 1
    }


def _headers(folder: Path) -> dict[str, dict]:
    return {name: entry for file in weight_files(folder) for name, entry in _header(file).items()}


def _header(file: Path) -> dict[str, dict]:
    """Returns {tensor: {dtype, shape, data_offsets}}. Raises UserError if the file's length does not match the
    offsets."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(HEADER_LENGTH_BYTES), "little")
        header = _parsed(opened.read(length)) if length < size else None
    if header is None:
        raise UserError(f"model.path: {file} is damaged or not safetensors; download it again")
    header.pop("__metadata__", None)
    expected = HEADER_LENGTH_BYTES + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != expected:
        problem = "cut off" if size < expected else "damaged"
        raise UserError(
            f"model.path: {file} is {problem}: it has {size:,} bytes and should have {expected:,}; download it again"
        )
    return header


def _json(path: Path) -> dict | None:
    """Returns the mapping in a JSON file, or None if there is no file. Raises UserError for any other content."""
    if not path.exists():
        return None
    content = _parsed(path.read_bytes())
    if content is None:
        raise UserError(f"model.path: {path} is damaged: it is not a JSON mapping; download it again")
    return content


def _parsed(header: bytes) -> dict | None:
    try:
        value = json.loads(header)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _is_pointer(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size > LARGEST_POINTER_BYTES:
        return False
    return file.read_bytes().startswith(POINTER)


def _instead(folder: Path) -> str:
    """Explains, for a message, what the folder contains instead of a model, and what to do."""
    adapter = _json(folder / "adapter_config.json")
    if adapter:
        return (
            f", but an adapter of {adapter.get('base_model_name_or_path') or 'another model'}: name that as "
            "model.path, or merge the adapter first"
        )
    if file := next(folder.glob("*.gguf"), None):
        return (
            f", but {file.name}: name that file to train from it, or better, use the safetensors that it was made from"
        )
    if file := next((file for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)), None):
        return f", but {file.name}, which Tunesmith never unpickles: convert it to safetensors first"
    return ""
