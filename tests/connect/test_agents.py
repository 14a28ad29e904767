"""Installed coding agents, configured by `connect`: each calls a tool, reads the result, and answers."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.serving import Scripted

pytestmark = pytest.mark.slow

ASKED = "Make the file"
# The program, how it is asked, and its tool for the shell with what the call is to say.
AGENTS = {
    "codex": [
        "codex",
        "exec",
        "--profile",
        "tunesmith",
        "--skip-git-repo-check",
        "--dangerously-bypass-approvals-and-sandbox",
        ASKED,
    ],
    "opencode": ["opencode", "run", "--model", "tunesmith/qwen3", ASKED],
    "claude-code": ["claude", "--settings", "{home}/.claude/tunesmith.json", "--allowedTools", "Bash", "-p", ASKED],
    "openclaw": ["openclaw", "agent", "exec", "--model", "tunesmith/qwen3", "--no-auth-env-only", ASKED],
    "continue": ["cn", "--config", "{home}/.continue/config.yaml", "--auto", "-p", ASKED],
}
SHELLS = {
    "exec_command": '{"cmd": "echo made > made.txt"}',
    "exec": '{"command": "echo made > made.txt"}',
    "bash": '{"command": "echo made > made.txt", "description": "Make it"}',
    "Bash": '{"command": "echo made > made.txt", "description": "Make it"}',
}
ANSWER = "It is made, as the tool says."


class Agent(Scripted):
    """A model that calls the shell once, then says ANSWER."""

    def submit(self, request, deliver):
        prompt = self.models[request.model].tokenizer.decode(request.ids)
        tools = [name for name in re.findall(r'"name": ?"(\w+)"', prompt) if name in SHELLS]
        answered = "<tool_response>" in prompt[prompt.rfind(ASKED) :]
        if tools and not answered:
            self.says = (
                f'<tool_call>\n{{"name": "{tools[0]}", "arguments": {SHELLS[tools[0]]}}}\n</tool_call><|im_end|>'
            )
        else:
            self.says = f"{ANSWER}<|im_end|>"
        return super().submit(request, deliver)


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_uses_a_tool(tokenizers, served, tmp_path, name):
    command = [part.format(home=tmp_path) for part in AGENTS[name]]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]} on PATH")
    engine = Agent({"qwen3": tokenizers["qwen3"]})
    engine.models = {key: replace(model, context=131072) for key, model in engine.models.items()}
    project = tmp_path / "project"
    project.mkdir()
    environment = {**os.environ, "HOME": str(tmp_path), "PWD": str(project), "TUNESMITH_API_KEY": "none"}
    environment = {key: value for key, value in environment.items() if not key.startswith(("XDG_", "CODEX_", "CLAUDE"))}
    subprocess.run(
        [sys.executable, "-m", "tunesmith", "connect", name, "--url", served(engine), "--write", "--no-test"],
        env=environment,
        check=True,
        capture_output=True,
    )
    done = subprocess.run(
        command, cwd=project, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
    )
    assert ANSWER in done.stdout, done.stderr
    assert (project / "made.txt").read_text() == "made\n"
