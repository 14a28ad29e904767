"""Which servers run on this machine: each says so as long as it lives."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.run import process_start
from tunesmith.serve import registry
from tunesmith.serve.registry import ServedModel, entries, file_of, registered, servers_folder

CODE = """
import sys
from pathlib import Path
from tunesmith.serve.registry import registered
with registered("127.0.0.1", 4242, [Path("m")], "secret") as registration:
    registration.update(state="ready")
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / "state"))
    monkeypatch.delenv(registry.NAME, raising=False)


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        started.stdout.readline()
        yield started
        started.kill()


def test_a_server_is_found_until_it_is_killed(process):
    [entry] = entries()
    assert (entry.pid, entry.started) == (process.pid, process_start(process.pid))
    assert (entry.state, entry.url, entry.needs_key) == ("ready", "http://127.0.0.1:4242", True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert entries() == [] and not list(servers_folder().glob("*.jsonl"))


def test_a_server_that_ends_removes_its_entry(process):
    process.stdin.close()
    process.wait()
    assert list(servers_folder().iterdir()) == []


def test_the_key_is_kept_only_if_the_studio_chose_it_and_nobody_else_can_read_it(monkeypatch):
    with registered("127.0.0.1", 1, [], "secret"):
        [entry] = entries()
        assert entry.needs_key and entry.key is None
        assert "secret" not in file_of(entry.id).read_text()
    monkeypatch.setenv(registry.NAME, "chosen")
    with registered("127.0.0.1", 1, [], "secret"):
        [entry] = entries()
        assert (entry.id, entry.key) == ("chosen", "secret")
        assert file_of("chosen").stat().st_mode & 0o777 == 0o600


def test_half_a_line_is_not_read(tmp_path):
    with registered("127.0.0.1", 1, [tmp_path], None) as registration:
        registration.update(state="ready", models=(ServedModel("m", "base", "m", 512),))
        [before] = entries()
        with file_of(before.id).open("ab") as file:
            file.write(b'{"id": "x", "sta')
        assert entries() == [before] and before.models[0].context == 512


def test_a_folder_that_cannot_be_written_does_not_stop_a_server(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("TUNESMITH_STATE", str(file))
    with registered("127.0.0.1", 1, [Path("m")], None) as registration:
        registration.update(state="ready")
        assert entries() == []


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", "http://127.0.0.1:7"),
        ("localhost", "http://127.0.0.1:7"),
        ("0.0.0.0", "http://127.0.0.1:7"),
        ("::1", "http://[::1]:7"),
        ("192.168.0.4", None),
        ("box.example", None),
    ],
)
def test_only_the_loopback_address_is_local(host, local):
    with registered(host, 7, [], None):
        [entry] = entries()
    assert entry.local_url == local
