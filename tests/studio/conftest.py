"""A studio on a temporary folder, without a server, and a client that the guard lets through."""

import os

import pytest
from fastapi.testclient import TestClient

from tests.conftest import sums, write_rows
from tunesmith.jobs.store import Store
from tunesmith.studio.app import guarded, make_app
from tunesmith.studio.catalogue import Catalogue
from tunesmith.studio.guard import TOKEN_HEADER
from tunesmith.studio.roots import Roots
from tunesmith.studio.state import Studio

TOKEN = "a-token"


@pytest.fixture
def studio(tmp_path, monkeypatch) -> Studio:
    """A studio whose only root is `work` in the test's folder, with a queue of its own."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / "state"))
    store = Store()
    return Studio(folder, store, Roots([folder]), Catalogue([folder / "runs"], store))


@pytest.fixture
def client(studio) -> TestClient:
    """Sends requests as the page does."""
    app = guarded(make_app(studio), TOKEN, ["localhost"])
    return TestClient(app, base_url="http://localhost", headers={TOKEN_HEADER: TOKEN}, raise_server_exceptions=False)


@pytest.fixture
def small(studio, family) -> dict:
    """A recipe whose model and data are in the studio's folder."""
    write_rows(studio.folder / "d.jsonl", sums(30))
    (studio.folder / "m").mkdir()
    for file in family("llama3").iterdir():
        os.link(file, studio.folder / "m" / file.name)
    return {"model": "m", "data": "d.jsonl", "train": {"max_steps": 4}}
