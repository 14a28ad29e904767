"""The page sees the roots, and nothing else; uploads arrive whole or not at all."""

import asyncio
import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest
from fastapi import HTTPException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from tests.studio.killing import is_killed
from tunesmith.errors import UserError
from tunesmith.recipe import Recipe
from tunesmith.studio import uploads
from tunesmith.studio.roots import Roots

BINARY = {"Content-Type": "application/octet-stream"}
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = ".. . / // ~ inside out loop .hidden a.jsonl secret \0 \n é e\u0301 \u202e \ud800 * ** [ %2e%2e \\ C: root"
PARTS = st.sampled_from([*NAMES.split(" "), "x" * 300]) | st.text(max_size=8)
PATHS = st.builds(lambda parts, glue: glue.join(parts), st.lists(PARTS, max_size=6), st.sampled_from(["/", ""]))


@pytest.fixture
def disk(studio, tmp_path) -> Path:
    """The studio's folder with one of everything that leads out of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    (tmp_path / "work2").mkdir()  # a name that begins as the root's does
    work = studio.folder
    (work / "inside").mkdir()
    (work / "inside" / "a.jsonl").write_text("{}")
    (work / "out").symlink_to(tmp_path / "outside")
    (work / "secret").symlink_to(tmp_path / "outside" / "secret")
    (work / "loop").symlink_to("loop")
    (work / "near").symlink_to("inside")
    (work / ".hidden").mkdir()
    (work / ".hidden" / "a.jsonl").touch()
    return work


def is_allowed(found: Path, root: Path) -> bool:
    """As the kernel sees it, not pathlib: no link on the way, under the root, nothing hidden."""
    real = os.path.realpath(found)
    inner = real.removeprefix(str(root))
    return real == str(found) and (not inner or inner.startswith("/")) and "/." not in inner


@SHARED
@given(PATHS)
def test_no_path_leads_out(disk, path):
    roots = Roots([disk])
    for is_new in (False, True):
        try:
            found = roots.resolve(path, is_new)
        except UserError as error:
            message = str(error)
            message.encode()
            assert "\n" not in message
        else:
            assert is_allowed(found, disk) and (is_new or found.exists())


@SHARED
@given(PATHS)
def test_no_recipe_leads_out(disk, path):
    """What a recipe may name is inside, also where it is a pattern or begins with ~."""
    try:
        recipe = Recipe.build({"model": "org/m", "data": path or "x"})
        Roots([disk]).check(recipe)
    except UserError:
        return
    place = Path(recipe.data.train[0].path).expanduser()
    if recipe.data.train[0].path.startswith("hub:"):
        return
    assert not os.path.lexists(disk / place) or is_allowed(Path(os.path.realpath(disk / place)), disk)


LINKS = {
    "a file": lambda disk, outside: (disk / "d" / "x.jsonl").symlink_to(outside / "secret"),
    "a file deep inside": lambda disk, outside: (disk / "d" / "in" / "x.jsonl").symlink_to(outside / "secret"),
    "a folder": lambda disk, outside: (disk / "d" / "train").symlink_to(outside),
    "a link to a link": lambda disk, outside: (disk / "d" / "x.jsonl").symlink_to("../secret"),
    "a hidden file": lambda disk, outside: (disk / "d" / "x.jsonl").symlink_to("../.hidden/a.jsonl"),
    "a relative one": lambda disk, outside: (disk / "d" / "x.jsonl").symlink_to("../../outside/secret"),
    "a FIFO": lambda disk, outside: os.mkfifo(disk / "d" / "x.jsonl"),
}


@pytest.mark.parametrize("path", ["d", "{root}/d", "*", "d/**", "./d/"])
@pytest.mark.parametrize("link", LINKS)
def test_nothing_in_a_folder_that_a_recipe_names_leads_out(studio, tmp_path, disk, link, path):
    (disk / "d" / "in").mkdir(parents=True)
    (disk / "d" / "in" / "a.jsonl").write_text("{}")
    (disk / "d" / "same.jsonl").symlink_to("in/a.jsonl")
    if "*" not in path:  # a pattern matches links that lead nowhere, which are refused too
        (disk / "d" / "gone.jsonl").symlink_to("nowhere")
    (disk / "loop").unlink()
    for name in ("out", "secret"):
        if link != "a link to a link":
            (disk / name).unlink()
    named = path.format(root=disk)
    keys = [("data.train", {"data": named})] + [("model.path", {"model": named, "data": "inside/a.jsonl"})] * (
        path == "d"
    )
    recipes = {key: Recipe.build({"model": "org/m"} | values) for key, values in keys}
    if path != "*" or link != "a link to a link":
        for recipe in recipes.values():
            studio.roots.check(recipe)
    LINKS[link](disk, tmp_path / "outside")
    for key, recipe in recipes.items():
        with pytest.raises(UserError, match=f"`{key}.*(outside the studio's folders|neither a file nor a folder)"):
            studio.roots.check(recipe)


@SHARED
@given(PATHS)
def test_any_path_is_answered(client, disk, path):
    answer = client.get("/api/files", params={"path": path.encode("utf-8", "replace").decode()})
    assert answer.status_code in (200, 400), answer.text
    assert "secret" not in [entry["name"] for entry in answer.json().get("entries", ())]


def test_a_folder_is_listed(client, studio, disk, family):
    (disk / "m").symlink_to(family("llama3"))
    for name in ("b.csv", "B.gguf", "c.txt", "d.bin", ".e"):
        (disk / name).write_text("x")
    (disk / "r.yaml").write_text("model: m\ndata: d\n")
    (disk / "no.yaml").write_text("a: 1\n")
    (disk / "base").mkdir()
    (disk / "base" / "config.json").write_text("{}")
    (disk / "lora").mkdir()
    (disk / "lora" / "adapter_config.json").write_text("{}")
    (disk / "runs" / "first" / "checkpoints").mkdir(parents=True)
    (disk / "runs" / "first" / "recipe.yaml").write_text("model: m\ndata: d\n")
    os.close(os.open(os.fsencode(disk) + b"/\xff", os.O_CREAT))
    os.mkfifo(disk / "pipe")
    answer = client.get("/api/files").json()
    assert [(entry["name"], entry["kind"]) for entry in answer["entries"]] == [
        ("base", "model"), ("inside", "folder"), ("lora", "adapter"), ("near", "folder"), ("runs", "folder"),
        ("b.csv", "data"), ("B.gguf", "gguf"), ("c.txt", "text"), ("d.bin", "other"), ("no.yaml", "text"),
        ("r.yaml", "recipe"),
    ]  # fmt: skip
    assert (answer["path"], answer["parent"], answer["roots"], answer["is_cut"]) == (".", None, ["."], False)
    inner = client.get("/api/files", params={"path": "inside"}).json()
    assert inner["parent"] == "." and inner["entries"][0]["path"] == "inside/a.jsonl"
    assert client.get("/api/files", params={"path": "runs"}).json()["entries"][0]["kind"] == "run"


def send(client, name: str, body: bytes):
    return client.post("/api/uploads", params={"name": name}, content=body, headers=BINARY)


def test_a_file_arrives(client, studio):
    body = os.urandom(5 * 2**20)
    first, second = send(client, "my data.jsonl", body).json(), send(client, "my data.jsonl", b"second").json()
    assert first == {"path": "uploads/my data.jsonl", "name": "my data.jsonl", "bytes": len(body)}
    assert second["name"] == "my data-2.jsonl"
    assert (studio.folder / first["path"]).read_bytes() == body
    assert (studio.folder / second["path"]).read_bytes() == b"second"
    assert sorted(os.listdir(studio.folder / "uploads")) == ["my data-2.jsonl", "my data.jsonl"]
    assert client.get("/api/files", params={"path": "uploads"}).json()["entries"][1]["name"] == "my data.jsonl"


def test_only_bytes_are_taken(client, studio):
    assert client.post("/api/uploads?name=a", json={}).status_code == 415
    assert list(studio.folder.iterdir()) == []


@SHARED
@given(PATHS)
def test_a_name_is_made_anew(name):
    plain = uploads.plain_name(name)
    assert plain == os.path.basename(plain) and plain not in ("", ".", "..")
    assert not plain.startswith(".") and len(plain.encode()) <= 240 and plain.isprintable()
    assert uploads.plain_name(plain) == plain


@pytest.mark.parametrize(
    "name, plain",
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\rows\\a.csv", "a.csv"),
        (".bashrc", "bashrc"),
        ("größe.jsonl", "größe.jsonl"),
        ("a\0b\n.csv", "a_b_.csv"),
        ("<script>.csv", "_script_.csv"),
        ("..", "upload"),
        ("x" * 300 + ".jsonl", "x" * 194 + ".jsonl"),
    ],
)
def test_names(name, plain):
    assert uploads.plain_name(name) == plain


def receive(studio, chunks, length=None, most=1000, gone=False) -> Path:
    async def body():
        for chunk in chunks:
            yield chunk
        if gone:
            raise ClientDisconnect

    return asyncio.run(uploads.receive(studio.roots, "a.csv", length, body(), most))


@pytest.mark.parametrize(
    "facts, status",
    [
        (dict(chunks=[b"x" * 600, b"x" * 600]), 413),
        (dict(chunks=[], length=1001), 413),
        (dict(chunks=[b"abc"], length=5), 400),
        (dict(chunks=[b"abc"], gone=True), 499),
        (dict(chunks=[b"x" * (5 * 2**20)], most=10**9, gone=True), 499),
    ],
)
def test_nothing_is_left_of_a_failed_upload(studio, facts, status):
    with pytest.raises(HTTPException) as error:
        receive(studio, **facts)
    assert error.value.status_code == status
    assert os.listdir(studio.folder / "uploads") == []


def test_a_full_disk_is_told(client, studio, monkeypatch):
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda _: disk(10**12, 0, 2**30 + 10))
    assert send(client, "a.csv", b"0123456789").status_code == 200
    answer = send(client, "a.csv", b"01234567890")
    assert answer.status_code == 507 and "no room" in answer.json()["error"]["message"]


def test_what_a_killed_server_left_is_removed(client, studio):
    (studio.folder / "uploads").mkdir()
    (studio.folder / "uploads" / f".0{uploads.PART}").write_text("half")
    send(client, "a.csv", b"x")
    assert os.listdir(studio.folder / "uploads") == ["a.csv"]


@pytest.mark.parametrize("has_links", [True, False])
def test_an_upload_that_is_killed_anywhere_leaves_no_part_of_itself(studio, monkeypatch, has_links):
    """Where the file system has no hard links, it may leave an empty file."""

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    folder = studio.folder / "uploads"
    folder.mkdir()
    (folder / "a.csv").write_text("before")
    names, operations = ["a.csv", "a-2.csv"], 0
    while is_killed(lambda: receive(studio, [b"whole"]), folder, operations):
        visible = {name: (folder / name).read_text() for name in os.listdir(folder) if not name.startswith(".")}
        assert visible.pop("a.csv") == "before"
        assert all(text == "whole" or (not has_links and not text) for text in visible.values())
        for name in visible:
            (folder / name).unlink()
        operations += 1
    assert operations > 2 and sorted(os.listdir(folder)) == sorted(names)
    assert (folder / "a-2.csv").read_text() == "whole" and (folder / "a.csv").read_text() == "before"


def test_no_upload_goes_through_a_link(client, studio, tmp_path):
    (tmp_path / "outside").mkdir()
    (studio.folder / "uploads").symlink_to(tmp_path / "outside")
    assert send(client, "a.csv", b"x").status_code == 400
    assert os.listdir(tmp_path / "outside") == []
