"""Servers: found, started, stopped and asked through the studio."""

import json
import sys
from pathlib import Path

import pytest

from tests.studio.calling import calling, standing_in, studio_in, until
from tunesmith.run import process_start
from tunesmith.serve.registry import NAME, file_of
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.servers import KEY

CHAT = {"model": "my-run", "messages": [{"role": "user", "content": "Hello"}], "stream": True}


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / "state"))
    monkeypatch.delenv(NAME, raising=False)


@pytest.fixture
def client(tmp_path):
    with calling(studio_in(tmp_path)) as client:
        yield client


def test_a_server_of_a_terminal_is_listed_and_asked_without_the_studios_secrets(client):
    with standing_in() as server:
        [found] = client.get("/servers").json()
        assert (found["state"], found["usable"], found["has_log"]) == ("ready", True, False)
        assert [model["name"] for model in found["models"]] == ["base-1b", "my-run"]
        heard = []
        server.RequestHandlerClass.parse_request, parse = (
            lambda handler: parse(handler) and (heard.append(dict(handler.headers)) or True),
            server.RequestHandlerClass.parse_request,
        )
        try:
            proxy = f"/servers/{found['id']}/proxy"
            answer = client.post(
                f"{proxy}/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer mine", "Cookie": "a=b"}
            )
        finally:
            server.RequestHandlerClass.parse_request = parse
        assert "Hello" in answer.text and answer.text.endswith("data: [DONE]\n\n")
        assert not {"x-tunesmith-token", "authorization", "cookie", "origin"} & {name.lower() for name in heard[0]}
        assert client.get(f"{proxy}/index.html").status_code == 400  # its page is not the studio's
    assert client.get("/servers").json() == []
    assert client.get(f"{proxy}/v1/models").status_code == 400


@pytest.mark.parametrize("path", ["v1/%2e%2e/index.html", "v1/..%2Frender", "v1/a%00b", "index.html"])
def test_only_its_api_is_passed_on(client, path):
    with standing_in():
        [found] = client.get("/servers").json()
        answer = client.get(f"/servers/{found['id']}/proxy/{path}")
        assert answer.status_code == 400 and "passes on only" in answer.json()["error"]["message"]


def test_a_stream_comes_as_it_is_made_and_its_end_reaches_the_server(client):
    with standing_in() as server:
        server.endless = True
        [found] = client.get("/servers").json()
        with client.stream("POST", f"/servers/{found['id']}/proxy/v1/chat/completions", json=CHAT) as answer:
            first = next(line for line in answer.iter_lines() if line)
            assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"] == "Hello"
        assert server.left.wait(10)


def test_the_studio_uses_a_key_that_it_chose_and_says_so_where_it_has_none(client, monkeypatch):
    with standing_in("secret"):
        [found] = client.get("/servers").json()
        refused = client.get(f"/servers/{found['id']}/proxy/v1/models")
        assert not found["usable"] and "needs a key" in refused.json()["error"]["message"]
    monkeypatch.setenv(NAME, "chosen")
    with standing_in("secret"):
        assert client.get("/servers/chosen/proxy/v1/models").status_code == 200
        assert "secret" not in client.get("/servers").text


@pytest.mark.parametrize(
    "model", ["/etc", "../x", "nothing", "notes.txt", "http://127.0.0.1/x", "--system=a/b", "-h/x", "a/b\0", "a/\ud800"]
)
def test_what_is_no_model_in_the_roots_is_refused(client, tmp_path, model):
    (tmp_path / "notes.txt").touch()
    asked = json.dumps({"models": [model]})  # which httpx does not write for half a character
    assert client.post("/servers", content=asked).status_code == 400
    assert client.get("/servers").json() == []


def test_a_start_that_fails_shows_why_until_it_is_dismissed(client, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setenv(KEY, " not a key ")
    started = client.post("/servers", json={"models": ["model"]}).json()
    assert started["state"] == "loading"
    failed = until(lambda: next((s for s in client.get("/servers").json() if s["state"] == "failed"), None))
    assert failed["id"] == started["id"] and "use printable ASCII" in failed["detail"]
    assert failed["detail"] in client.get(f"/servers/{failed['id']}/log").json()["text"]
    assert client.post(f"/servers/{failed['id']}/stop", json={}).json() == []


def test_a_killed_server_is_not_shown_as_serving(client, tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho serving http://127.0.0.1:1\nkill -9 $$\n")
    program.chmod(0o755)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "executable", str(program))
    client.post("/servers", json={"models": ["model"]})
    failed = until(lambda: next((s for s in client.get("/servers").json() if s["state"] == "failed"), None))
    assert failed["detail"] == "it was killed, or failed; the last that it wrote: serving http://127.0.0.1:1"


@pytest.mark.slow
def test_a_run_is_served_asked_and_stopped(runs, tmp_path):
    """With a real model, in a process that outlives the studio which started it."""
    run = Path(runs[0])
    studio = studio_in(run.parent.parent)
    with calling(studio) as client:
        started = client.post("/servers", json={"models": [id_of(run)], "context": 200, "with_key": True}).json()
        server = until(lambda: next((s for s in client.get("/servers").json() if s["state"] == "ready"), None))
        assert server["id"] == started["id"] and server["needs_key"] and server["usable"]
        assert [(model["name"], model["kind"]) for model in server["models"]] == [("first", "tuned"), ("base", "base")]
        assert file_of(server["id"]).stat().st_mode & 0o777 == 0o600
        asked = {
            "question": "3+4",
            "models": [{"server": server["id"], "model": name} for name in ("first", "base")],
            "sampling": {"max_tokens": 12, "temperature": 0},
        }
        name = client.post("/conversations", json={}).json()["id"]
        client.post(f"/conversations/{name}/ask", json=asked)

        def ended() -> list[dict]:
            answers = client.get(f"/conversations/{name}").json()["turns"][0]["answers"]
            return answers if all(answer["state"] != "writing" for answer in answers) else []

        answers = until(ended)
        assert [answer["state"] for answer in answers] == ["done", "done"]
        body = {"model": "first", "messages": [{"role": "user", "content": "3+4"}], "max_tokens": 12, "temperature": 0}
        direct = client.post(f"/servers/{server['id']}/proxy/v1/chat/completions", json=body).json()
        assert direct["choices"][0]["message"]["content"] == answers[0]["text"]
    with calling(studio_in(run.parent.parent)) as client:  # another studio
        assert [one["state"] for one in client.get("/servers").json()] == ["ready"]
        assert "serving http" in client.get(f"/servers/{server['id']}/log").json()["text"]
        # An answer that is computed is finished first, or broken off.
        long = asked | {"sampling": {"max_tokens": 180, "temperature": 1, "seed": 1}}
        client.post(f"/conversations/{name}/ask", json=long)
        left = client.post(f"/servers/{server['id']}/stop", json={}).json()
        assert [one["state"] for one in left] in (["stopping"], [])
        client.post(f"/servers/{server['id']}/stop", json={"now": True})
        until(lambda: client.get("/servers").json() == [])
    until(lambda: process_start(server["pid"]) is None)
    assert list(file_of("x").parent.iterdir()) == []
