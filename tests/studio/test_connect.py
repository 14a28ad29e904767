"""Connecting clients to a server through the studio, as `tunesmith connect` does."""

import json
import subprocess
import sys

import pytest

from tests.studio.calling import calling, standing_in, studio_in
from tunesmith.connect.clients import CLIENTS
from tunesmith.serve.registry import NAME


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path / "claude"))
    monkeypatch.delenv(NAME, raising=False)


@pytest.fixture
def client(tmp_path):
    with calling(studio_in(tmp_path)) as client:
        yield client


def test_all_clients_are_listed(client):
    found = client.get("/connect/clients").json()
    assert [one["name"] for one in found] == list(CLIENTS) and all(one["path"] for one in found)


@pytest.mark.parametrize("name", ["opencode", "codex", "llm"])
def test_the_text_is_that_of_the_command(client, name):
    with standing_in() as server:
        found = client.get(f"/servers/{client.get('/servers').json()[0]['id']}/connect/{name}?model=my-run").json()
        command = [sys.executable, "-m", "tunesmith", "connect", name, "--url", server.url, "--no-test"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found["text"] == printed.stdout and found["warnings"] == []
    assert found["path"] in printed.stderr and f"Next: {found['next_step']}" in printed.stderr


def test_the_configuration_is_written_with_the_servers_key_and_tried(client, tmp_path, monkeypatch):
    monkeypatch.setenv(NAME, "chosen")
    with standing_in("secret") as server:
        server.models[1]["tunesmith"]["tools"] = False
        path = "/servers/chosen/connect/claude-code"
        assert "no tools" in client.get(f"{path}?model=my-run").json()["warnings"][0]
        assert client.post(f"{path}/write", json={"model": "my-run"}).json()["message"].startswith("Wrote ")
        written = json.loads((tmp_path / "claude" / "tunesmith.json").read_text())["env"]
        assert written["ANTHROPIC_AUTH_TOKEN"] == "secret" and written["ANTHROPIC_BASE_URL"] == server.url
        assert "Test passed" in client.post(f"{path}/test", json={"model": "base-1b"}).json()["message"]
        assert client.get(f"{path}?model=other").status_code == 400
        assert client.get("/servers/chosen/connect/none?model=my-run").status_code == 400
