"""Conversations: kept by the studio, which writes answers whether or not a page reads them."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.studio.calling import TOKEN, calling, standing_in, studio_in, until
from tunesmith.data.formats import get, recognise
from tunesmith.data.records import Record
from tunesmith.serve.registry import NAME
from tunesmith.studio.conversations import read_answer, read_events
from tunesmith.studio.guard import TOKEN_HEADER

STUDIO = """
import sys
from pathlib import Path
from tests.studio.calling import calling, studio_in
with calling(studio_in(Path.cwd())) as client:
    print(client.base_url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / "state"))
    monkeypatch.delenv(NAME, raising=False)


@pytest.fixture
def client(tmp_path):
    with calling(studio_in(tmp_path)) as client:
        yield client


@pytest.fixture
def server():
    with standing_in() as server:
        yield server


HEADERS = {TOKEN_HEADER: TOKEN, "Content-Type": "application/json"}


class Chat:
    """A conversation, through the studio."""

    def __init__(self, client, system=""):
        self.client = client
        self.id = client.post("/conversations", json={"system": system}).json()["id"]
        self.server = client.get("/servers").json()[0]["id"]

    def ask(self, question=None, *models, **values) -> dict:
        asked = [{"server": self.server, "model": model} for model in models or ["my-run"]]
        answer = self.client.post(
            f"/conversations/{self.id}/ask", json={"question": question, "models": asked, **values}
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["turns"][-1]

    def refused(self, **values) -> str:
        asked = {"question": "Hello", "models": [{"server": self.server, "model": "my-run"}]} | values
        return self.client.post(f"/conversations/{self.id}/ask", json=asked).json()["error"]["message"]

    def resume(self, answer: dict, **values) -> dict:
        asked = {"answer": answer["id"], "server": self.server} | values
        return self.client.post(f"/conversations/{self.id}/continue", json=asked).json()

    def view(self) -> dict:
        return self.client.get(f"/conversations/{self.id}").json()

    def answers(self) -> list[dict]:
        """Those of the last turn, once they have ended."""
        return until(lambda: _ended(self.view()["turns"][-1]["answers"]))

    def post(self, what: str, **values):
        return self.client.post(f"/conversations/{self.id}/{what}", json=values)

    def follow(self, answer: str, offset: int = 0, lines: int | None = None) -> list[tuple[int, dict]]:
        """The events of an answer with their ids."""
        found = []
        path = f"/conversations/{self.id}/answers/{answer}"
        with self.client.stream("GET", path, params={"offset": offset}) as stream:
            for line in stream.iter_lines():
                if line.startswith("id: "):
                    number = int(line.removeprefix("id: "))
                elif line.startswith("data: "):
                    found.append((number, json.loads(line.removeprefix("data: "))))
                    if len(found) == lines:
                        break
        return found


def _ended(answers: list[dict]) -> list[dict]:
    return answers if all(answer["state"] != "writing" for answer in answers) else []


def texts(events) -> str:
    return "".join(event.get("text", "") for _, event in events)


def test_an_answer_is_kept_with_its_thoughts_and_counts(client, server):
    server.thoughts = ["Hm", "m."]
    chat = Chat(client, "Be brief.")
    chat.ask("Hello", sampling={"seed": 7, "temperature": 0.5})
    [answer] = chat.answers()
    assert (answer["state"], answer["text"], answer["reasoning"]) == ("done", "Hello from my-run", "Hmm.")
    assert (answer["prompt_tokens"], answer["tokens"], answer["detail"]) == (5, 3, "stop")
    [body] = server.bodies("/v1/chat/completions")
    assert (body["seed"], body["temperature"]) == (7, 0.5) and "top_p" not in body
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert chat.view()["title"] == "Hello"


def test_a_page_that_reloads_loses_nothing_and_reads_nothing_twice(client, server):
    server.hold_after = 2
    chat = Chat(client)
    [answer] = chat.ask("Hello")["answers"]
    before = until(
        lambda: (found := chat.view()["turns"][0]["answers"][0]) and found["text"] == "Hello from " and found
    )
    server.gate.set()
    after = chat.follow(answer["id"], before["offset"])
    assert before["text"] + texts(after) == "Hello from my-run"
    assert after[-1][1]["end"]["state"] == "done"
    whole = chat.follow(answer["id"])
    assert texts(whole) == "Hello from my-run"
    assert chat.follow(answer["id"], whole[-1][0])[-1][1] == {"end": {"state": "done"}}  # nothing is left


def test_stop_ends_the_servers_work_and_keeps_what_was_written(client, server):
    server.endless = True
    chat = Chat(client)
    chat.ask("Hello")
    until(lambda: "more" in chat.view()["turns"][0]["answers"][0]["text"])
    assert "still being written" in chat.refused()
    [stopped] = chat.post("stop").json()["turns"][0]["answers"]
    assert stopped["state"] == "stopped" and stopped["text"].startswith("Hello from my-run more")
    assert server.left.wait(10)
    server.endless = False
    chat.ask("Again")
    chat.answers()
    assert [m["role"] for m in server.bodies("/v1/chat/completions")[-1]["messages"]] == ["user", "assistant", "user"]


def test_an_answer_continues_where_it_was_cut_off(client, server, tmp_path):
    server.finish = "length"
    chat = Chat(client, "Be brief.")
    chat.ask("Hello", "my-run", "base-1b", sampling={"seed": 7, "max_tokens": 3})
    tuned, base = chat.answers()
    assert tuned["detail"] == "length"
    marked = chat.post("rows", turn=chat.view()["turns"][0]["id"], answer=tuned["id"])
    assert "is not complete" in marked.json()["error"]["message"]
    server.finish, server.pieces["base-1b"], server.hold_after = "stop", [", and", " more"], 1
    [_, writing] = chat.resume(base, max_tokens=9)["turns"][-1]["answers"]
    assert writing["state"] == "writing" and "still being written" in chat.resume(base)["error"]["message"]
    server.gate.set()
    assert texts(chat.follow(base["id"], writing["offset"])) == ", and more"
    whole = chat.follow(base["id"])
    assert texts(whole) == "Hello from base-1b, and more" and whole[-1][1]["end"]["detail"] == "stop"
    unchanged, longer = chat.answers()
    assert unchanged == tuned
    assert (longer["text"], longer["tokens"], longer["state"]) == ("Hello from base-1b, and more", 3 + 2, "done")
    body = server.bodies("/v1/chat/completions")[-1]
    begun = {"role": "assistant", "content": "Hello from base-1b", "prefix": True}
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant"]
    assert body["messages"][-1] == begun and (body["seed"], body["max_tokens"]) == (7, 9)
    assert "is complete" in chat.resume(base)["error"]["message"]
    chat.ask("Then")
    chat.answers()
    assert "no answer" in chat.resume(tuned)["error"]["message"]  # it is not of the last question


def test_an_answer_whose_studio_was_killed_continues(client, server, tmp_path):
    chat = Chat(client)
    [answer] = chat.ask("Hello")["answers"]
    chat.answers()
    file = tmp_path / "state" / "conversations" / chat.id / f"{answer['id']}.jsonl"
    written = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(written[:2]) + b'{"text": "half a li')
    assert chat.view()["turns"][0]["answers"][0]["state"] == "stopped"
    server.pieces["my-run"] = [" and the rest"]
    chat.resume(answer)
    [answer] = chat.answers()
    assert (answer["text"], answer["state"]) == ("Hello and the rest", "done")


