"""Models and datasets from the hub, and exports to it, with a stand-in for the hub on this machine."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import yaml
from huggingface_hub import constants

from tests import tiny
from tests.conftest import sums
from tunesmith import train
from tunesmith.cli import main
from tunesmith.export.forms import merged

COMMIT = "a" * 40
TOKEN = "hf_of_this_test"
README = b"---\nconfigs: [{config_name: sums, data_files: [{split: train, path: sums/*.jsonl}]}]\n---\n"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The endpoint of a hub that has the model org/tiny and the dataset org/sums, both with files nobody may run."""
    model = tiny.save("qwen2", tmp_path_factory.mktemp("hub") / "tiny")
    rows = "".join(json.dumps(row) + "\n" for row in sums(40)).encode()
    trap = {"modeling_trap.py": b"raise SystemExit('was run')", "pytorch_model.bin": b"pickle"}
    StandIn.repositories = {
        "/models/org/tiny": {f.name: f.read_bytes() for f in model.iterdir()} | trap,
        "/datasets/org/sums": {"README.md": README, "sums/part.jsonl": rows, "script.py": trap["modeling_trap.py"]},
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for: listings, files with a commit and an ETag, and commits of others."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    head = COMMIT
    """What the main branch is."""
    mode = "regular"
    """How files are to be sent: regular, within the commit, or lfs, each by itself and then named in it."""
    sent: ClassVar[list[str]] = []
    """What was sent here, as method and path."""
    made: ClassVar[dict[str, str]] = {}
    """Visibility of the repositories that were made."""
    blobs: ClassVar[dict[str, bytes]] = {}
    """By SHA-256."""
    committed: ClassVar[dict[str, dict[str, bytes]]] = defaultdict(dict)
    """Files by repository."""

    def do_GET(self):
        self.answer(self.body(self.path.partition("?")[0]))

    do_HEAD = do_GET

    def body(self, path: str) -> bytes | None:
        for name, files in self.repositories.items():
            listing, place = f"/api{name}", name.removeprefix("/models") + "/resolve/"
            if path in (listing, f"{listing}/revision/main", f"{listing}/revision/{COMMIT}"):
                siblings = [{"rfilename": file} for file in files]
                return json.dumps({"id": name.split("/", 2)[2], "sha": self.head, "siblings": siblings}).encode()
            if path.startswith(f"{listing}/tree/"):
                return json.dumps(
                    [{"type": "file", "path": file, "size": len(body), "oid": "0"} for file, body in files.items()]
                ).encode()
            if path.startswith(place):
                return files.get(path.removeprefix(place).partition("/")[2])
        return None

    def do_POST(self):
        self.sent.append(f"{self.command} {self.path}")
        status, body = self.accept(self.received())
        self.answer(json.dumps(body).encode(), status)

    do_PUT = do_POST

    def received(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):  # chunked
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def accept(self, body: bytes) -> tuple[int, dict]:
        if self.path.startswith("/blobs/"):
            self.blobs[self.path.removeprefix("/blobs/")] = body
            return 200, {}
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        url = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name.startswith("others/"):
                return 403, {"error": "You have no rights to the namespace others."}
            self.made[name] = asked["visibility"]
            return 200, {"url": f"{url}/{name}"}
        if self.path == "/api/validate-yaml":
            base = yaml.safe_load(json.loads(body)["content"].split("---")[1]).get("base_model", "org/name")
            wrong = {"message": f'"base_model" with value "{base}" is not valid.'}
            return (200, {}) if base.count("/") == 1 and base[0] != "/" else (400, {"errors": [wrong]})
        if self.path.endswith("/preupload/main"):
            return 200, {
                "files": [
                    {"path": file["path"], "uploadMode": self.mode, "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
            }
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return 200, {
                "objects": [
                    blob | {"actions": {"upload": {"href": f"{url}/blobs/{blob['oid']}"}}}
                    for blob in json.loads(body)["objects"]
                ]
            }
        name = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
        if name == "org/full":
            return 403, {"error": "Storage limit reached."}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.committed[name][value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.committed[name][value["path"]] = self.blobs[value["oid"]]
        return 200, {"commitUrl": f"{url}/{name}/commit/{COMMIT}", "commitOid": COMMIT}

    def answer(self, body: bytes | None, status: int = 200):
        self.send_response(404 if body is None else status)
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("X-Repo-Commit", COMMIT if f"/{COMMIT}/" in self.path else self.head)
        self.send_header("ETag", f'"{hashlib.sha1(body or b"").hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


@contextmanager
def hub_of(repositories: dict[str, dict[str, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A hub with these repositories. Yields its endpoint, and the paths that it is asked for."""
    asked = []

    class Hub(StandIn):
        def body(self, path):
            asked.append(path)
            return super().body(path)

    Hub.repositories = repositories
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_a_run_from_the_hub_and_another_one_offline(hub, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(
            {
                "model": {"path": "org/tiny", "dtype": "float32"},
                "data": {"train": "hub:org/sums", "sequence_length": 256},
                "train": {"max_steps": 2},
                "evaluate": {"samples": 0},
            }
        )
    )

    def tunesmith(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        settings = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", **environment}
        return subprocess.run(
            [sys.executable, "-m", "tunesmith", *arguments],
            cwd=tmp_path,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            check=False,
        )

    def train(name: str, *more: str, **environment: str) -> subprocess.CompletedProcess:
        return tunesmith("train", "recipe.yaml", "--name", name, *more, **environment)

    online, offline = train("online"), train("offline", HF_HUB_OFFLINE="1")
    assert (online.returncode, offline.returncode) == (0, 0), online.stderr + offline.stderr
    first, second = (
        (tmp_path / "runs" / name / "adapter" / "adapter_model.safetensors").read_bytes()
        for name in ("online", "offline")
    )
    assert first == second
    assert not list((tmp_path / "hf").rglob("*trap*")) and not list((tmp_path / "hf").rglob("*.bin"))
    config = json.loads((tmp_path / "runs" / "online" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"
    assert yaml.safe_load((tmp_path / "runs/online/recipe.yaml").read_text())["data"]["train"][0]["revision"] == COMMIT
    monkeypatch.setattr(StandIn, "head", "b" * 40)  # upstream goes on; the run does not care
    shutil.rmtree(tmp_path / "runs/online/adapter")
    done = tunesmith("resume", "runs/online")
    assert done.returncode == 0, done.stderr
    for more in (["--model.path", "org/none"], ["--data.train", "hub:org/none"]):
        refused = train("refused", *more)
        assert refused.returncode == 2
        last = refused.stderr.splitlines()[-1]  # before it only progress
        assert last.startswith("tunesmith: ") and "org/none" in last and "Traceback" not in refused.stderr


@pytest.fixture
def tunesmith(hub, monkeypatch, tmp_path):
    """The command line in this process, with this hub: gives the exit status."""
    for name, value in {"ENDPOINT": hub, "HF_HUB_OFFLINE": False, "HF_TOKEN_PATH": str(tmp_path / "none")}.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(StandIn, "sent", [])

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        try:
            with warnings.catch_warnings(
                action="ignore", category=UserWarning
            ):  # of cyclopts, that a test called it so
                main.main()
        except SystemExit as end:
            return end.code or 0
        return 0

    return run


@pytest.fixture
def run(recipe):
    return train(recipe("qwen3", train={"max_steps": 2})).folder


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_what_is_pushed_is_the_export(tunesmith, monkeypatch, run, mode):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", mode == "lfs")  # its storage has no stand-in here
    monkeypatch.setattr(StandIn, "mode", mode)
    assert tunesmith("export", run, "--to", "adapter", "--no-parity") == 0 and not StandIn.sent
    name = f"org/{mode}"
    assert tunesmith("export", run, "--to", "merged", "--push", name) == 0
    files = {str(f.relative_to(run / "merged")): f.read_bytes() for f in (run / "merged").rglob("*") if f.is_file()}
    assert StandIn.committed[name] == files and "model.safetensors" in files
    assert StandIn.made[name] == "private"


def test_what_is_not_pushed(tunesmith, monkeypatch, run, tmp_path, capsys):
    """Each ends in one line; only a refusal of the hub itself was sent anything."""

    def refused(status: int, *arguments) -> str:
        capsys.readouterr()
        assert tunesmith("export", run, "--to", "merged", *arguments) == status
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("tunesmith: ")
        return last

    assert "Repo id" in refused(2, "--push", "org/a/b")
    with monkeypatch.context() as without:
        without.delenv("HF_TOKEN")
        assert "there is no hub token" in refused(2, "--push", "org/tuned")
    write = merged.write

    def another(run, folder, settings):
        write(run, folder, settings)
        (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")

    with monkeypatch.context() as changed:
        changed.setattr(merged, "write", another)
        assert "not the trained model" in refused(1, "--push", "org/tuned")
    assert not StandIn.sent and not (run / "merged").exists()
    with monkeypatch.context() as other:
        other.setenv("HF_TOKEN", "hf_old")
        said = refused(2, "--no-parity", "--output", tmp_path / "a", "--push", "org/tuned")
        assert "Invalid username or password" in said and str(tmp_path / "a") in said
    assert "no rights" in refused(2, "--no-parity", "--output", tmp_path / "b", "--push", "others/tuned")
    assert "Storage limit" in refused(2, "--no-parity", "--output", tmp_path / "c", "--push", "org/full")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    refused(2, "--no-parity", "--output", tmp_path / "d", "--push", "org/tuned")
    assert all((tmp_path / name / "model.safetensors").is_file() for name in "abcd")
    assert "org/full" not in StandIn.committed and "org/tuned" not in StandIn.committed
