"""Servers: found, started, stopped and asked through the studio."""

import json

import pytest

from tests.studio.calling import calling, standing_in, studio_in, until
from tunesmith.serve.registry import NAME

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


@pytest.mark.parametrize("model", ["/etc", "../x", "nothing", "notes.txt", "http://127.0.0.1/x"])
def test_what_is_no_model_in_the_roots_is_refused(client, tmp_path, model):
    (tmp_path / "notes.txt").touch()
    assert client.post("/servers", json={"models": [model]}).status_code == 400


def test_a_start_that_fails_shows_why_until_it_is_dismissed(client, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    started = client.post("/servers", json={"models": ["broken"], "with_key": True}).json()
    assert started["state"] == "loading"
    failed = until(lambda: next((s for s in client.get("/servers").json() if s["state"] == "failed"), None))
    assert failed["id"] == started["id"] and "model.safetensors" in failed["detail"]
    assert failed["detail"] in client.get(f"/servers/{failed['id']}/log").json()["text"]
    assert client.post(f"/servers/{failed['id']}/stop", json={}).json() == []