def test_images_go_to_a_model_that_takes_them(client):
    image = "data:image/png;base64,AAAA"
    with standing_in(images=True) as server:
        chat = Chat(client)
        assert chat.ask("What is this?", images=[image])["images"] == [image]
        [answer] = chat.answers()
        content = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": image}}]
        assert server.bodies("/v1/chat/completions")[0]["messages"] == [{"role": "user", "content": content}]
        refused = chat.post("rows", turn=chat.view()["turns"][0]["id"], answer=answer["id"])
        assert "has images" in refused.json()["error"]["message"]
        chat.ask("And now?")
        chat.answers()
        assert server.bodies("/v1/chat/completions")[1]["messages"][0]["content"] == content


def test_two_models_have_one_seed_and_do_not_see_each_others_answers(client, server):
    chat = Chat(client)
    chat.ask("One", "my-run", "base-1b")
    assert [answer["text"] for answer in chat.answers()] == ["Hello from my-run", "Hello from base-1b"]
    chat.ask("Two", "my-run", "base-1b")
    chat.answers()
    bodies = {(body["model"], len(body["messages"])): body for body in server.bodies("/v1/chat/completions")}
    assert bodies["my-run", 1]["seed"] == bodies["base-1b", 1]["seed"]
    for model in ("my-run", "base-1b"):
        assert bodies[model, 3]["messages"][1]["content"] == f"Hello from {model}"


