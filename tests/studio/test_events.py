"""The event stream: nothing is lost between two connections, and nothing is sent twice."""

import json
import shutil

import pytest

from tests.studio.conftest import START, steps, written
from tunesmith.studio.catalogue import id_of
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
    assert names == {"machine", "queue", "ping"}
