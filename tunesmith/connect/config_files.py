"""Configuration files of other programs: merged into, kept private, written whole."""

import json
import os
import shutil
import tomllib
from pathlib import Path

import yaml

from tunesmith.connect.clients import Client
from tunesmith.errors import UserError, first_line
from tunesmith.files import write_atomic


def write_config(path: Path, client: Client, ours: dict | list, text: str) -> str:
    """Merges ours into the file and says so; a file that cannot be read stays as it is, and `text` is printed."""
    path = path.resolve()  # a link stays a link
    try:
        old = path.read_text("utf-8") if path.exists() else ""
        read, dump = FORMATS[client.format]
        before = read(old) if old.strip() else None
        new = text if before is None else dump(merge(before, ours))
    except (ValueError, yaml.YAMLError, UserError) as error:
        print(text, end="")
        raise UserError(
            f"{path}: not changed, as it is not plain {client.format.upper()} of the expected form "
            f"({first_line(error)}); what belongs there is printed above"
        ) from error
    if new == old:
        return f"{path} has it already."
    return _replace(path, old, new)


def _replace(path: Path, old: str, new: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _write_private(path, new, 0o600)
        return f"Wrote {path}."
    backup = path.with_name(path.name + ".bak")
    shutil.copy2(path, backup)
    _write_private(path, new, path.stat().st_mode & 0o777)
    lost = "; comments are only there" if any(line.lstrip().startswith("#") for line in old.splitlines()) else ""
    return f"Changed {path}; as it was before: {backup.name}{lost}."


def _write_private(path: Path, text: str, mode: int) -> None:
    """As it may hold a key, nobody else can read the file at any time unless `mode` says so."""
    usual = os.umask(0o077)
    try:
        write_atomic(path, text)
    finally:
        os.umask(usual)
    path.chmod(mode)


def merge(old, new):
    """`old` with `new` in it: tables are merged, entries of lists that have the same name are replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merge(old[key], value) if key in old else value for key, value in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        names = [_name(item) for item in new]
        return [item for item in old if _name(item) not in names] + new
    if isinstance(old, dict | list) or isinstance(new, dict | list):
        raise UserError(f"expected a {'list' if isinstance(new, list) else 'table'} instead of {repr(old)[:60]}")
    return new


def _name(item):
    """What an entry of a list is known by."""
    if not isinstance(item, dict):
        return item
    return next((item[key] for key in ("model_id", "id", "name") if key in item), item)


def _dump_toml(table: dict, place: tuple[str, ...] = ()) -> str:
    """Plain values, then the tables; one that holds only tables needs no heading."""
    plain = "".join(
        f"{_toml_key(key)} = {_toml(value)}\n" for key, value in table.items() if not isinstance(value, dict)
    )
    heading = f"\n[{'.'.join(place)}]\n" if place and (plain or not table) else ""
    return (
        heading
        + plain
        + "".join(
            _dump_toml(value, (*place, _toml_key(key))) for key, value in table.items() if isinstance(value, dict)
        )
    )


def _toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_toml_key(key)} = {_toml(inner)}' for key, inner in value.items())}}}"
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def _toml_key(key: str) -> str:
    return key if key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key) else _toml(key)


def _read_env(text: str) -> dict:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in lines:
        if "=" not in line:
            raise ValueError(f"{line!r} is not NAME=value")
    return dict(line.split("=", 1) for line in lines)


FORMATS = {
    "json": (json.loads, lambda value: json.dumps(value, indent=2, ensure_ascii=False) + "\n"),
    "toml": (tomllib.loads, _dump_toml),
    "yaml": (yaml.safe_load, lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True)),
    "env": (_read_env, lambda value: "".join(f"{name}={said}\n" for name, said in value.items())),
}