def test_an_edited_question_and_a_new_answer_replace_what_came_after(client, server, tmp_path):
    chat = Chat(client)
    turns = []
    for question in ("One", "Two", "Three"):
        turns.append(chat.ask(question))
        chat.answers()
    chat.ask("Second", replaces=turns[1]["id"])
    chat.answers()
    assert [turn["question"] for turn in chat.view()["turns"]] == ["One", "Second"]
    server.pieces["my-run"] = ["Another"]
    last = chat.view()["turns"][-1]
    chat.ask(None, replaces=last["id"])
    [answer] = chat.answers()
    assert answer["text"] == "Another" and [turn["question"] for turn in chat.view()["turns"]] == ["One", "Second"]
    files = list((tmp_path / "state" / "conversations" / chat.id).glob("*.jsonl"))
    assert len(files) == 2  # the answers that were replaced are gone
    assert client.post(f"/conversations/{chat.id}/ask", json={"models": []}).status_code == 422
    assert "replaced" in chat.refused(replaces=turns[2]["id"])


def test_a_server_that_refuses_or_dies_is_told(client, server):
    chat = Chat(client)
    server.failure = (429, "too many requests")
    chat.ask("Hello")
    [answer] = chat.answers()
    assert (answer["state"], answer["detail"]) == ("failed", "too many requests")
    assert "no model other" in chat.refused(models=[{"server": chat.server, "model": "other"}])
    assert "no server" in chat.refused(models=[{"server": "gone", "model": "my-run"}])
    assert "takes text only" in chat.refused(images=["data:image/png;base64,AAAA"])
    assert len(chat.view()["turns"]) == 1


def test_conversations_are_listed_searched_renamed_and_deleted(client, server):
    first, second = Chat(client), Chat(client)
    first.ask("Where is the Eiffel tower?")
    first.answers()
    second.ask("Hi")
    second.answers()
    assert [one["id"] for one in client.get("/conversations").json()] == [second.id, first.id]
    [found] = client.get("/conversations", params={"search": "eiffel"}).json()
    assert found["id"] == first.id and "Eiffel" in found["excerpt"]
    assert len(client.get("/conversations", params={"search": "from my-run"}).json()) == 2  # in answers
    assert client.get("/conversations", params={"search": "Kyoto"}).json() == []
    assert client.post(f"/conversations/{first.id}", json={"title": "Paris"}).json()["title"] == "Paris"
    assert client.request("DELETE", f"/conversations/{first.id}", json={}).status_code == 200
    assert [one["id"] for one in client.get("/conversations").json()] == [second.id]
    assert client.get(f"/conversations/{first.id}").status_code == 400


