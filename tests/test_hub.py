"""Model and dataset from the hub: downloaded from a stand-in on this machine, then used offline."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests import tiny
from tests.conftest import sums

COMMIT = "a" * 40
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
    """As much of the hub as its client asks for: listings, and files with a commit and an ETag."""

    repositories: dict[str, dict[str, bytes]] = {}

    def do_GET(self):
        self.answer(self.body(self.path.partition("?")[0]))

    do_HEAD = do_GET

    def body(self, path: str) -> bytes | None:
        for name, files in self.repositories.items():
            listing, place = f"/api{name}", name.removeprefix("/models") + "/resolve/"
            if path in (listing, f"{listing}/revision/main"):
                siblings = [{"rfilename": file} for file in files]
                return json.dumps({"id": name.split("/", 2)[2], "sha": COMMIT, "siblings": siblings}).encode()
            if path.startswith(f"{listing}/tree/"):
                return json.dumps([{"type": "file", "path": file, "size": len(body), "oid": "0"}
                                   for file, body in files.items()]).encode()
            if path.startswith(place):
                return files.get(path.removeprefix(place).partition("/")[2])
        return None

    def answer(self, body: bytes | None):
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body or b"").hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    def log_message(self, *args):
        pass


def test_a_run_from_the_hub_and_another_one_offline(hub, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps({
        "model": {"path": "org/tiny", "dtype": "float32"}, "data": {"train": "hub:org/sums", "sequence_length": 256},
        "train": {"max_steps": 2}, "evaluate": {"samples": 0}}))

    def train(name: str, *more: str, **environment: str) -> subprocess.CompletedProcess:
        settings = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", **environment}
        return subprocess.run([sys.executable, "-m", "tunesmith.cli", "train", "recipe.yaml", "--name", name, *more],
                              cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, check=False)

    online, offline = train("online"), train("offline", HF_HUB_OFFLINE="1")
    assert (online.returncode, offline.returncode) == (0, 0), online.stderr + offline.stderr
    first, second = ((tmp_path / "runs" / name / "adapter" / "adapter_model.safetensors").read_bytes()
                     for name in ("online", "offline"))
    assert first == second
    assert not list((tmp_path / "hf").rglob("*trap*")) and not list((tmp_path / "hf").rglob("*.bin"))
    config = json.loads((tmp_path / "runs" / "online" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/tiny"
    for more in (["--model.path", "org/none"], ["--data.train", "hub:org/none"]):
        refused = train("refused", *more)
        assert refused.returncode == 2
        last = refused.stderr.splitlines()[-1]  # before it only progress
        assert last.startswith("tunesmith: ") and "org/none" in last and "Traceback" not in refused.stderr
