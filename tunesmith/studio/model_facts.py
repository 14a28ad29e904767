"""Facts about a model from its files, without torch and Transformers."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.data.splits import front_matter
from tunesmith.errors import UserError
from tunesmith.files import open_file, read_json, stamp
from tunesmith.studio.gguf_header import read_header

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")
LICENCES = {
    "Apache License": "apache-2.0",
    "MIT License": "mit",
    "BSD 3-Clause": "bsd-3-clause",
    "GNU GENERAL PUBLIC LICENSE": "gpl",
    "GNU AFFERO GENERAL PUBLIC LICENSE": "agpl-3.0",
}
MOST_LICENCE = 80  # characters


class Facts(NamedTuple):
    """The facts in a model's files."""

    architecture: str | None = None
    context: int | None = None
    """Most tokens."""
    licence: str | None = None
    quantized: str | None = None
    """How its weights are stored, if they are quantised."""
    base: str | None = None
    """The model that it was made from."""


def facts_of_folder(folder: Path) -> Facts:
    """Reads config.json, adapter_config.json, README.md and LICENSE."""
    files = ("config.json", "adapter_config.json", "README.md")
    return _of_folder(folder, tuple(stamp(folder / name) for name in files))


def facts_of_gguf(file: Path) -> Facts:
    """Reads the metadata of a GGUF file."""
    return _of_gguf(file, stamp(file))


@lru_cache(4096)
def _of_folder(folder: Path, stamps: tuple) -> Facts:
    config, adapter = _mapping(folder / "config.json"), _mapping(folder / "adapter_config.json")
    card = _card(folder)
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    context = next((c[key] for c in (config, inner) for key in CONTEXT_KEYS if isinstance(c.get(key), int)), None)
    names = config.get("architectures") or [config.get("model_type")]
    stored = config.get("quantization_config")
    bases = card.get("base_model")
    base = bases[0] if isinstance(bases, list) and bases else bases
    return Facts(
        architecture=_text(names[0] if isinstance(names, list) and names else None) or _text(adapter.get("peft_type")),
        context=context,
        licence=_licence(folder, card),
        quantized=_text(stored.get("quant_method")) if isinstance(stored, dict) else None,
        base=_text(adapter.get("base_model_name_or_path")) or _text(base),
    )


@lru_cache(4096)
def _of_gguf(file: Path, changed: tuple | None) -> Facts:
    values = read_header(file)
    if values is None:
        return Facts()
    architecture = _text(values.get("general.architecture"))
    context = values.get(f"{architecture}.context_length")
    return Facts(
        architecture=architecture,
        context=context if isinstance(context, int) else None,
        licence=_text(values.get("general.license")),
        base=_text(values.get("general.base_model.0.name")),
    )


def _mapping(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (UserError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _card(folder: Path) -> dict[str, Any]:
    try:
        return front_matter(folder / "README.md")
    except OSError:
        return {}


def _licence(folder: Path, card: dict[str, Any]) -> str | None:
    """The model card's, by its own name if it has one; else what a LICENSE file begins with."""
    said = _text(card.get("license"))
    if said == "other":
        said = _text(card.get("license_name")) or said
    if said:
        return said
    for file in sorted(folder.glob("LICEN[CS]E*")):
        try:
            with open_file(file) as text:
                beginning = text.read(2000).decode("utf-8", "replace")
        except OSError:
            continue
        known = [name for words, name in LICENCES.items() if re.search(rf"(?i){words}", beginning)]
        first = next((line.strip() for line in beginning.splitlines() if line.strip()), None)
        return known[0] if known else first[:MOST_LICENCE] if first else None
    return None


def _text(value: Any) -> str | None:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and value else None