def test_a_studio_that_ends_stops_its_answers(tmp_path, server):
    server.endless = True
    with calling(studio_in(tmp_path)) as client:
        chat = Chat(client)
        chat.ask("Hello")
        until(lambda: "more" in chat.view()["turns"][0]["answers"][0]["text"])
    assert server.left.wait(10)
    [file] = (tmp_path / "state" / "conversations" / chat.id).glob("*.jsonl")
    assert json.loads(file.read_text().splitlines()[-1])["end"]["state"] == "stopped"


@pytest.mark.parametrize("name", ["..", "%2e%2e", "x" * 12, "0" * 12, "unkept", "000000000000%00"])
def test_names_that_are_no_conversations_reach_nothing(client, name):
    assert client.get(f"/conversations/{name}").status_code in (400, 404, 405)
    assert client.request("DELETE", f"/conversations/{name}", json={}).status_code in (400, 404, 405)


def test_what_is_not_to_be_kept_goes_with_the_studio(tmp_path, server):
    with calling(studio_in(tmp_path)) as client:
        kept = Chat(client)
        assert client.post("/chat/settings", json={"keep": False}).json() == {"keep": False}
        other = Chat(client)
        other.ask("A secret")
        other.answers()
        assert {one["id"]: one["kept"] for one in client.get("/conversations").json()} == {
            kept.id: True,
            other.id: False,
        }
    with calling(studio_in(tmp_path)) as client:
        assert [one["id"] for one in client.get("/conversations").json()] == [kept.id]
        assert client.get("/chat/settings").json() == {"keep": False}
    assert not any("secret" in file.read_text() for file in (tmp_path / "state").rglob("*.json*"))


def test_a_studio_that_is_killed_in_the_middle_keeps_the_answer_and_says_that_it_stopped(tmp_path, server):
    command = [sys.executable, "-c", STUDIO]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) as process:
        address = process.stdout.readline().strip()
        with httpx.Client(base_url=address, headers=HEADERS) as client:
            server.endless = True
            chat = Chat(client)
            chat.ask("Hello")
            before = until(lambda: (text := chat.view()["turns"][0]["answers"][0]["text"]).count("more") > 3 and text)
        process.send_signal(signal.SIGKILL)
    assert server.left.wait(10)  # the server's work ends too
    with calling(studio_in(tmp_path)) as client:
        chat.client = client
        [answer] = chat.view()["turns"][0]["answers"]
        assert answer["state"] == "stopped" and answer["text"].startswith(before)
        events = chat.follow(answer["id"])
        assert texts(events) == answer["text"] and events[-1][1]["end"] == {"state": "stopped"}


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_right_answers_become_rows_that_the_data_reader_takes(client, server, tmp_path):
    chat = Chat(client, "Be brief.")
    chat.ask("One")
    chat.answers()
    turn = chat.ask("Two")
    [answer] = chat.answers()
    [written] = chat.post("rows", turn=turn["id"], answer=answer["id"]).json()
    assert written == {"file": "uploads/chat-rows.jsonl", "line": 1, "is_new": True}
    [again] = chat.post("rows", turn=turn["id"], answer=answer["id"]).json()
    assert again == written | {"is_new": False}
    assert chat.view()["turns"][1]["marks"] == {answer["id"]: "right"}
    [row] = rows(tmp_path / "uploads" / "chat-rows.jsonl")
    assert recognise([row], "") == "messages"
    read = get("messages").to_row(Record(row)).messages
    assert [(message["role"], message.get("weight")) for message in read] == [
        ("system", None),
        ("user", None),
        ("assistant", 0),
        ("user", None),
        ("assistant", None),
    ]


