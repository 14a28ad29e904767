"""Reading: every container gives the same rows, damage is a RowProblem and not an exception, line numbers are right."""

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

from tunesmith.data.files import content_hash, select
from tunesmith.data.ledger import Ledger
from tunesmith.data.read import parse, read, read_lines
from tunesmith.data.rows import REASONS, Chat, RowProblem, Where
from tunesmith.data.source import resolve
from tunesmith.data.splits import choose
from tunesmith.errors import UserError
from tunesmith.recipe import Source

FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    read_back = [row for _, row in resolve(source(write(tmp_path, name, rows))).rows()]
    assert [[m["content"] for m in row.messages] for row in read_back] == chats(rows)


def test_nested_columns_are_equal_from_json_and_arrow(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    other = {"id": "c2", "type": "function", "function": {"name": "time", "arguments": {"zone": "UTC"}}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": None, "tool_calls": [c]},
                {"role": "tool", "content": "7", "tool_call_id": c["id"]},
                {"role": "assistant", "content": "7.", "weight": 1},
            ]
        }
        for c in (call, other)
    ]
    found = [
        [row for _, row in resolve(source(write(tmp_path, name, rows))).rows()]
        for name in ("a.jsonl", "array.json", "a.parquet", "file.arrow", "stream.arrow")
    ]
    assert isinstance(found[0][0], Chat) and all(rows == found[0] for rows in found)
    assert found[0][1].messages[1]["tool_calls"][0]["function"]["arguments"] == {"zone": "UTC"}


# What each data file says: expected (line, reason or None) of every record.
ODD = {
    "blank.jsonl": (b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}\n', [(1, None), (4, None)]),
    "broken.jsonl": (
        b'{"a": 1}\n{"a": \n[1]\n"x"\n{"a": "\xff"}\n{"a": "\\ud800"}\n{"a": 2}',
        [
            (1, None),
            (2, "broken_json"),
            (3, "wrong_shape"),
            (4, "wrong_shape"),
            (5, "unreadable"),
            (6, "unreadable"),
            (7, None),
        ],
    ),
    "deep.jsonl": (b"[" * 100_000 + b'\n{"a": 1}\n', [(1, "broken_json"), (2, None)]),
    "digits.jsonl": (b'{"a": ' + b"9" * 5000 + b'}\n{"a": 1}\n', [(1, "broken_json"), (2, None)]),
    "emoji.jsonl": (b'{"a": "\\ud83d\\ude00"}\n', [(1, None)]),
    "array.json": (
        b'\xef\xbb\xbf[\n{"a": 1},\n\n{"a":\n 2}, 3,\n{"a": "\xff"}]',
        [(2, None), (4, None), (5, "wrong_shape"), (6, "unreadable")],
    ),
    "cut.json": (b'[{"a": 1},\n{"a": 2},\n{"a": ', [(1, None), (2, None), (3, "broken_json")]),
    "one.json": (b'{"a": 1,\n "b": [2]}', [(1, None)]),
    "data.json": (b'{"v": 1, "data": [\n{"a": 1},\n{"a": 2}]}', [(2, None), (3, None)]),
    "lines.json": (b'{"a": 1}\n{"a": \n{"a": 2}\n', [(1, None), (2, "broken_json"), (3, None)]),
    "empty.json": (b" \n", []),
    "long.csv": (
        b'a,b\n"1\n2",3\n4\n5,6\n\n7,\xff\n8,9\n',
        [(2, None), (4, "wrong_shape"), (5, None), (7, "unreadable"), (8, None)],
    ),
    "quote.csv": (b'a,b\n1,"2\n3,4\n', [(2, "unreadable"), (3, None)]),
    "quotes.csv": (b'a,b\n1,"x\n2,3\n4,"5 "6\n7,8\n', [(2, "unreadable"), (3, None), (4, "unreadable"), (5, None)]),
    "several.jsonl": (b'{\n "a": 1\n}\n{\n "a": 2\n}\n', [(1, None), (4, None)]),
    "array.jsonl": (b'[{"a": 1}, {"a": 2}]\n', [(1, None), (1, None)]),
    "rows.jsonl": (b'\n[\n{"a": 1},\n{"a": 2}\n]\n', [(3, None), (4, None)]),
    "first.jsonl": (b'{"a": \n{"a": 1}\n', [(1, "broken_json"), (2, None)]),
    "commas.jsonl": (b'{"a": 1},\n{"a": 2}, \n{"a": 3}\n', [(1, None), (2, None), (3, None)]),
    "cut16.jsonl": ('{"a": 1}\n'.encode("utf-16") + b"x", [(1, None), (2, "unreadable")]),
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
    found = list(read(select(source(path)).files))
    assert [(raw.where.line, raw.problem and raw.problem.reason) for raw in found] == expected
    assert all(raw.where.file == str(path) for raw in found)
    assert all((raw.value is None) == (raw.problem is not None) for raw in found)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "array.json", "a.csv", "semicolon.csv", "a.tsv", "a.jsonl.gz", "a.txt"])
