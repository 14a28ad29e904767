"""The event stream: nothing is lost between two connections, and nothing is sent twice."""

import fcntl
import json
import os
import shutil

import pytest

from tests.studio.conftest import START, steps, written
from tunesmith.files import write_json
from tunesmith.run import try_lock
from tunesmith.serve.registry import registered, servers_folder
from tunesmith.studio import downloads
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.conversations import Conversations
from tunesmith.studio.routes.events import Watch


def news(watch, kind: str) -> list:
    watch._due.clear()  # as if time had passed
    return [value for name, value in watch.news() if name == kind]


def test_a_run_at_work_is_followed_from_now_on(studio, make_run):
    run = make_run("a", ("start", START), *steps(3))
    watch = Watch(studio, {})
    with run.held():
        assert news(watch, "run") == []
        size = run.events_file.stat().st_size
        run.log("step", step=4)
        [found] = news(watch, "run")
        assert (found["run"], found["offset"]) == (id_of(run.folder), size)
        assert [event["step"] for event in found["events"]] == [4] and found["next"] == run.events_file.stat().st_size
        assert news(watch, "run") == []
    run.log("stop", step=4, reason="done")
    assert [event["event"] for event in news(watch, "run")[0]["events"]] == ["stop"]


def test_a_connection_continues_where_the_last_one_broke_off(studio, make_run):
    run = make_run("a", ("start", START))
    name, seen = id_of(run.folder), []
    offset = run.events_file.stat().st_size
    with run.held():
        for step in range(1, 7):
            run.log("step", step=step)
            if step % 2 == 0:  # a new connection
                for found in news(Watch(studio, {name: offset}), "run"):
                    assert found["offset"] == offset
                    offset = found["next"]
                    seen += [event["step"] for event in found["events"]]
    assert seen == [1, 2, 3, 4, 5, 6]


def test_a_half_written_line_waits_for_its_end(studio, make_run):
    run = make_run("a", ("start", START))
    watch = Watch(studio, {})
    with run.held():
        news(watch, "run")
        line = written(steps(1))
        with run.events_file.open("ab", buffering=0) as lines:
            lines.write(line[:20])
            assert news(watch, "run") == []
            lines.write(line[20:])
        assert news(watch, "run")[0]["events"][0]["step"] == 1


def test_runs_that_come_and_go_are_told_by_their_ids(studio, make_run):
    watch = Watch(studio, {})
    assert news(watch, "runs") == []
    run = make_run("a", ("start", START))
    name = id_of(run.folder)
    assert news(watch, "runs") == [{"changed": [name]}]
    assert news(watch, "runs") == []
    with run.held():
        assert news(watch, "runs") == [{"changed": [name]}]
    assert news(watch, "runs") == [{"changed": [name]}]


def test_a_run_that_is_deleted_meanwhile_does_not_end_the_stream(studio, make_run, monkeypatch):
    gone, there = make_run("a"), make_run("b")
    monkeypatch.setattr(type(studio.runs), "__iter__", lambda self: iter([gone, there]))
    watch = Watch(studio, {})
    assert news(watch, "runs") == []
    shutil.rmtree(gone.folder)
    assert news(watch, "runs") == [{"changed": [id_of(gone.folder)]}]


@pytest.mark.parametrize("since", ['{"a": 1e999}', "[" * 5_000, "[1]", "x"])
def test_offsets_that_are_none_are_refused(client, since):
    assert client.get("/api/events", params={"since": since}).status_code == 400


def test_the_queue_is_sent_when_it_changes(studio, make_run):
    watch = Watch(studio, {})
    assert news(watch, "queue")[0]["jobs"] == []
    assert news(watch, "queue") == []
    studio.store.add("train", make_run("a").folder)
    assert news(watch, "queue")[0]["jobs"][0]["state"] == "waiting"
    assert news(watch, "queue") == []


def test_the_stream_is_in_the_form_of_server_sent_events(studio, client, make_run):
    studio.stopping.set()  # it ends at once
    assert client.get("/api/events").text == ""
    studio.stopping.clear()
    assert client.get("/api/events", params={"since": "[1]"}).status_code == 400
    watch = Watch(studio, {})
    names = {name for name, value in watch.news() if json.dumps(value)}
    assert names == {"machine", "queue", "servers", "downloads", "ping"}


def test_servers_are_told_when_they_come_change_and_go(studio):
    watch = Watch(studio, {})
    assert news(watch, "servers") == [[]]
    with registered("127.0.0.1", 8000, [], None) as registration:
        [[found]] = news(watch, "servers")
        assert (found["state"], found["pid"]) == ("loading", os.getpid())
        assert news(watch, "servers") == []
        registration.update(state="ready")
        assert [[one["state"] for one in told] for told in news(watch, "servers")] == [["ready"]]
    assert news(watch, "servers") == [[]]
    assert news(watch, "servers") == []


def test_a_download_is_told_until_its_process_ends(studio, monkeypatch):
    watch = Watch(studio, {})
    assert news(watch, "downloads") == [[]]
    folder = downloads.folder()
    folder.mkdir(parents=True)
    facts = {"model": "org/tiny", "revision": None, "file": None, "since": 1.0}
    with (folder / "one.lock").open("wb") as lock:
        assert try_lock(lock, fcntl.LOCK_EX)
        write_json(folder / "one.json", facts)
        assert [one["state"] for one in news(watch, "downloads")[0]] == ["running"]
        assert news(watch, "downloads") == []
    [[ended]] = news(watch, "downloads")  # nothing was written when it was killed
    assert ended["state"] == "failed"
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "downloads", lambda: pytest.fail("nothing has changed"))
        assert news(watch, "downloads") == []
    for file in folder.iterdir():
        file.unlink()
    assert news(watch, "downloads") == [[]]


def test_conversations_are_told_by_their_ids_and_times(studio):
    all = Conversations(studio.store)
    old = all.create("")
    watch = Watch(studio, {})
    assert news(watch, "conversations") == []
    made = all.create("")
    assert news(watch, "conversations") == [{made.id: made.changed}]
    all.keep = False
    unkept = all.create("")
    assert news(watch, "conversations") == [{unkept.id: unkept.changed}]
    all.save(old)
    all.delete(made.id)
    assert news(watch, "conversations") == [{old.id: all.read(old.id).changed, made.id: None}]
    assert news(watch, "conversations") == []


def test_recipes_and_uploads_are_told(studio):
    watch = Watch(studio, {})
    assert news(watch, "files") == []
    for folder in ("recipes", "uploads"):
        (studio.folder / folder).mkdir()
        assert news(watch, "files") == [{"changed": [folder]}]
    (studio.folder / "uploads" / "rows.jsonl").touch()
    assert news(watch, "files") == [{"changed": ["uploads"]}]
    assert news(watch, "files") == []


def test_what_cannot_be_read_is_said_until_it_can(studio):
    watch = Watch(studio, {})
    assert news(watch, "problems") == []
    damaged = servers_folder() / "one.start"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    [[problem]] = news(watch, "problems")
    assert str(damaged) in problem
    assert news(watch, "problems") == []
    damaged.unlink()
    assert news(watch, "problems") == [[]]
