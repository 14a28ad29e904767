"""Commands in forks of a process that has its imports behind it."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.studio.calling import until
from tunesmith.recipe import Recipe
from tunesmith.studio import warm
from tunesmith.studio.commands import CommandFailed, Commands
from tunesmith.studio.warm import WarmProcess

# Serves at once, and has a command that never ends, with a process of its own.
SERVES_AT_ONCE = """
import socket, subprocess, sys
from tunesmith.cli import warm
main = warm.main
def with_sleep(arguments):
    if arguments[0] == "sleep":
        child = subprocess.Popen(["sleep", "600"])
        open("pid", "w").write(f"{child.pid}\\n")
        child.wait()
    main(arguments)
warm.main = with_sleep
warm.serve(socket.socket(fileno=int(sys.argv[1])))
"""


@pytest.fixture
def serving(tmp_path):
    """The path of the socket of a process that serves, and the process."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        process = subprocess.Popen(
            [sys.executable, "-c", SERVES_AT_ONCE, str(listening.fileno())],
            pass_fds=[listening.fileno()],
            stdin=subprocess.PIPE,
        )
    yield str(tmp_path / "s"), process
    process.kill()
    process.wait()
    process.stdin.close()


def connect(path: str, *arguments: str, folder: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.sendall(json.dumps({"arguments": arguments, "folder": str(folder)}).encode() + b"\n")
    return client


def answer(path: str, *arguments: str, folder: Path) -> dict:
    with connect(path, *arguments, folder=folder) as client, client.makefile() as stream:
        return json.loads(stream.read())


def test_a_fork_answers_as_the_command_line_does(serving, tmp_path):
    (tmp_path / "d.jsonl").write_text("{}")
    for arguments in (["recipe", "schema"], ["plan", "none.yaml"], ["runs", "show", "\udcff"], ["nonsense"]):
        alone = subprocess.run(
            [sys.executable, "-m", "tunesmith", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        found = answer(serving[0], *arguments, folder=tmp_path)
        assert found == {"status": alone.returncode, "output": alone.stdout, "errors": alone.stderr}


def test_a_command_ends_with_its_client_and_its_processes_too(serving, tmp_path):
    pid = tmp_path / "pid"
    with connect(serving[0], "sleep", folder=tmp_path):
        until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    until(lambda: not is_at_work(int(pid.read_text())))
    assert answer(serving[0], "--version", folder=tmp_path)["status"] == 0


def test_it_ends_with_the_studio(serving):
    _, process = serving
    process.stdin.close()
    assert process.wait(30) == 0


def is_at_work(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("fault", ["it ends at its start, as without torch", "the path of its socket is too long"])
def test_without_it_a_command_is_a_process_of_its_own(tmp_path, monkeypatch, fault):
    python = tmp_path / "python"
    if "long" in fault:
        (tmp_path / ("x" * 120)).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 120)))
    python.write_text(f'#!/bin/sh\ncase "$*" in *cli.warm*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    async def ask():
        with pytest.raises(CommandFailed, match="no folder ./nothing"):
            await Commands(tmp_path, WarmProcess()).plan(Recipe.build({"model": "./nothing", "data": "d.jsonl"}), [])

    asyncio.run(ask())


@pytest.mark.slow
def test_a_plan_in_a_fork_is_that_of_the_command(small, studio, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # its threads know forks; those of others would be missing in them
    (studio.folder / "r.yaml").write_text(json.dumps(small))
    arguments = ["plan", "r.yaml", "--machine=4090", "--json"]
    alone = subprocess.run([sys.executable, "-m", "tunesmith", *arguments], capture_output=True, text=True, check=True)

    async def ask() -> str:
        process = WarmProcess()
        await process.ready()
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        [server] = [pid for pid in children if b"tunesmith.cli.warm" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1
        first, second = await asyncio.gather(*(process.run(arguments, studio.folder) for _ in range(2)))
        assert first == second
        monkeypatch.setattr(warm, "IDLE_SECONDS", 0)
        process.start()
        while Path(f"/proc/{server}").exists():
            await asyncio.sleep(0.05)
        assert await process.run(arguments, studio.folder) is None
        return first.output

    assert json.loads(asyncio.run(ask())) == json.loads(alone.stdout)
