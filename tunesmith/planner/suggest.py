"""A recipe with sound defaults for a model and its data: short, commented, and runs as it is."""

from pathlib import Path

import yaml

from tunesmith.data.rows import Text
from tunesmith.data.source import resolve as resolve_source
from tunesmith.errors import UserError, quoted
from tunesmith.inference.gguf_base import base_folder
from tunesmith.model.check import check_base
from tunesmith.model.files import weight_bytes
from tunesmith.model.load import config_of, stored_as
from tunesmith.recipe import Adapter, Model, Source

SMALL_PARAMETERS = 100e6  # below this, training every weight is cheap and learns more
ROWS_LOOKED_AT = 1000
STEPS = 8  # an epoch, at least, where there are as many rows
CHARACTERS_PER_TOKEN = 3  # cautious for English, code and most scripts

TEXT = """\
# Check the data with: tunesmith data check {file}
# Run it with:         tunesmith train {file}
# Every field, with its meaning: tunesmith train --help
model:
  path: {model}
data:
  train:{data}{columns}
  sequence_length: {length}    # tokens; longer examples are dropped, and counted in the ledger
  eval_share: {share}          # rows set aside to measure what was learned
method:
  name: {method}               # {method_note}
adapter:
  kind: {kind}                 # {kind_note}
{rank}train:
  epochs: {epochs}
  batch: {batch}               # examples per optimizer step
  learning_rate: {rate}
seed: 0
"""


def recipe_text(model: str, data: str, columns: dict[str, str], file: Path) -> str:
    """A recipe with sound defaults for this model and this data, to be written as `file`. Raises UserError if either
    cannot be used."""
    base = Model(path=model)
    folder = base_folder(base)
    config = config_of(folder)
    small = weight_bytes(folder) < SMALL_PARAMETERS * 2 and not stored_as(config)
    check_base(base, Adapter(kind="full" if small else "lora"), folder, config)
    source = Source(path=data, columns=columns)
    rows, characters, is_text = _look(source)
    longest = getattr(config.get_text_config(), "max_position_embeddings", None) or 2048
    length = min(longest, 2048, max(256, _power_of_two(characters // CHARACTERS_PER_TOKEN)))
    text = TEXT.format(
        file=quoted(file),
        model=_yaml(model),
        data=f"\n    - path: {_yaml(data)}" if columns else f" {_yaml(data)}",
        columns=f"\n      columns: {_yaml(columns)}" if columns else "",
        length=length if not is_text else min(longest, 2048),
        share=0.05,
        method="cpt" if is_text else "sft",
        method_note="continued pretraining on text" if is_text else "answers to prompts",
        kind="full" if small else "lora",
        kind_note="every weight, as the model is small" if small else "a low-rank adapter",
        rank="" if small else "  rank: 16\n  alpha: 32\n",
        epochs=1 if is_text else 3,
        batch=_batch(rows),
        rate="5e-4" if small else "2e-4",
    )
    return _aligned(text)


def _yaml(value: str | dict) -> str:
    """On one line, quoted where YAML would read it otherwise."""
    text = yaml.safe_dump(value, allow_unicode=True, width=2**20, default_flow_style=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _look(source: Source) -> tuple[int, int, bool]:
    """(rows, most characters in a row, whether it is plain text) of the first rows."""
    rows, longest, is_text = 0, 0, False
    for _, row in resolve_source(source).rows():
        if isinstance(row, Exception):
            continue
        rows += 1
        is_text |= isinstance(row, Text)
        longest = max(
            longest,
            len(row.text) if isinstance(row, Text) else sum(len(str(m.get("content") or "")) for m in row.messages),
        )
        if rows == ROWS_LOOKED_AT:
            break
    if not rows:
        raise UserError(f"{source.path}: no usable row; `tunesmith data check {source.path}` says why")
    return rows, longest, is_text


def _batch(rows: int) -> int:
    """Examples per step: 32, or less where few rows would make few steps an epoch."""
    return 32 if rows >= ROWS_LOOKED_AT else max(b for b in (1, 2, 4, 8, 16) if b == 1 or b * STEPS <= rows)


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 1).bit_length()


def _aligned(text: str) -> str:
    """Comments behind values in one column."""
    lines = []
    for line in text.splitlines():
        value, mark, comment = line.partition("  #")
        lines.append(f"{value.rstrip():<34}#{comment}" if mark and value.strip() else line)
    return "\n".join(lines) + "\n"
