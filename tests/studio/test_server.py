"""The studio as a process: how it starts and ends, and that nothing depends on it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.studio.conftest import START, steps
from tests.studio.process import StudioProcess


@pytest.fixture
def start(studio):
    """Starts studios in the folder of the test, and ends them."""
    started = []

    def begin(*flags: str) -> StudioProcess:
        started.append(StudioProcess(studio.folder, *flags))
        return started[-1]

    yield begin
    for one in started:
        one.stop()


def test_ctrl_c_ends_it_at_once_although_a_stream_is_open(start):
    server = start()
    with server.open("/api/events") as stream:
        assert stream.readline().startswith(b"event:")
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0
        assert time.monotonic() - began < 10
    assert server.process.stderr.read().strip().endswith("Ctrl-C ends it; jobs and servers continue")


def test_a_killed_studio_is_followed_by_another_that_shows_the_same(start, make_run):
    """A training does not know the studio: here it is played by events and a lock."""
    run = make_run("a", ("start", START), *steps(3))
    with run.held():
        first = start()
        [before] = first.get("/api/runs")
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        run.log("step", step=4, loss=0.5, seconds=1.0, tokens=10)
        second = start()
        assert second.token != first.token
        [after] = second.get("/api/runs")
        assert (after["id"], after["status"], after["steps_done"]) == (before["id"], "running", 4)
        loss = second.get(f"/api/runs/{after['id']}/curves")["curves"][0]
        assert loss["x"] == [1, 2, 3, 4]


def test_torch_is_not_loaded(start, make_run):
    make_run("a", ("start", START), *steps(3))
    server = start()
    [row] = server.get("/api/runs")
    for path in ("/api/machine", "/api/queue", f"/api/runs/{row['id']}", f"/api/runs/{row['id']}/curves"):
        server.get(path)
    with open(f"/proc/{server.process.pid}/maps") as maps:
        assert "libtorch" not in maps.read()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--host", "0.0.0.0"], "it needs --key (or TUNESMITH_STUDIO_KEY)"),
        (["--key", " x"], "--key (or TUNESMITH_STUDIO_KEY): use printable ASCII"),
        (["--allow-host", "http://a"], "not a host name"),
        (["--root", "nowhere"], "--root nowhere: there is no such folder"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(studio, flags, says):
    command = [sys.executable, "-m", "tunesmith", "studio", "--no-open", "--port", "0", *flags]
    ended = subprocess.run(command, cwd=studio.folder, capture_output=True, text=True, timeout=60, env=os.environ)
    assert ended.returncode == 2 and says in ended.stderr and "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_port_that_is_in_use_is_said(start, studio):
    port = start().url.rpartition(":")[2]
    command = [sys.executable, "-m", "tunesmith", "studio", "--no-open", "--port", port]
    ended = subprocess.run(command, cwd=studio.folder, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and "in use" in ended.stderr
