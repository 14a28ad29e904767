"""Reading: every container gives the same rows, damage is one problem and never an exception, lines are the real ones."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from tunesmith.data import hub
from tunesmith.data.ledger import Ledger
from tunesmith.data.read import DATA_ENDINGS, content_hash, files, parse, read, read_lines
from tunesmith.data.rows import REASONS, Chat, RowProblem, Where
from tunesmith.data.source import rows_of
from tunesmith.errors import UserError
from tunesmith.recipe import Source

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
ROWS = st.lists(st.fixed_dictionaries({"instruction": WORDS, "output": WORDS}), min_size=1, max_size=6)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write_csv(path: Path, rows: list[dict], delimiter: str = ",") -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


def write_ipc(path: Path, rows: list[dict], new=ipc.new_file) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS = {
    "a.jsonl": write_jsonl,
    "array.json": lambda p, rows: p.write_text(json.dumps(rows, indent=1)),
    "data.json": lambda p, rows: p.write_text(json.dumps({"version": "1", "data": rows, "z": [1]})),
    "lines.json": write_jsonl,
    "a.csv": write_csv,
    "semicolon.csv": lambda p, rows: write_csv(p, rows, ";"),
    "a.tsv": lambda p, rows: write_csv(p, rows, "\t"),
    "a.parquet": lambda p, rows: parquet.write_table(pyarrow.Table.from_pylist(rows), p, row_group_size=2),
    "file.arrow": write_ipc,
    "stream.arrow": lambda p, rows: write_ipc(p, rows, ipc.new_stream),
}
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
NAMES = [name + how for name in WRITERS for how in COMPRESS if not how or not name.endswith(("parquet", "arrow"))]


def write(folder: Path, name: str, rows: list[dict]) -> Path:
    """The rows in the container that the name says."""
    how = next(how for how in (".gz", ".zst", "") if name.endswith(how))
    plain = name.removesuffix(how)
    WRITERS[plain](folder / plain, rows)
    path = folder / name
    path.write_bytes(COMPRESS[how]((folder / plain).read_bytes()))
    return path


def source(path: Path, **values) -> Source:
    return Source(path=str(path), **values)


def chats(rows: list[dict]) -> list[list[str]]:
    return [[row["instruction"], row["output"]] for row in rows]


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(rows=ROWS)
def test_every_container_gives_the_same_rows(tmp_path, name, rows):
    rows = [row for row in rows if row["output"].strip()]
    if not rows:
        return
    read_back = [row for _, row in rows_of(source(write(tmp_path, name, rows)))]
    assert [[m["content"] for m in row.messages] for row in read_back] == chats(rows)


def test_nested_columns_are_equal_from_json_and_arrow(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    other = {"id": "c2", "type": "function", "function": {"name": "time", "arguments": {"zone": "UTC"}}}
    rows = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [c]},
                          {"role": "tool", "content": "7", "tool_call_id": c["id"]},
                          {"role": "assistant", "content": "7.", "weight": 1}]} for c in (call, other)]
    found = [[row for _, row in rows_of(source(write(tmp_path, name, rows)))]
             for name in ("a.jsonl", "array.json", "a.parquet", "file.arrow", "stream.arrow")]
    assert isinstance(found[0][0], Chat) and all(rows == found[0] for rows in found)
    assert found[0][1].messages[1]["tool_calls"][0]["function"]["arguments"] == {"zone": "UTC"}


# What each data file says: expected (line, reason or None) of every record.
ODD = {
    "blank.jsonl": (b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}\n', [(1, None), (4, None)]),
    "broken.jsonl": (b'{"a": 1}\n{"a": \n[1]\n"x"\n{"a": "\xff"}\n{"a": "\\ud800"}\n{"a": 2}',
                     [(1, None), (2, "broken_json"), (3, "wrong_shape"), (4, "wrong_shape"), (5, "unreadable"),
                      (6, "unreadable"), (7, None)]),
    "deep.jsonl": (b"[" * 100_000 + b'\n{"a": 1}\n', [(1, "broken_json"), (2, None)]),
    "digits.jsonl": (b'{"a": ' + b"9" * 5000 + b'}\n{"a": 1}\n', [(1, "broken_json"), (2, None)]),
    "emoji.jsonl": (b'{"a": "\\ud83d\\ude00"}\n', [(1, None)]),
    "array.json": (b'\xef\xbb\xbf[\n{"a": 1},\n\n{"a":\n 2}, 3,\n{"a": "\xff"}]',
                   [(2, None), (4, None), (5, "wrong_shape"), (6, "unreadable")]),
    "cut.json": (b'[{"a": 1},\n{"a": 2},\n{"a": ', [(1, None), (2, None), (3, "broken_json")]),
    "one.json": (b'{"a": 1,\n "b": [2]}', [(1, None)]),
    "data.json": (b'{"v": 1, "data": [\n{"a": 1},\n{"a": 2}]}', [(2, None), (3, None)]),
    "empty.json": (b" \n", []),
    "long.csv": (b'a,b\n"1\n2",3\n4\n5,6\n\n7,\xff\n8,9\n',
                 [(2, None), (4, "wrong_shape"), (5, None), (7, "unreadable"), (8, None)]),
    "quote.csv": (b'a,b\n1,"2\n3,4\n', [(2, "unreadable")]),
    "text.md": (b"\xef\xbb\xbf# Title\n\xc3\xa4", [(1, None)]),
    "latin.py": (b"# \xe4", [(1, "unreadable")]),
    "no.parquet": (b"PAR1 nothing", [(1, "unreadable")]),
    "no.arrow": (b"ARROW1 nothing", [(1, "unreadable")]),
}


@pytest.mark.parametrize("name", ODD)
def test_lines_and_problems(tmp_path, name):
    content, expected = ODD[name]
    path = tmp_path / name
    path.write_bytes(content)
    found = list(read(source(path)))
    assert [(raw.where.line, raw.problem and raw.problem.reason) for raw in found] == expected
    assert all(raw.where.file == str(path) for raw in found)
    assert all((raw.value is None) == (raw.problem is not None) for raw in found)


@pytest.mark.parametrize("how", [".gz", ".zst"])
def test_a_cut_compressed_file_is_told(tmp_path, how):
    rows = [{"instruction": str(hash((n, "x"))), "output": "y"} for n in range(3000)]
    path = write(tmp_path, "a.jsonl" + how, rows)
    path.write_bytes(path.read_bytes()[:-9])
    *whole, last = read(source(path))
    assert last.problem.reason == "unreadable" and last.where.line == len(whole) + (1 if last.where.line else 0)
    assert [raw.value for raw in whole if raw.value] == rows[:len([raw for raw in whole if raw.value])]


MUTATIONS = st.lists(st.tuples(st.sampled_from(["flip", "cut", "insert"]), st.floats(0, 1), st.binary(max_size=4)),
                     min_size=1, max_size=4)


def mutilated(content: bytes, mutations) -> bytes:
    for what, share, new in mutations:
        at = int(share * len(content))
        content = {"flip": content[:at] + new + content[at + len(new):], "cut": content[:at],
                   "insert": content[:at] + new + content[at:]}[what]
    return content


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(rows=ROWS, mutations=MUTATIONS)
def test_damage_is_counted_and_never_an_exception(tmp_path, name, rows, mutations):
    path = write(tmp_path, name, rows)
    path.write_bytes(mutilated(path.read_bytes(), mutations))
    read_again, lines = sum(1 for _ in read(source(path))) if "csv" not in name and "tsv" not in name else None, []
    with Ledger() as ledger:
        try:
            for where, row in rows_of(source(path)):
                lines.append(where.line)
                ledger.dropped(where, row.reason, row.detail) if isinstance(row, RowProblem) else ledger.kept()
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            return
    assert lines == sorted(lines) and (not lines or lines[0] >= 1)
    assert ledger.read == len(lines) and read_again in (None, len(lines))
