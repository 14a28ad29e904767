"""Models on this machine: found, described, deleted only where nothing needs them, downloaded only when asked."""

import hashlib
import json
import os
import struct
import threading
import time
from contextlib import ExitStack
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.data.test_hub import COMMIT, StandIn
from tests.studio.test_deletion import at_set_aside
from tunesmith import leases
from tunesmith.files import write_json
from tunesmith.jobs import deletion
from tunesmith.run import Run
from tunesmith.serve import registry
from tunesmith.studio import model_facts
from tunesmith.studio.gguf_header import read_header

gguf = pytest.importorskip("gguf")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "hf" / "hub"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(cache: Path, name: str, files: dict[str, bytes]) -> Path:
    """Puts a model into the hub's cache as its client lays it out. Returns the snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file, content in files.items():
        blob = repository / "blobs" / hashlib.sha1(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def write_gguf(file: Path) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(4096)
    writer.add_license("apache-2.0")
    writer.add_tags(["a", "b"])
    writer.add_token_list(["x"] * 10)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def folder_of(studio, family, name: str = "m", **files: str) -> Path:
    folder = studio.folder / name
    folder.mkdir()
    for file in family("llama3").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for file, text in files.items():
        (folder / file.replace("__", ".")).write_text(text)
    return folder


def run_of(studio, base: str, name: str = "first") -> Run:
    run = Run(studio.folder / "runs" / name)
    run.checkpoints.mkdir(parents=True)
    run.recipe_file.write_text(f"model: {{path: {base}}}\ndata: d\n")
    return run


def rows(client) -> dict[str, dict]:
    answer = client.get("/api/models")
    assert answer.status_code == 200, answer.text
    return {row["name"]: row for row in answer.json()}


def test_models_of_every_kind_are_described(client, studio, family, hub_cache, cache):
    card = b"---\nlicense: other\nlicense_name: llama3\nbase_model: [org/parent]\n---\n# Card"
    config = json.dumps({"architectures": ["A"], "text_config": {"max_position_embeddings": 77}}).encode()
    cached(hub_cache, "org/hubbed", {"README.md": card, "config.json": config, "model.safetensors": b"x" * 1000})
    folder_of(studio, family, LICENSE="\n   Apache License\n   Version 2.0")
    write_gguf(studio.folder / "q.gguf")
    lora = studio.folder / "deep" / "er" / "lora"
    lora.mkdir(parents=True)
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/parent"}')
    (lora / "adapter_model.safetensors").write_bytes(b"xyz")
    run = run_of(studio, "org/hubbed")
    for place in (run.folder / "adapter", run.folder / "gguf"):
        place.mkdir()
    (run.folder / "adapter" / "adapter_config.json").write_text("{}")
    (run.folder / "gguf" / "parity.json").write_text("{}")
    write_gguf(run.folder / "gguf" / "first.gguf")
    (studio.folder / "out").symlink_to(family("qwen2"))
    (studio.folder / ".hidden").mkdir()
    write_gguf(studio.folder / ".hidden" / "h.gguf")
    found = rows(client)
    kinds = {name: row["kind"] for name, row in found.items()}
    assert kinds == {
        "org/hubbed": "hub", "m": "folder", "q.gguf": "gguf", "lora": "adapter", "first": "result",
        "first (gguf)": "export",
    }  # fmt: skip
    hubbed, own, file = found["org/hubbed"], found["m"], found["q.gguf"]
    assert (hubbed["architecture"], hubbed["context"], hubbed["licence"]) == ("A", 77, "llama3")
    assert (hubbed["base"], hubbed["path"], hubbed["is_complete"]) == ("org/parent", "org/hubbed", True)
    assert 1000 + len(card) + len(config) <= hubbed["bytes"] < 1000 + len(card) + len(config) + 500
    assert [(use["kind"], use["name"]) for use in hubbed["used_by"]] == [("run", "first")]
    assert (own["architecture"], own["context"], own["licence"]) == ("LlamaForCausalLM", 512, "apache-2.0")
    assert own["bytes"] == sum(entry.stat().st_size for entry in (studio.folder / "m").iterdir())
    assert (file["architecture"], file["context"], file["licence"]) == ("llama", 4096, "apache-2.0")
    assert (found["lora"]["architecture"], found["lora"]["base"]) == ("LORA", "org/parent")
    assert found["first (gguf)"]["run"] == found["first"]["run"] and found["first (gguf)"]["context"] == 4096


def test_a_model_is_deleted_and_what_is_not_its_own_stays(client, studio, family, hub_cache):
    folder = folder_of(studio, family, notes__txt="mine")
    found = rows(client)["m"]
    expected = {"bytes": found["bytes"], "refusal": "", "kept": ["notes.txt"]}
    assert client.get(f"/api/models/{found['id']}/deletion").json() == expected
    assert folder.exists()
    assert client.delete(f"/api/models/{found['id']}").json() == expected
    assert os.listdir(folder) == ["notes.txt"]
    assert client.delete(f"/api/models/{found['id']}").status_code == 400


def test_hub_models_and_files_are_deleted_whole(client, studio, hub_cache):
    cached(hub_cache, "org/gone", {"config.json": b"{}", "model.safetensors": b"x"})
    cached(hub_cache, "org/stays", {"config.json": b"{}", "model.safetensors": b"x"})
    write_gguf(studio.folder / "q.gguf")
    found = rows(client)
    for name in ("org/gone", "q.gguf"):
        assert client.delete(f"/api/models/{found[name]['id']}").status_code == 200
    assert set(rows(client)) == {"org/stays"} and os.listdir(studio.folder) == []


@pytest.mark.parametrize("base", ["m", "./m/", "{folder}/m"])
def test_a_base_stays(client, studio, family, base, hub_cache):
    folder_of(studio, family)
    run_of(studio, base.format(folder=studio.folder))
    id = rows(client)["m"]["id"]
    refusal = "it is the base of first; delete these runs first"
    assert client.get(f"/api/models/{id}/deletion").json()["refusal"] == refusal
    answer = client.delete(f"/api/models/{id}")
    assert answer.status_code == 400 and refusal in answer.json()["error"]["message"]
    assert (studio.folder / "m" / "config.json").exists()


def test_a_base_that_only_the_plan_names_stays(client, studio, hub_cache):
    snapshot = cached(hub_cache, "org/base", {"config.json": b"{}", "model.safetensors": b"x"})
    run_of(studio, "elsewhere").plan_file.write_text(json.dumps({"base": str(snapshot)}))
    id = rows(client)["org/base"]["id"]
    assert "the base of first" in client.get(f"/api/models/{id}/deletion").json()["refusal"]


def test_what_is_used_stays(client, studio, family, hub_cache):
    folder = folder_of(studio, family)
    id = rows(client)["m"]["id"]
    with leases.held([leases.CPU], "serving", folder=folder):
        refusal = client.get(f"/api/models/{id}/deletion").json()["refusal"]
        assert refusal == f"serving ({os.getpid()}) uses it; stop that first"
    with registry.registered("127.0.0.1", 8000, [folder], None):
        assert "the server at http://127.0.0.1:8000" in client.get(f"/api/models/{id}/deletion").json()["refusal"]
    assert client.get(f"/api/models/{id}/deletion").json()["refusal"] == ""


@pytest.mark.parametrize("kind", ["folder", "gguf", "hub", "export"])
def test_what_is_used_from_the_moment_of_the_deletion_on_stays(client, studio, family, hub_cache, monkeypatch, kind):
    """A server that starts after the check and before the files are moved."""
    if kind == "folder":
        name, path = "m", folder_of(studio, family)
    elif kind == "gguf":
        name, path = "q.gguf", write_gguf(studio.folder / "q.gguf")
    elif kind == "hub":
        files = {"config.json": b"{}", "model.safetensors": b"x"}
        name, path = "org/m", cached(hub_cache, "org/m", files)
    else:
        name, path = "first (gguf)", run_of(studio, "org/base").folder / "gguf"
        path.mkdir()
        (path / "parity.json").write_text("{}")
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    with ExitStack() as stack:
        at_set_aside(monkeypatch, lambda: stack.enter_context(leases.held(["cpu"], "serving", folder=path)))
        answer = client.delete(f"/api/models/{rows(client)[name]['id']}")
        assert answer.status_code == 400 and "serving" in answer.json()["error"]["message"]
    assert {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()} == before
    assert client.delete(f"/api/models/{rows(client)[name]['id']}").status_code == 200 and name not in rows(client)


def test_what_a_killed_deletion_left_is_removed_by_a_later_one(client, studio, family, hub_cache, monkeypatch):
    left = studio.folder / "m" / f".1234{deletion.ASIDE}"
    folder_of(studio, family)
    left.mkdir()
    (left / "0").write_text("weights")
    id = rows(client)["m"]["id"]
    monkeypatch.setattr(deletion, "STALE_SECONDS", 0.0)
    assert client.delete(f"/api/models/{id}").status_code == 200 and not left.exists()


def test_a_result_is_deleted_with_its_run(client, studio, hub_cache):
    (run_of(studio, "org/m").folder / "adapter").mkdir()
    id = rows(client)["first"]["id"]
    assert "delete the run" in client.get(f"/api/models/{id}/deletion").json()["refusal"]
    assert client.delete(f"/api/models/{id}").status_code == 400


@pytest.mark.parametrize("id", ["none", "..", "m-00000000", "%2e%2e%2fetc", "a%00b"])
def test_an_unknown_id_deletes_nothing(client, studio, id, hub_cache):
    assert client.delete(f"/api/models/{id}").status_code in (400, 404, 405)


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", "[1]"),
        ("config.json", "{"),
        ("config.json", "[" * 100_000),
        ("config.json", '{"architectures": "x", "max_position_embeddings": "many", "quantization_config": 3}'),
        ("config.json", '{"architectures": [{}], "text_config": []}'),
        ("adapter_config.json", '{"base_model_name_or_path": ["a"], "peft_type": 1}'),
        ("README.md", "---\nlicense: [a]\nbase_model: {}\n---"),
        ("README.md", "---\n- a\n---"),
        ("LICENSE", "\n\n"),
    ],
)
def test_strange_files_say_nothing(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert model_facts.facts_of_folder(tmp_path) == model_facts.Facts()


def test_damaged_gguf_files_say_nothing(tmp_path):
    whole = write_gguf(tmp_path / "q.gguf").read_bytes()
    key = struct.pack("<Q", 1) + b"a"
    damaged = [
        b"",
        b"GGUF",
        b"GGML" + whole[4:],
        *(whole[:length] for length in range(0, 60, 7)),
        whole[:4] + struct.pack("<IQQ", 9, 0, 1),
        whole[:4] + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"a",
        whole[:4] + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 10, 2**63),
        whole[:4] + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IIQ", 9, 8, 2**63),
        whole[:4] + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<I", 99),
    ]
    for number, content in enumerate(damaged):
        (tmp_path / f"{number}.gguf").write_bytes(content)
        assert read_header(tmp_path / f"{number}.gguf") is None
    assert read_header(tmp_path / "q.gguf")["llama.context_length"] == 4096


class Hub(StandIn):
    """A hub that also says how large files are."""

    def body(self, path: str) -> bytes | None:
        found = super().body(path)
        if found is not None and path.startswith("/api/models/org/tiny") and "/tree/" not in path:
            listing = json.loads(found)
            for file in listing["siblings"]:
                content = self.repositories["/models/org/tiny"][file["rfilename"]]
                file |= {"size": len(content), "blobId": hashlib.sha1(content).hexdigest()}
            return json.dumps(listing).encode()
        return found


def test_a_served_model_says_where(client, studio, family, make_run, hub_cache, monkeypatch):
    base, other = folder_of(studio, family), folder_of(studio, family, "other")
    run = make_run("first")
    (run.folder / "adapter").mkdir()
    write_json(run.plan_file, {"base": str(base)})
    write_gguf(studio.folder / "small.gguf")
    models = (registry.ServedModel("first", "tuned", "base", 512), registry.ServedModel("base", "base", "base", 512))
    with registry.registered("127.0.0.1", 1, [run.folder], None) as registration:
        registration.update(models=models)
        assert not any(row["served"] for row in rows(client).values())  # it is still loading
        registration.update(state="ready")
        [entry] = registry.entries()
        found = {name: row["served"] and row["served"]["model"] for name, row in rows(client).items()}
        assert found == {"first": "first", "m": "base", "other": None, "small.gguf": None}
        assert rows(client)["first"]["served"]["server"] == entry.id
    with registry.registered("127.0.0.1", 1, [studio.folder / "small.gguf", other], None) as registration:
        models = tuple(registry.ServedModel(name, "base", name, 512) for name in ("other", "small"))
        registration.update(state="ready", models=models)
        found = {name: row["served"] and row["served"]["model"] for name, row in rows(client).items()}
        assert found == {"first": None, "m": None, "other": "other", "small.gguf": "small"}


@pytest.fixture
def hub(tmp_path, family, monkeypatch) -> dict[str, bytes]:
    """Files of the model org/tiny of a hub."""
    files = {file.name: file.read_bytes() for file in family("llama3").iterdir()} | {"pytorch_model.bin": b"pickle"}
    monkeypatch.setattr(StandIn, "repositories", {"/models/org/tiny": files})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    yield files
    server.shutdown()


def ended(client) -> dict:
    """The only download, once it has ended."""
    while True:
        (one,) = client.get("/api/models/downloads").json()
        if one["state"] != "running":
            return one
        time.sleep(0.05)


def test_a_model_is_downloaded(client, hub, hub_cache):
    started = client.post("/api/models/download", json={"model": "org/tiny"}).json()
    assert started["model"] == "org/tiny" and started["error"] == ""
    one = ended(client)
    size = sum(len(content) for name, content in hub.items() if name != "pytorch_model.bin")
    assert (one["state"], one["error"]) == ("done", "")
    assert one["done_bytes"] == one["total_bytes"] == size
    found = rows(client)["org/tiny"]
    assert found["is_complete"] and found["architecture"] == "LlamaForCausalLM"
    snapshot = hub_cache / "models--org--tiny" / "snapshots" / COMMIT
    assert set(os.listdir(snapshot)) == set(hub) - {"pytorch_model.bin"}
    assert client.delete(f"/api/models/downloads/{one['id']}").status_code == 200
    assert client.get("/api/models/downloads").json() == []


@pytest.mark.parametrize("model", ["org/none", "org/tiny"])
def test_what_cannot_be_downloaded_is_one_line(client, hub, hub_cache, monkeypatch, model):
    if model == "org/tiny":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    client.post("/api/models/download", json={"model": model})
    one = ended(client)
    assert one["state"] == "failed" and one["error"] and "\n" not in one["error"] and "Traceback" not in one["error"]


@pytest.mark.parametrize(
    "asked", [{"model": "tiny"}, {"model": "../tiny"}, {"model": "/etc/passwd"}, {"model": "org/tiny", "file": "*.bin"}]
)
def test_nothing_else_is_downloaded(client, hub, hub_cache, asked):
    assert client.post("/api/models/download", json=asked).status_code == 400
    assert client.get("/api/models/downloads").json() == []


def test_nothing_is_downloaded_offline(client, hub, hub_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    answer = client.post("/api/models/download", json={"model": "org/tiny"})
    assert answer.status_code == 400 and "HF_HUB_OFFLINE is set" in answer.json()["error"]["message"]
    assert client.get("/api/models/downloads").json() == []


def test_a_download_is_stopped(client, hub, hub_cache, monkeypatch):
    """In the middle of a file, and its process ends."""
    begun, go = threading.Event(), threading.Event()
    whole = Hub.body

    def held(self, path):
        if path.endswith("model.safetensors"):
            begun.set()
            go.wait(60)
        return whole(self, path)

    monkeypatch.setattr(Hub, "body", held)
    started = client.post("/api/models/download", json={"model": "org/tiny"}).json()
    assert begun.wait(60)
    (running,) = client.get("/api/models/downloads").json()
    assert running["state"] == "running" and running["total_bytes"] > running["done_bytes"]
    again = client.post("/api/models/download", json={"model": "org/tiny"}).json()
    assert (again["id"], again["state"]) == (started["id"], "running")
    assert client.post(f"/api/models/downloads/{started['id']}/stop", json={}).json()["state"] == "stopped"
    go.set()
    assert ended(client)["state"] == "stopped"
