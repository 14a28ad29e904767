"""FIFOs and devices under the names of files keep no request waiting: whoever opens one waits for its writer."""

import os
import re
import threading
from pathlib import Path

import pytest

from tests.studio.conftest import START, steps
from tunesmith.files import NotAFile, open_file, read_json, read_text
from tunesmith.run import Run
from tunesmith.studio.catalogue import id_of

IN_ROOT = [
    "x.yaml",
    "x.jsonl",
    "x.gguf",
    "x.txt",
    "m/config.json",
    "m/README.md",
    "m/LICENSE",
    "m/generation_config.json",
]
IN_RUN = """recipe.yaml plan.json provenance.json ledger.jsonl events.jsonl before.json eval.json report.html .lock
.control adapter/adapter_config.json gguf/parity.json""".split()
SECONDS = 20.0  # the answer takes milliseconds


def answer(client, method: str, path: str, fifo: Path, **facts):
    """The answer to a request. Whoever waits at the FIFO is let go."""
    found = []
    thread = threading.Thread(target=lambda: found.append(client.request(method, path, **facts)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
        pytest.fail(f"{method} {path} waits at {fifo}")
    return found[0]


@pytest.mark.parametrize("name", [*IN_ROOT, *(f"runs/a/{name}" for name in IN_RUN)])
def test_no_route_waits_at_a_fifo(client, studio, make_run, family, name):
    run = make_run("a", ("start", START), *steps(3, supervised_tokens=50))
    for file in family("llama3").iterdir():
        (studio.folder / "m").mkdir(exist_ok=True)
        (studio.folder / "m" / file.name).write_bytes(file.read_bytes())
    fifo = studio.folder / name
    fifo.parent.mkdir(parents=True, exist_ok=True)
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    ids = {"runs": id_of(run.folder), "models": id_of(studio.folder / "m"), "recipes": id_of(studio.folder / "x.yaml")}
    asked = []
    for route in client.app._app.openapi()["paths"].items():
        path, methods = route
        if "get" in methods and path != "/api/events":  # a stream
            asked.append(re.sub(r"\{\w+\}", ids.get(path.split("/")[2], "1"), path))
    assert len(asked) > 25
    for path in asked:
        found = answer(client, "GET", path, fifo)
        assert found.status_code in (200, 400, 404, 422), (path, found.text)
    listed = answer(client, "GET", "/api/files", fifo, params={"path": str(fifo.parent.relative_to(studio.folder))})
    if listed.status_code == 200:
        assert fifo.name not in [entry["name"] for entry in listed.json()["entries"]]
    for path, body in {
        "/api/data/check": {"path": name},
        "/api/data/rows": {"source": {"path": name}, "model": "m"},
        "/api/jobs": {"recipe": {"model": "m", "data": name}},
        f"/api/runs/{ids['runs']}/report": {},
    }.items():
        found = answer(client, "POST", path, fifo, json=body)
        assert found.status_code in (200, 400, 422), (path, found.text)


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("{}\r\n")
    for odd in (tmp_path / "fifo", Path("/dev/zero")):
        for read in (open_file, read_text, read_json):
            with pytest.raises(NotAFile, match="neither a file nor a folder") as error:
                read(odd)
            assert "\n" not in str(error.value)
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "none")
    assert read_text(tmp_path / "file") == "{}\n" and read_json(tmp_path / "file") == {}
    assert Run(tmp_path / "none").events() == []
