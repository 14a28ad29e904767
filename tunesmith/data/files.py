"""The files of a source: a file, those that a pattern matches, a dataset of the hub, or those of a folder that hold its
rows.

A folder may be what `save_to_disk` of the datasets library wrote, whose own lists decide; a clone of a hub dataset,
whose README decides; or any other, whose files of the split train are read, as their names tell.
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.data import hub
from tunesmith.data.file_types import DATA_ENDINGS, KNOWN, ending
from tunesmith.data.splits import Selection, by_split, choose, front_matter, has_rows, other_splits, pick
from tunesmith.errors import UserError, first_line
from tunesmith.recipe import Source


def select(source: Source) -> Selection:
    """The files of a source, sorted; those of a hub dataset are downloaded. Raises UserError if there are none."""
    if source.path.startswith("hub:"):
        return hub.download(source)
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _of_folders(source, [path])
    if path.exists():
        _refuse_split(source)
        return Selection([_checked(path)])
    if not glob.has_magic(source.path):
        raise UserError(f"{source.path}: no such file or folder")
    return _of_pattern(source, [Path(match) for match in glob.glob(str(path), recursive=True)])


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; read once for as long as size and time of change stay."""
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@cache
def _hash(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_pattern(source: Source, matches: list[Path]) -> Selection:
    """Selects among the files and folders that match a pattern. The files of a folder are chosen as for that folder."""
    folders = {match for match in matches if match.is_dir()}
    single = [match for match in matches if match not in folders and folders.isdisjoint(match.parents)]
    single = [match for match in single if ending(match) and has_rows(match.name)]
    if single:
        _refuse_split(source)
    return _of_folders(source, [folder for folder in folders if folders.isdisjoint(folder.parents)], single)


def _of_folders(source: Source, folders: list[Path], single: Sequence[Path] = ()) -> Selection:
    """The data files of folders and single ones, or their text files where there are no data files."""
    selected, text, found = [], [], list(single)
    for folder in sorted(folders):
        plain = []
        for place, names in _walk(folder):
            found += [place / name for name in names]
            if _is_saved(names):
                selected.append(_saved(source, place))
            else:
                plain += [place / name for name in names if ending(place / name)]
        rows = [path for path in plain if _is_data(path)]
        selected += [_named(source, folder, rows)] if rows else []
        text += [path for path in plain if not _is_data(path)]
    data = {*filter(_is_data, single), *(path for selection in selected for path in selection.files)}
    if not data and (source.split or source.subset):
        raise UserError(f"{source.path}: has no data files to choose a split or subset of")
    if not data | {*text, *single}:
        raise UserError(
            f"{source.path}: {'no file there has a known ending' if found else 'nothing matches'}; known are {KNOWN}"
        )
    return Selection(sorted(data or {*text, *single}), [what for chosen in selected for what in chosen.left_out])


def _named(source: Source, folder: Path, data: list[Path]) -> Selection:
    """Selects the files of the source's subset and split, by the `configs` of a README or else by their names. Without
    either, all folders are one subset."""
    names = {path.relative_to(folder).as_posix(): path for path in data}
    rows = sorted(filter(has_rows, names))
    readme = front_matter(folder / "README.md") if (folder / "README.md").is_file() else {}
    if readme.get("configs") or source.subset:
        split, splits = choose(source, rows, readme)
    else:
        splits = by_split(rows)
        split = pick(source.path, "split", source.split, splits, "train") if splits else ""
    others = len(rows) - len({name for files in splits.values() for name in files})
    left_out = other_splits(split, splits) + ([f"files of other subsets ({others})"] if others else [])
    return Selection([names[name] for name in splits.get(split, [])], left_out + sorted(names.keys() - {*rows}))


def _saved(source: Source, folder: Path) -> Selection:
    """Selects the files that `save_to_disk` wrote: a dataset, or a folder for each of its splits."""
    if source.subset:
        raise UserError(f"{folder}: is one dataset without subsets; leave out `subset:`")
    listed = folder / "dataset_dict.json"
    if not listed.exists():
        chosen = _read_json(folder / "state.json").get("_split")
        if source.split and source.split != chosen:
            raise UserError(f"{folder}: has no split {source.split!r}, only {chosen or 'one without a name'}")
        return _saved_files(folder)
    splits = _read_json(listed).get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(s, str) and s == Path(s).name for s in splits):
        raise UserError(f"{listed}: names no splits; save the dataset again")
    split = pick(str(folder), "split", source.split, splits, "train")
    chosen = _saved_files(folder / split)
    return Selection(chosen.files, [f"split {name}" for name in splits if name != split] + chosen.left_out)


def _saved_files(folder: Path) -> Selection:
    """The Arrow files that a saved dataset's state names; others there are caches."""
    state = _read_json(folder / "state.json")
    arrow = {path.name: path for path in folder.glob("*.arrow")}
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder}: an old version of datasets saved an index of its rows apart; load the dataset with "
            "datasets and save it again"
        )
    listed = state.get("_data_files")
    names = [file.get("filename") for file in listed] if _are_mappings(listed) else sorted(filter(has_rows, arrow))
    if missing := [name for name in names if name not in arrow]:
        raise UserError(f"{folder}: has no file {missing[0]!r}, which its state.json names; copy the whole folder")
    return Selection([arrow[name] for name in names], sorted(arrow.keys() - {*names}))


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from None
    return value if isinstance(value, dict) else {}


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _is_data(path: Path) -> bool:
    return ending(path) in DATA_ENDINGS


def _is_saved(names: list[str]) -> bool:
    """Whether a folder of these files was written by `save_to_disk`."""
    return "dataset_dict.json" in names or ("state.json" in names and any(name.endswith(".arrow") for name in names))


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from this one down, with its files; hidden ones aside. A saved dataset's own folders are not
    entered."""
    for place, folders, names in os.walk(folder, onerror=_refuse):
        names = [name for name in names if not name.startswith(".")]
        folders[:] = [] if _is_saved(names) else sorted(name for name in folders if not name.startswith("."))
        yield Path(place), names


def _checked(path: Path) -> Path:
    if ending(path) is None:
        raise UserError(f"{path}: unknown ending; known are {KNOWN}")
    return path


def _refuse_split(source: Source) -> None:
    if source.split or source.subset:
        raise UserError(
            f"{source.path}: split and subset choose among the files of a folder or a hub dataset; leave "
            "them out for a single file"
        )


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")
