"""Ollama as the gate asks it. Ollama itself is not at hand: a server that speaks its API, as its source has it, and a
program that makes models there stand in for it."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from gguf import GGUFReader
from transformers.utils.chat_template_utils import render_jinja_template

from tunesmith import train
from tunesmith.errors import NotTheSame, UserError
from tunesmith.export.export import export
from tunesmith.export.parity.in_ollama import address
from tunesmith.export.parity.subject import Transformers

PROGRAM = """#!{python}
import os, sys, urllib.request
assert sys.argv[1] == "create" and sys.argv[3:] == ["-f", "Modelfile"] and os.path.exists("Modelfile")
body = (sys.argv[2] + "\\n" + os.getcwd()).encode()
urllib.request.urlopen(urllib.request.Request("http://" + os.environ["OLLAMA_HOST"] + "/made", body))
"""


class StandIn(BaseHTTPRequestHandler):
    """It writes by the GGUF's template, as newer ones do where that has tools, and with reasoning, as they ask where
    nobody says; its answers are those of transformers."""

    engine: Transformers
    template: str
    models: dict[str, str]
    seen: list[str]
    wrong = ""

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.reply({"version": "0.40.1"})

    def do_DELETE(self):
        self.models.pop(self.body()["model"])
        self.reply({})

    def do_POST(self):
        if self.path == "/made":
            name, folder = self.rfile.read(int(self.headers["Content-Length"])).decode().split("\n")
            self.models[name] = (Path(folder) / "Modelfile").read_text()
            file = GGUFReader(Path(folder) / "model.gguf")
            type(self).template = file.get_field("tokenizer.chat_template").contents()
            self.seen.append(name)
            return self.reply({})
        body, tokenizer = self.body(), self.engine._tokenizer
        stops = [line.split(" ", 2)[2] for line in self.models[body["model"]].splitlines() if line.startswith("PARAM")]
        if self.path == "/api/show":
            return self.reply({"parameters": "\n".join(f"{'stop':<30} {stop}" for stop in stops)})
        if self.path == "/api/chat":
            assert body["_debug_render_only"]
            (text,) = render_jinja_template(
                conversations=[body["messages"]],
                chat_template=self.template,
                add_generation_prompt=True,
                enable_thinking=True,
            )[0]
            return self.reply({"_debug_info": {"rendered_template": text + self.wrong}})
        assert self.path == "/api/generate"
        if "keep_alive" in body:
            return self.reply({})
        assert body["raw"] and body["stream"] is False and body["options"]["temperature"] == 0
        ((ids, stopped),) = self.engine.generate([self.engine.encode(body["prompt"])], body["options"]["num_predict"])
        self.reply({"response": tokenizer.decode(ids), "done_reason": "stop" if stopped else "length"})

    def body(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, body: dict):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@pytest.fixture
def ollama(tmp_path, monkeypatch):
    StandIn.models, StandIn.seen, StandIn.wrong = {}, [], ""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{server.server_port}")
    program = tmp_path / "bin/ollama"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    yield StandIn
    server.shutdown()
    server.server_close()


def test_ollama_is_compared_and_left_unchanged(recipe, tmp_path, ollama, monkeypatch):
    run = train(recipe("qwen3", train={"epochs": 20, "max_steps": 200, "learning_rate": 5e-3}))
    export(run, "merged", tmp_path / "merged", parity=False)
    ollama.engine = Transformers.load(tmp_path / "merged")
    settings = {"precision": "f32"}
    found = export(run, "ollama", tmp_path / "one", settings)
    there = found["elsewhere"]["Ollama"]
    assert there["passed"] and there["engine"] == "Ollama 0.40.1" and there["logits"] is None
    assert there["answers"]["identical"] == there["answers"]["asked"] == 16 == there["answers"]["stopped_of_them"]
    assert there["tokens"]["conversations"] == 7 and there["tokens"]["not_expressed"] == ["tools", "a tool's result"]
    assert list(ollama.models) == [run.name] and len(ollama.seen) == 2  # the one it was asked by has gone

    ollama.wrong = "."
    with pytest.raises(NotTheSame, match="in Ollama, conversation “one turn”"):
        export(run, "ollama", tmp_path / "two", settings)
    assert list(ollama.models) == [run.name] and len(ollama.seen) == 3

    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    found = export(run, "ollama", tmp_path / "three", settings)
    assert found["passed"] and found["elsewhere"]["Ollama"]["problem"].startswith(
        "no Ollama answers at http://127.0.0.1:9"
    )


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":8000", "http://127.0.0.1:8000"),
        ("box", "http://box:11434"),
        ("http://box", "http://box:80"),
        ("https://box/", "https://box:443"),
        ("[::]:8000", "http://[::1]:8000"),
        ("[fe80::1]", "http://[fe80::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("::", "http://[::1]:11434"),
        ("'box:80'", "http://box:80"),
    ],
)
def test_where_ollama_listens(host, found):
    assert address(host) == found


@pytest.mark.parametrize("host", ["ftp://box", "a:b:c", "box:eighty"])
def test_where_it_cannot_listen(host):
    with pytest.raises(UserError, match="OLLAMA_HOST"):
        address(host)
