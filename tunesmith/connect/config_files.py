"""Merges settings into the configuration files of other programs, atomically and with private permissions."""

import json
import os
import shutil
import tomllib
from pathlib import Path

import yaml

from tunesmith.connect.clients import Client
from tunesmith.errors import UserError, first_line
from tunesmith.files import write_atomic


class Unreadable(UserError):
    """A configuration file that cannot be parsed; the settings that it lacks are to be shown above the message."""


def write_config(path: Path, client: Client, settings: dict | list, text: str) -> str:
    """Merges `settings` into the file, or writes `text` as a new file. Returns what it did. If the file cannot be
    parsed, leaves it unchanged and raises Unreadable."""
    path = path.resolve()  # keeps a symbolic link
    try:
        old = path.read_text("utf-8") if path.exists() else ""
        read, dump = FORMATS[client.format]
        before = read(old) if old.strip() else None
        new = text if before is None else dump(merge(before, settings))
    except (ValueError, yaml.YAMLError, UserError) as error:
        raise Unreadable(
            f"{path}: not changed, because it is not plain {client.format.upper()} of the expected form "
            f"({first_line(error)}); add the settings printed above yourself"
        ) from error
    if new == old:
        return f"{path} has these settings already."
    return _replace(path, old, new)


def _replace(path: Path, old: str, new: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        _write_private(path, new, 0o600)
        return f"Wrote {path}."
    backup = path.with_name(path.name + ".bak")
    shutil.copy2(path, backup)
    _write_private(path, new, path.stat().st_mode & 0o777)
    lost = (
        " (with the comments, which are lost)"
        if any(line.lstrip().startswith("#") for line in old.splitlines())
        else ""
    )
    return f"Changed {path}; the old file is {backup.name}{lost}."


def _write_private(path: Path, text: str, mode: int) -> None:
    """Writes a file that may contain a key. It never has wider permissions than `mode`, not even while it is
    written."""
    usual = os.umask(0o077)
    try:
        write_atomic(path, text)
    finally:
        os.umask(usual)
    path.chmod(mode)


def merge(old, new):
    """Merges `new` into `old`: tables are merged, and entries of lists with the same name are replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merge(old[key], value) if key in old else value for key, value in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        names = [_name(item) for item in new]
        return [item for item in old if _name(item) not in names] + new
    if isinstance(old, dict | list) or isinstance(new, dict | list):
        raise UserError(f"expected a {'list' if isinstance(new, list) else 'table'} instead of {repr(old)[:60]}")
    return new


def _name(item):
    """Returns the name that identifies an entry of a list."""
    if not isinstance(item, dict):
        return item
    return next((item[key] for key in ("model_id", "id", "name") if key in item), item)


def _dump_toml(table: dict, place: tuple[str, ...] = ()) -> str:
    """Formats plain values, then tables. A table that contains only tables needs no heading."""
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
    "env": (_read_env, lambda value: "".join(f"{name}={setting}\n" for name, setting in value.items())),
}
