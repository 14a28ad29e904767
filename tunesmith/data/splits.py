"""Finds the files of a dataset's subset and split by their names, on the hub and in a folder.

The `configs` in the dataset's README decide. Without them the file names do: data/train-00000-of-00001.parquet,
subset/validation.jsonl, test.csv.
"""

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tunesmith.errors import UserError
from tunesmith.files import read_bytes
from tunesmith.recipe import Source

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
# Files without rows that the datasets library and the hub write, and the library's cache files.
NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "cache-*.arrow", "tmp*.arrow")
Splits = dict[str, list[str]]  # {split: files}


@dataclass(frozen=True)
class Selection:
    """The files of a source. `left_out` describes the data beside them that is not read: "split test (2 files)"."""

    files: list[Path]
    left_out: list[str] = field(default_factory=list)


def other_splits(split: str, splits: Splits) -> list[str]:
    """Describes the splits that were not chosen, for `Selection.left_out`."""
    return [
        f"split {name} ({len(files)} {'file' if len(files) == 1 else 'files'})"
        for name, files in sorted(splits.items())
        if name != split
    ]


def has_rows(name: str) -> bool:
    """Whether a file of this name has rows, and is not a description or a cache of a dataset."""
    return not any(fnmatchcase(PurePosixPath(name).name, pattern) for pattern in NO_ROWS)


def front_matter(path: Path) -> dict:
    """Returns the YAML front matter of a README, or {} if it has none or cannot be parsed."""
    match = re.match(r"---\s*\n(.*?)\n---", read_bytes(path).decode("utf-8", "replace"), re.DOTALL)
    try:
        values = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}  # as on the hub, file names then decide
    return values if isinstance(values, dict) else {}


def choose(source: Source, names: list[str], readme: dict) -> tuple[str, Splits]:
    """Returns the source's split, and the files of all splits of its subset. `names` are the data files, `readme` is
    the README's front matter. Raises UserError with the available names if there is no such subset or split."""
    subsets = by_subset(source, names, readme)
    if not subsets:
        raise UserError(f"{source.path}: has no data files of a known type (dataset scripts are not run)")
    splits = subsets[pick(source.path, "subset", source.subset, subsets, "default")]
    if not any(splits.values()):
        raise UserError(f"{source.path}: its README names files that are not there")
    return pick(source.path, "split", source.split, splits, "train"), splits


def by_subset(source: Source, names: list[str], readme: dict) -> dict[str, Splits]:
    """Groups files by subset and split, by the README's `configs` or else by the file names."""
    configs = readme.get("configs")
    if configs and not (isinstance(configs, list) and all(isinstance(config, dict) for config in configs)):
        raise UserError(f"{source.path}: the `configs` in its README are not a list of mappings")
    return _from_configs(configs, names) if configs else _from_names(names)


def by_split(names: list[str]) -> Splits:
    """Groups files by the split that a word in their path names. A file without such a word belongs to train."""
    splits: Splits = {}
    for name in names:
        words = re.split(r"[-_./ ]", name.lower())
        splits.setdefault(next((SPLITS[w] for w in reversed(words) if w in SPLITS), "train"), []).append(name)
    return splits


def pick(path: str, what: str, requested: str | None, among: dict | list, default: str) -> str:
    """Returns the requested key, else the default or the only one. Raises UserError with the available keys."""
    key = requested or (default if default in among else next(iter(among)) if len(among) == 1 else None)
    if key in among:
        return key
    problem = f"has no {what} {requested!r}" if requested else f"has several {what}s"
    raise UserError(f"{path}: {problem}; set `{what}:` to one of {', '.join(sorted(among))}")


def _from_configs(configs: list[dict], names: list[str]) -> dict[str, Splits]:
    """Groups files by the README's `configs`, where data_files is a pattern, a list of patterns, or a list of {split,
    path: pattern or patterns}."""
    subsets, default = {}, None
    for config in configs:
        name = str(config.get("config_name", "default"))
        folder = f"{config['data_dir']}".strip("/") + "/" if config.get("data_dir") else ""
        inside = [file for file in names if file.startswith(folder)]
        splits: Splits = {}
        for entry in _as_list(config.get("data_files")):
            entry = entry if isinstance(entry, dict) else {"path": entry}
            patterns = [f"{folder}{pattern}" for pattern in _as_list(entry.get("path"))]
            files = splits.setdefault(str(entry.get("split", "train")), [])
            files += [n for n in inside if n not in files and any(_matches(n, p) for p in patterns)]
        subsets[name] = splits or by_split(inside)
        default = name if config.get("default") else default
    return {"default": subsets[default], **subsets} if default else subsets


def _from_names(names: list[str]) -> dict[str, Splits]:
    """Groups files by top folder as the subset, except `data` and folders named after a split."""
    groups: dict[str, list[str]] = {}
    for name in names:
        top, slash, _ = name.partition("/")
        groups.setdefault(top if slash and top != "data" and top not in SPLITS else "default", []).append(name)
    return {subset: by_split(files) for subset, files in groups.items()}


def _matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern. * does not cross a slash, ** does."""
    pattern = pattern.removeprefix("./")
    if "**" in pattern:
        return fnmatchcase(name, pattern.replace("**/", "*").replace("**", "*"))
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _as_list(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]
