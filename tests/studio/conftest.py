"""A studio in a temporary folder, called as its page calls it."""

import json
import os
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.conftest import sums, write_rows
from tunesmith.jobs.store import Store
from tunesmith.run import Run
from tunesmith.studio.app import guarded, make_app
from tunesmith.studio.catalogue import Catalogue
from tunesmith.studio.commands import Commands
from tunesmith.studio.guard import TOKEN_HEADER
from tunesmith.studio.roots import Roots
from tunesmith.studio.state import Studio

TOKEN = "a-token-of-the-tests"
ORIGIN = "http://localhost:8384"


@pytest.fixture
def studio(tmp_path, monkeypatch) -> Studio:
    """A studio that was started in an empty folder, with a queue of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    store = Store()
    return Studio(folder, store, Roots([folder]), Catalogue([folder / "runs"], store), Commands(folder))


@pytest.fixture
def client(studio) -> Iterator[TestClient]:
    """Calls the studio with its token, as the page does."""
    app = guarded(make_app(studio), TOKEN, ["localhost"])
    headers = {TOKEN_HEADER: TOKEN, "Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
    with TestClient(app, base_url=ORIGIN, headers=headers, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def make_run(studio, recipe):
    """Makes a run folder with events, as training writes them: (event, {values})."""

    def make(name: str, *events: tuple[str, dict]) -> Run:
        run = Run.create(recipe(name=name, output=str(studio.folder / "runs")))
        for event, values in events:
            run.log(event, **values)
        return run

    return make


START = {"steps": 10, "rows": 40, "eval_rows": 4, "trainable_parameters": 1000, "parameters": 5000}
START |= {"loading_seconds": 1.0, "host_peak_bytes": 10**8}


def steps(count: int, first: int = 1, **values) -> list[tuple[str, dict]]:
    """`step` events with all numbers that training writes."""
    usual = {"learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 100, "seconds": 0.5, "tokens_per_second": 200.0}
    usual |= {"waiting_seconds": 0.1, "memory_bytes": 10**9}
    return [("step", {"step": step, "loss": 3.0 / step, **usual, **values}) for step in range(first, first + count)]


def written(events: list[tuple[str, dict]]) -> bytes:
    """Lines of events.jsonl."""
    return b"".join(json.dumps({"event": name, **values}).encode() + b"\n" for name, values in events)


@pytest.fixture
def small(studio, family) -> dict:
    """A recipe whose model and data are in the studio's folder."""
    write_rows(studio.folder / "d.jsonl", sums(30))
    (studio.folder / "m").mkdir()
    for file in family("llama3").iterdir():
        os.link(file, studio.folder / "m" / file.name)
    return {"model": "m", "data": "d.jsonl", "train": {"max_steps": 4}}
