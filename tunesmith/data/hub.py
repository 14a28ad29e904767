"""Datasets of the Hugging Face hub, as the data files they hold. No script of a dataset is ever run.

Which files make a subset and split is said by the `configs` of the dataset's README, or else by their names:
data/train-00000-of-00001.parquet, subset/validation.jsonl, test.csv.
"""

import re
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path, PurePosixPath

import yaml

from tunesmith.errors import UserError, first_line
from tunesmith.recipe import Source

SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}
COMPRESSED = (".gz", ".zst")
Splits = dict[str, list[str]]  # files by the split they belong to


def download(source: Source, endings: tuple[str, ...]) -> list[Path]:
    """The files of the source's subset and split, in the hub's cache; honours HF_ENDPOINT and HF_HUB_OFFLINE.
    Raises UserError if the dataset, the subset or the split cannot be had."""
    from huggingface_hub import hf_hub_download

    name = source.path.removeprefix("hub:")
    with _hub_errors(source.path):
        fetch = partial(hf_hub_download, name, repo_type="dataset", revision=source.revision)
        names = _list(name, source.revision)
        readme = _readme(fetch("README.md")) if "README.md" in names else {}
        chosen = choose(source, [n for n in names if _is_data(n, endings)], readme)
        return [Path(fetch(file)) for file in chosen]


def pinned(source: Source) -> Source:
    """The source with the commit that its revision, by default the main branch, is now. Raises UserError."""
    if not source.path.startswith("hub:"):
        return source
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    name = source.path.removeprefix("hub:")
    with _hub_errors(source.path):
        if HF_HUB_OFFLINE:
            return source.model_copy(update={"revision": _cached(name, source.revision).name})
        now = HfApi().dataset_info(name, revision=source.revision)
        if small := {".gitattributes", "README.md"} & {file.rfilename for file in now.siblings}:
            # Asked for by the branch, so that the cache knows offline what the branch was.
            hf_hub_download(name, min(small), repo_type="dataset", revision=source.revision)
    return source.model_copy(update={"revision": now.sha})


@contextmanager
def _hub_errors(path: str):
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        yield
    except (HFValidationError, HTTPError, OSError) as error:
        raise UserError(f"{path}: cannot get it from the hub: {first_line(error)}") from None


def choose(source: Source, names: list[str], readme: dict) -> list[str]:
    """The data files among `names` that make the source's subset and split, sorted. `readme`: its front matter."""
    configs = readme.get("configs")
    if configs and not (isinstance(configs, list) and all(isinstance(config, dict) for config in configs)):
        raise UserError(f"{source.path}: the `configs` of its README are no list of mappings")
    subsets = _from_configs(configs, names) if configs else _from_names(names)
    if not subsets:
        raise UserError(f"{source.path}: has no data files of a known kind (datasets made by a script are not run)")
    splits = subsets[_pick(source.path, "subset", source.subset, subsets, "default")]
    if not any(splits.values()):
        raise UserError(f"{source.path}: its README names files that are not there")
    return sorted(splits[_pick(source.path, "split", source.split, splits, "train")])


@cache
def _list(name: str, revision: str | None) -> list[str]:
    """Paths of the dataset's files, from the hub or, offline, from the cache."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not HF_HUB_OFFLINE:
        return HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
    folder = _cached(name, revision)
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _cached(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))


def _is_data(name: str, endings: tuple[str, ...]) -> bool:
    path = PurePosixPath(name)
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix in endings


def _readme(path: str) -> dict:
    """The front matter of a README, or {} if it has none that can be read."""
    match = re.match(r"---\s*\n(.*?)\n---", Path(path).read_text("utf-8", "replace"), re.DOTALL)
    try:
        values = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        return {}  # the hub itself then goes by the names
    return values if isinstance(values, dict) else {}


def _from_configs(configs: list[dict], names: list[str]) -> dict[str, Splits]:
    """As the README says: data_files is a pattern, patterns, or a list of {split, path: pattern or patterns}."""
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
        subsets[name] = splits or _by_split(inside)
        default = name if config.get("default") else default
    return {"default": subsets[default], **subsets} if default else subsets


def _from_names(names: list[str]) -> dict[str, Splits]:
    """Subsets are the top folders, but for `data` and those named after a split."""
    groups: dict[str, list[str]] = {}
    for name in names:
        top, slash, _ = name.partition("/")
        groups.setdefault(top if slash and top != "data" and top not in SPLITS else "default", []).append(name)
    return {subset: _by_split(files) for subset, files in groups.items()}


def _by_split(names: list[str]) -> Splits:
    """Files by the split that a word of their path names; all are train where none names one."""
    splits: Splits = {}
    for name in names:
        words = re.split(r"[-_./ ]", name.lower())
        splits.setdefault(next((SPLITS[w] for w in reversed(words) if w in SPLITS), "train"), []).append(name)
    return splits


def _matches(name: str, pattern: str) -> bool:
    """Whether a path matches a pattern in which * stays within a folder and ** does not."""
    pattern = pattern.removeprefix("./")
    if "**" in pattern:
        return fnmatchcase(name, pattern.replace("**/", "*").replace("**", "*"))
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _as_list(value) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _pick(path: str, what: str, asked: str | None, among: dict, default: str) -> str:
    """The key that is asked for, or the default or only one. Raises UserError naming those there are."""
    key = asked or (default if default in among else next(iter(among)) if len(among) == 1 else None)
    if key in among:
        return key
    found = f"has no {what} {asked!r}" if asked else f"has several {what}s"
    raise UserError(f"{path}: {found}; say `{what}:` one of {', '.join(sorted(among))}")
