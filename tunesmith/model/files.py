"""A model folder's files, read no further than the headers of its safetensors: no torch, none of the weights."""

import json
import math
from pathlib import Path

from tunesmith.data.read import POINTER
from tunesmith.errors import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LARGEST_POINTER_BYTES = 1024
HEADER_LENGTH_BYTES = 8
FROM_NOTHING = "To train from nothing: model.initialize: random"


def check_folder(folder: Path, needs_weights: bool) -> None:
    """Raises UserError unless the folder holds a model's config and, where they are needed, whole safetensors."""
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
    """The safetensors that transformers reads: model.safetensors, or those that the index names. Raises UserError."""
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    index = _json(folder / INDEX)
    if index is None:
        raise UserError(f"model.path: {folder} has neither {WHOLE} nor {INDEX}{_instead(folder)}. {FROM_NOTHING}")
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
    """The shape of each tensor in the weight files. Raises UserError for a file that is damaged."""
    return {name: entry["shape"] for name, entry in _headers(folder).items()}


def masks(folder: Path) -> set[str]:
    """Tensors in the weight files that are no weights: of whole numbers or truth values, or a single number. Older
    models saved their causal masks so."""
    return {
        name
        for name, entry in _headers(folder).items()
        if not entry["dtype"].startswith(("F", "BF")) or math.prod(entry["shape"]) == 1
    }


def _headers(folder: Path) -> dict[str, dict]:
    return {name: entry for file in weight_files(folder) for name, entry in _header(file).items()}


def _header(file: Path) -> dict[str, dict]:
    """{tensor: dtype, shape, data_offsets}. Raises UserError unless the file is as long as they say."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(HEADER_LENGTH_BYTES), "little")
        found = _parsed(opened.read(length)) if length < size else None
    if found is None:
        raise UserError(f"model.path: {file} is damaged or not safetensors; download it again")
    found.pop("__metadata__", None)
    expected = HEADER_LENGTH_BYTES + length + max((entry["data_offsets"][1] for entry in found.values()), default=0)
    if size != expected:
        kind = "cut off" if size < expected else "damaged"
        raise UserError(
            f"model.path: {file} is {kind}: it has {size:,} bytes and should have {expected:,}; download it again"
        )
    return found


def _json(path: Path) -> dict | None:
    """A mapping, or None if there is no such file. Raises UserError for anything else."""
    if not path.exists():
        return None
    found = _parsed(path.read_bytes())
    if found is None:
        raise UserError(f"model.path: {path} is damaged: it is no JSON mapping; download it again")
    return found


def _parsed(header: bytes) -> dict | None:
    try:
        found = json.loads(header)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_pointer(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size > LARGEST_POINTER_BYTES:
        return False
    return file.read_bytes().startswith(POINTER)


def _instead(folder: Path) -> str:
    """What the folder holds in place of a model, and what to do about it."""
    adapter = _json(folder / "adapter_config.json")
    if adapter:
        return (
            f", but an adapter of {adapter.get('base_model_name_or_path') or 'another model'}: name that as "
            "model.path, or merge the adapter first"
        )
    if found := next(folder.glob("*.gguf"), None):
        return f", but {found.name}: name that file to train from it, better the safetensors that it was made from"
    if found := next((file for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)), None):
        return f", but {found.name}, which Tunesmith never unpickles: convert it to safetensors first"
    return ""