def test_corrections_and_comparisons_become_preferences(client, server, tmp_path):
    chat = Chat(client)
    turn = chat.ask("One", "my-run", "base-1b")
    tuned, base = chat.answers()
    corrected = chat.post("rows", turn=turn["id"], answer=tuned["id"], corrected="Better.").json()
    assert [one["file"] for one in corrected] == ["uploads/chat-rows.jsonl", "uploads/chat-preferences.jsonl"]
    chosen = chat.post("rows", turn=turn["id"], answer=tuned["id"], rejected=base["id"]).json()
    assert chosen[1] == {"file": "uploads/chat-preferences.jsonl", "line": 2, "is_new": True}
    pairs = rows(tmp_path / "uploads" / "chat-preferences.jsonl")
    assert [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs] == [
        ("Better.", "Hello from my-run"),
        ("Hello from my-run", "Hello from base-1b"),
    ]
    assert recognise(pairs, "") == "prompt_completion"
    read = get("prompt_completion").to_row(Record(pairs[0])).messages
    assert [message["content"] for message in read] == ["One", "Better."]
    (tmp_path / "uploads" / "chat-rows.jsonl").write_text('{"text": "mine"}\n')
    mixed = chat.post("rows", turn=turn["id"], answer=tuned["id"])
    assert "other rows" in mixed.json()["error"]["message"]
    assert rows(tmp_path / "uploads" / "chat-rows.jsonl") == [{"text": "mine"}]


def test_a_long_wait_for_a_file_of_rows_holds_up_nothing_else(client, server, tmp_path):
    chat = Chat(client)
    turn = chat.ask("One")
    [answer] = chat.answers()
    (tmp_path / "uploads").mkdir()
    with (tmp_path / "uploads" / "chat-rows.jsonl").open("ab") as file, ThreadPoolExecutor(1) as pool:
        fcntl.flock(file, fcntl.LOCK_EX)
        marking = pool.submit(chat.post, "rows", turn=turn["id"], answer=answer["id"])
        try:
            chat.ask("Two")
            chat.answers()
            assert not marking.done()
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        assert marking.result().status_code == 200
    first, second = chat.view()["turns"]
    assert first["marks"] == {answer["id"]: "right"} and second["question"] == "Two"


def test_a_line_that_a_full_disk_cut_short_spoils_nothing(tmp_path):
    file = tmp_path / "0123456789ab.jsonl"
    file.write_bytes(
        b'{"model":"m","server":"s"}\n{"text":"One"}\n{"text":"Tw{"end":{"state":"failed","detail":"full"}}\n'
    )
    found = read_answer(file)
    assert (found.text, found.state) == ("One", "stopped")
    assert read_events(file, 5) == ([{"text": "One"}], file.stat().st_size)  # from the middle of a line


@pytest.mark.parametrize("link", ["uploads/chat-rows.jsonl", "uploads"])
def test_rows_go_only_to_files_of_their_own(client, server, tmp_path, link):
    """No request names a file, no link leads to another, and no upload takes their names."""
    run = tmp_path / "runs" / "my-run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "chat-rows.jsonl").touch()
    (run / "ledger.jsonl").touch()
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(run if link == "uploads" else run / "ledger.jsonl")
    chat = Chat(client)
    turn = chat.ask("One")
    [answer] = chat.answers()
    refused = chat.post("rows", turn=turn["id"], answer=answer["id"], file="runs/my-run/ledger.jsonl")
    assert refused.status_code == 400 and "through links" in refused.json()["error"]["message"]
    (tmp_path / link).unlink()
    body = b'{"messages": []}\n'
    headers = HEADERS | {"Content-Type": "application/octet-stream"}
    uploaded = client.post("/uploads", params={"name": "chat-rows.jsonl"}, content=body, headers=headers)
    assert uploaded.status_code == 200, uploaded.text
    uploaded = uploaded.json()
    assert uploaded["path"] == "uploads/chat-rows-2.jsonl"
    marked = chat.post("rows", turn=turn["id"], answer=answer["id"], file="runs/my-run/ledger.jsonl")
    assert [one["file"] for one in marked.json()] == ["uploads/chat-rows.jsonl"]
    assert (tmp_path / uploaded["path"]).read_bytes() == body
    assert (run / "chat-rows.jsonl").read_text() == (run / "ledger.jsonl").read_text() == ""