def test_text_with_a_byte_order_mark_is_read(tmp_path, encoding, name):
    """As PowerShell and Excel write it."""
    rows = [{"instruction": f"Wo liegt Köln {n}?", "output": "日本" * n} for n in range(1, 400)]
    plain = name.removesuffix(".gz")
    if plain == "a.txt":
        (tmp_path / plain).write_text("".join(map(str, rows)), "utf-8")
    else:
        WRITERS[plain](tmp_path / plain, rows)
    text = (tmp_path / plain).read_bytes().decode()
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    content = (mark + text).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = [raw.value for raw in read(select(source(tmp_path / name)).files)]
    assert found == ([{"text": text}] if plain == "a.txt" else rows)


TABLES = {
    "sep.csv": ("sep=;\r\nquestion;answer\r\nWhere, then?;Germany\r\n", [("Where, then?", "Germany", 3)]),
    "unnamed.csv": ("question,answer,,\nWhere?,Germany,,\nWho?,I,,x\n", [("Where?", "Germany", 2), ("Who?", "I", 3)]),
    "behind.csv": ("question,answer\nWhere?,Germany,,\n", [("Where?", "Germany", 2)]),
    "unclosed.csv": (
        'question,answer\nA?,a\nB?,"never\n' + "".join(f"C{n}?,c{n}\n" for n in range(50)),
        [("A?", "a", 2), *((f"C{n}?", f"c{n}", n + 4) for n in range(50))],
    ),
    "nan.json": ('[{"instruction": "Where?", "input": NaN, "output": "Germany"}]', [("Where?", "Germany", 1)]),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_programs_and_people_write_them(tmp_path, name):
    text, expected = TABLES[name]
    (tmp_path / name).write_text(text, newline="")
    unread = {}
    rows = [(where.line, row) for where, row in resolve(source(tmp_path / name)).rows(unread) if isinstance(row, Chat)]
    assert [(*(m["content"] for m in row.messages), line) for line, row in rows] == expected
    assert unread == ({"column 4": 1} if name == "unnamed.csv" else {})


def test_nan_of_a_columnar_file_is_a_missing_value(tmp_path):
    columns = {"instruction": ["a", "b"], "input": [float("nan")] * 2, "output": ["c", "d"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    assert [row.messages[0]["content"] for _, row in resolve(source(tmp_path / "a.parquet")).rows()] == ["a", "b"]


@pytest.mark.parametrize("how", [".gz", ".zst"])
def test_a_truncated_compressed_file_is_reported(tmp_path, how):
    rows = [{"instruction": str(hash((n, "x"))), "output": "y"} for n in range(3000)]
    path = write(tmp_path, "a.jsonl" + how, rows)
    path.write_bytes(path.read_bytes()[:-9])
    raws = list(read(select(source(path)).files))
    whole = [raw.value for raw in raws if raw.value]
    assert whole == rows[: len(whole)] and len(whole) > 100
    assert raws[-1].problem.reason == "unreadable" and raws[-1].where.line > len(whole)


MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert"]), st.floats(0, 1), st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


def mutilated(content: bytes, mutations) -> bytes:
    for what, share, new in mutations:
        at = int(share * len(content))
        content = {
            "flip": content[:at] + new + content[at + len(new) :],
            "cut": content[:at],
            "insert": content[:at] + new + content[at:],
        }[what]
    return content


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(rows=ROWS, mutations=MUTATIONS)
def test_damage_is_counted_and_never_an_exception(tmp_path, name, rows, mutations):
    path = write(tmp_path, name, rows)
    path.write_bytes(mutilated(path.read_bytes(), mutations))
    lines, refusal = [], None
    with Ledger() as ledger:
        try:
            records = sum(1 for _ in read(select(source(path)).files))
            for where, row in resolve(source(path)).rows():
                lines.append(where.line)
                ledger.dropped(where, row.reason, row.detail) if isinstance(row, RowProblem) else ledger.kept()
        except UserError as error:
            refusal = str(error)
    if refusal is not None:
        assert str(path) in refusal and "\n" not in refusal
        return
    assert lines == sorted(lines) and (not lines or lines[0] >= 1)
    assert ledger.read == len(lines) == records


def test_which_files_a_source_has(tmp_path):
    for name in (
        "b/2.jsonl",
        "b/1.json.gz",
        "a.csv",
        "README.md",
        ".git/x.jsonl",
        "notes.docx",
        "text/z.txt",
        "text/a.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def names(pattern):
        return [str(path.relative_to(tmp_path)) for path in select(source(tmp_path / pattern)).files]

    assert names("") == ["a.csv", "b/1.json.gz", "b/2.jsonl"]
    assert names("text") == ["text/a.py", "text/z.txt"]
    assert names("**/*.jsonl") == ["b/2.jsonl"]
    assert names("README.md") == ["README.md"]
    for pattern in ("none.jsonl", "*.parquet", "notes.docx", "a.parquet.gz"):
        with pytest.raises(UserError, match=str(tmp_path)):
            names(pattern)
    with pytest.raises(UserError, match="unknown ending.*jsonl.*parquet"):
        names("notes.docx")


def saved(folder: Path, names: list[str], state: dict | None = None) -> None:
    """A dataset as `save_to_disk` of the datasets library lays it out, each file with a row that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        write_ipc(folder / name, [{"question": "?", "answer": f"{folder.name}/{name}"}], ipc.new_stream)
    listed = [{"filename": name} for name in names if name.startswith("data-")]
    values = {"_data_files": listed, "_fingerprint": "f", "_format_columns": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(values if state is None else state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}, "splits": {}}))


SHARDS = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
CACHE = "cache-0123456789abcdef.arrow"


def answers(asked: Source) -> list[str]:
    return [row.messages[1]["content"] for _, row in resolve(asked).rows()]


def test_a_saved_dataset_is_what_its_state_names(tmp_path):
    saved(tmp_path / "one", [CACHE, *SHARDS])
    saved(tmp_path / "old", [CACHE, *SHARDS], state={})
    for name in ("one", "old"):
        asked = source(tmp_path / name)
        assert answers(asked) == [f"{name}/{shard}" for shard in SHARDS]
        assert select(asked).left_out == [CACHE]
    assert sorted(answers(source(tmp_path))) == sorted(f"{n}/{shard}" for n in ("one", "old") for shard in SHARDS)
    assert sorted(answers(source(tmp_path / "*"))) == sorted(answers(source(tmp_path)))
    (tmp_path / "one" / SHARDS[1]).unlink()
    with pytest.raises(UserError, match=f"one: has no file '{SHARDS[1]}', which its state.json names"):
        answers(source(tmp_path / "one"))
    saved(tmp_path / "index", SHARDS, {"_data_files": [{"filename": SHARDS[0]}], "_indices_data_files": [{}]})
    with pytest.raises(UserError, match="index: an old version of datasets"):
        answers(source(tmp_path / "index"))


def test_a_saved_dataset_gives_the_requested_split(tmp_path):
    for split in ("train", "test", "odd"):
        saved(tmp_path / "d" / split, [CACHE, SHARDS[0]])
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test", "odd"]}))
    folder = tmp_path / "d"
    assert answers(source(folder)) == [f"train/{SHARDS[0]}"]
    assert select(source(folder)).left_out == ["split test", "split odd", CACHE]
    assert answers(source(folder, split="odd")) == [f"odd/{SHARDS[0]}"]
    with pytest.raises(UserError, match="d: has no split 'dev'; set `split:` to one of odd, test, train"):
        select(source(folder, split="dev"))
    (folder / "dataset_dict.json").write_text('{"splits": ["test", "odd"]}')
    with pytest.raises(UserError, match="d: has several splits; set"):
        select(source(folder))
    (folder / "dataset_dict.json").write_text('{"splits": ["../../secret"]}')
    with pytest.raises(UserError, match="dataset_dict.json: names no splits"):
        select(source(folder))
    (folder / "dataset_dict.json").write_text("{")
    with pytest.raises(UserError, match="dataset_dict.json: cannot be read"):
        select(source(folder))


CLONE = ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", "extra/rows.csv", "dataset_infos.json"]
CONFIGS = {
    "configs": [
        {
            "config_name": "main",
            "default": True,
            "data_files": [{"split": split, "path": f"data/{split}-*"} for split in ("train", "test")],
        },
        {"config_name": "more", "data_files": "extra/*"},
    ]
}


@pytest.mark.parametrize(
    "readme, asked, chosen, left_out",
    [
        ({}, {}, [CLONE[0], CLONE[2]], ["split test (1 file)", CLONE[3]]),
        ({}, {"split": "test"}, [CLONE[1]], ["split train (2 files)", CLONE[3]]),
        ({}, {"subset": "extra"}, [CLONE[2]], ["files of other subsets (2)", CLONE[3]]),
        (CONFIGS, {}, [CLONE[0]], ["split test (1 file)", "files of other subsets (1)", CLONE[3]]),
        (CONFIGS, {"split": "test"}, [CLONE[1]], ["split train (1 file)", "files of other subsets (1)", CLONE[3]]),
        (CONFIGS, {"subset": "more"}, [CLONE[2]], ["files of other subsets (2)", CLONE[3]]),
        (CONFIGS, {"split": "dev"}, "no split 'dev'.*test, train", None),
        (CONFIGS, {"subset": "less"}, "no subset 'less'.*main, more", None),
    ],
)
def test_a_clone_gives_the_files_of_its_subset_and_split(tmp_path, readme, asked, chosen, left_out):
    for name in CLONE:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "README.md").write_text(f"---\n{json.dumps(readme)}\n---\n# Rows")
    if isinstance(chosen, str):
        with pytest.raises(UserError, match=f"{tmp_path}: has {chosen}"):
            select(source(tmp_path, **asked))
        return
    found = select(source(tmp_path, **asked))
    assert [str(path.relative_to(tmp_path)) for path in found.files] == chosen
    assert found.left_out == left_out


def test_splits_are_of_folders_with_data(tmp_path):
    (tmp_path / "test_code.py").write_text("x = 1")
    (tmp_path / "code.py").write_text("x = 2")
    assert len(select(source(tmp_path)).files) == 2  # text is of no split, whatever its name
    with pytest.raises(UserError, match="has no data files to choose a split"):
        select(source(tmp_path, split="test"))
    write_jsonl(tmp_path / "a.jsonl", [])
    for path in ("a.jsonl", "*.jsonl"):
        with pytest.raises(UserError, match="leave them out for a single file"):
            select(source(tmp_path / path, split="train"))


def test_each_file_has_its_own_format(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"question": "1", "answer": "2"}])
    write_jsonl(
        tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "3"}, {"role": "assistant", "content": "4"}]}]
    )
    write_jsonl(tmp_path / "c.jsonl", [{"x": "5"}])
    write_jsonl(tmp_path / "d.jsonl", [])
    found = {Path(where.file).name: row for where, row in resolve(source(tmp_path)).rows()}
    assert [m["content"] for name in ("a.jsonl", "b.jsonl") for m in found[name].messages] == ["1", "2", "3", "4"]
    assert found["c.jsonl"].reason == "wrong_shape" and "no known format has the columns 'x'" in found["c.jsonl"].detail
    assert set(resolve(source(tmp_path)).formats.values()) == {"question_answer", "messages", None}
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").unlink()
    with pytest.raises(UserError, match="c.jsonl: no known format has the columns x"):
        list(resolve(source(tmp_path)).rows())


def test_a_git_lfs_pointer_is_named(tmp_path):
    for name in ("a.jsonl", "b.parquet"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
        with pytest.raises(UserError, match=f"{name}: is a git-lfs pointer.*git lfs pull"):
            list(read(select(source(tmp_path / name)).files))


def test_content_hash_is_that_of_sha256sum(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert content_hash(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_lines_are_read_raw_and_parsed_separately(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{\n')
    lines = list(read_lines(select(source(tmp_path / "a.jsonl")).files))
    assert [payload for _, payload in lines] == [b'{"a": 1}\n', b"{\n"]
    assert [parse(*line).value for line in lines] == [{"a": 1}, None]


def test_a_header_with_a_column_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("a,a\n1,2\n")
    with pytest.raises(UserError, match="a.csv:1.*'a' twice"):
        list(read(select(source(tmp_path / "a.csv")).files))


HUB = [
    "README.md",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
    "main/train.jsonl",
    "main/dev.jsonl",
    "socratic/all.csv.gz",
]


@pytest.mark.parametrize(
    "subset, split, readme, chosen",
    [
        (None, None, {}, HUB[1:3]),
        (None, "test", {}, HUB[3:4]),
        ("main", "validation", {}, ["main/dev.jsonl"]),
        ("socratic", None, {}, ["socratic/all.csv.gz"]),
        (
            "x",
            None,
            {"configs": [{"config_name": "x", "data_files": [{"split": "train", "path": "main/*"}]}]},
            ["main/dev.jsonl", "main/train.jsonl"],
        ),
        (
            None,
            None,
            {
                "configs": [
                    {"config_name": "m", "data_dir": "main"},
                    {"config_name": "s", "default": True, "data_files": "**/*.csv.gz"},
                ]
            },
            ["socratic/all.csv.gz"],
        ),
        (None, "nope", {}, "no split 'nope'.*test, train"),
        ("nope", None, {}, "no subset 'nope'.*default, main, socratic"),
        (None, None, {"configs": [{"config_name": "a"}, {"config_name": "b"}]}, "several subsets.*a, b"),
    ],
)
def test_files_of_a_hub_dataset(subset, split, readme, chosen):
    asked = Source(path="hub:org/name", subset=subset, split=split)
    if isinstance(chosen, list):
        split, splits = choose(asked, HUB[1:], readme)
        assert sorted(splits[split]) == chosen
    else:
        with pytest.raises(UserError, match="hub:org/name: .*" + chosen):
            choose(asked, HUB[1:], readme)


def test_the_ledger_counts_and_writes_its_entries(tmp_path):
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.kept(3)
        ledger.dropped(Where("a.jsonl", 7), "broken_json", "at\n\udc80")
        ledger.shortened(Where("a.jsonl", 8), "too_long", "10 > 8")
        ledger.refuse_if_empty("a.jsonl")
        written = (tmp_path / "ledger.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["line"] for line in written] == [7, 8]
    assert json.loads(written[0]) | {"detail": ""} == {
        "file": "a.jsonl",
        "line": 7,
        "action": "dropped",
        "reason": "broken_json",
        "detail": "",
    }
    assert ledger.summary() == {
        "read": 4,
        "kept": 3,
        "dropped": {"broken_json": 1},
        "changed": {},
        "shortened": {"too_long": 1},
        "unread": {},
    }


def test_an_empty_ledger_names_the_first_reasons():
    ledger = Ledger()
    with pytest.raises(UserError, match="no rows"):
        ledger.refuse_if_empty("data.train")
    for line in range(1, 9):
        ledger.dropped(Where("a.jsonl", line), "empty_answer", "x\ny")
    with pytest.raises(UserError, match="none of its 8 rows.*a.jsonl:1: an assistant turn is empty") as error:
        ledger.refuse_if_empty("data.train")
    assert "\n" not in str(error.value) and all(reason in REASONS for _, reason in ledger.counts)
