"""File types by their endings, and the reader of each."""

from pathlib import PurePath

from tunesmith.data import containers

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
    (
        ".txt .md .rst .tex .py .pyi .ipynb .js .mjs .ts .jsx .tsx .java .kt .scala .c .h .cc .cpp .hpp .cu .cuh .cs "
        ".go .rs .swift .rb .php .pl .lua .r .jl .hs .ml .ex .exs .erl .clj .lisp .el .sh .bash .zsh .ps1 .sql .html "
        ".css .scss .vue .xml .toml .yaml .yml .ini .cmake .proto .zig .nim .dart .f90 .asm .s .v .sv .vhd"
    ).split(),
    containers.read_text,
)
ENDINGS = DATA_ENDINGS | TEXT_ENDINGS
COMPRESSED = (".gz", ".zst")
NOT_COMPRESSED = (".parquet", ".arrow")  # compressed internally, and read by random access
KNOWN = f"{', '.join(DATA_ENDINGS)} (all but the last two also with .gz or .zst), .txt, .md and source code"


def ending(path: PurePath) -> str | None:
    """Returns the ending that selects the reader, without the compression's own ending, or None if it is unknown."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        suffix = path.with_suffix("").suffix.lower()
        return suffix if suffix in ENDINGS and suffix not in NOT_COMPRESSED else None
    return suffix if suffix in ENDINGS else None
