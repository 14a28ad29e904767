"""Files in, raw records out: every kind of file a source may name, as a stream.

Reading is in two steps, so that the second can be done in other processes: `read_lines` yields where each record
stands and its payload, `parse` makes a Raw of it. Memory does not grow with the size of a file, except that a text or
source-code file is one record.
"""

import glob
import hashlib
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tunesmith.data import containers, hub
from tunesmith.data.containers import Payload
from tunesmith.data.rows import Raw, RowProblem, Where
from tunesmith.errors import UserError
from tunesmith.recipe import Source

DATA_ENDINGS = {
    ".jsonl": containers.read_jsonl,
    ".ndjson": containers.read_jsonl,
    ".json": containers.read_json,
    ".csv": containers.read_csv,
    ".tsv": containers.read_csv,
    ".parquet": containers.read_parquet,
    ".arrow": containers.read_arrow,
}
TEXT_ENDINGS = dict.fromkeys(
    (".txt .md .rst .tex .py .pyi .ipynb .js .mjs .ts .jsx .tsx .java .kt .scala .c .h .cc .cpp .hpp .cu .cuh .cs .go "
     ".rs .swift .rb .php .pl .lua .r .jl .hs .ml .ex .exs .erl .clj .lisp .el .sh .bash .zsh .ps1 .sql .html .css "
     ".scss .vue .xml .toml .yaml .yml .ini .cmake .proto .zig .nim .dart .f90 .asm .s .v .sv .vhd").split(),
    containers.read_text,
)
ENDINGS = DATA_ENDINGS | TEXT_ENDINGS
COMPRESSED = (".gz", ".zst")
NOT_COMPRESSED = (".parquet", ".arrow")  # they compress inside, and are read at random places
KNOWN = f"{', '.join(DATA_ENDINGS)} (all but the last two also with .gz or .zst), .txt, .md and source code"


def read(source: Source) -> Iterator[Raw]:
    """Every record of a source, in order; what cannot be read is a Raw with a problem. Raises UserError if there is
    nothing to read."""
    for where, payload in read_lines(source):
        yield parse(where, payload)


def read_lines(source: Source) -> Iterator[tuple[Where, Payload]]:
    """Each record of a source, not yet parsed: the bytes of a JSON line, the columns of any other file, or a problem.
    Raises UserError if there is nothing to read."""
    for path in files(source):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        for line, payload in ENDINGS[ending(path)](path):
            yield Where(str(path), line), payload


def parse(where: Where, payload: Payload) -> Raw:
    """The record that a payload of `read_lines` holds, or its problem. Never raises."""
    if isinstance(payload, bytes):
        payload = containers.parse_json(payload)
    if isinstance(payload, RowProblem):
        return Raw(where, None, payload)
    if not isinstance(payload, dict):
        return Raw(where, None, RowProblem("wrong_shape", f"a {type(payload).__name__}, where an object is expected"))
    return Raw(where, payload)


def files(source: Source) -> list[Path]:
    """The files of a source, sorted; those of a hub dataset are downloaded. Raises UserError if there are none."""
    if source.path.startswith("hub:"):
        return hub.download(source, tuple(DATA_ENDINGS))
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _chosen(source.path, _walk(path))
    if path.exists():
        return [_checked(path)]
    if not glob.has_magic(source.path):
        raise UserError(f"{source.path}: no such file or folder")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    return _chosen(source.path, [file for m in matches for file in (_walk(m) if m.is_dir() else [m])])


def ending(path: Path) -> str | None:
    """The ending that says how a file is read, without that of its compression; None if it is not known."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        suffix = path.with_suffix("").suffix.lower()
        return suffix if suffix in ENDINGS and suffix not in NOT_COMPRESSED else None
    return suffix if suffix in ENDINGS else None


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; read once for as long as size and time of change stay."""
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@cache
def _hash(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(path: Path) -> Path:
    if ending(path) is None:
        raise UserError(f"{path}: unknown ending; known are {KNOWN}")
    return path


def _chosen(name: str, found: list[Path]) -> list[Path]:
    """The data files among those found, or the text files where there are no data files."""
    known = sorted({path for path in found if ending(path)})
    data = [path for path in known if ending(path) in DATA_ENDINGS]
    if not known:
        raise UserError(f"{name}: {'no file there has a known ending' if found else 'nothing matches'}; "
                        f"known are {KNOWN}")
    return data or known


def _walk(folder: Path) -> list[Path]:
    """Every file below a folder that is not hidden."""
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place, name) for name in names if not name.startswith(".")]
    return found


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}")
