"""Attacks on the studio from other pages, other names and other machines, each as a browser would send it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from tests.studio.conftest import ORIGIN, START, TOKEN, steps
from tunesmith.studio.app import guarded, make_app
from tunesmith.studio.guard import BINARY, FAILURES, MOST_BODY_BYTES, MOST_FAILED, TOKEN_HEADER

JSON = {"Content-Type": "application/json"}
OTHER_ORIGINS = (
    "null",
    "http://evil.example",
    "http://localhost:9999",
    "https://localhost.evil.example",
    "file://",
    "",
)


@pytest.fixture
def outside(studio):
    """Calls the studio without any header of its page."""
    app = guarded(make_app(studio), TOKEN, ["localhost", "workstation"])
    return TestClient(app, base_url=ORIGIN, client=("127.0.0.1", 5000), raise_server_exceptions=False)


def is_paused(studio) -> bool:
    return bool(studio.store.setting("paused"))


def test_the_page_may_change_things(client, studio):
    assert client.post("/api/queue/pause", json={}).status_code == 200
    assert is_paused(studio)


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
def test_a_page_of_another_origin_is_refused_even_with_the_token(outside, studio, origin):
    headers = {TOKEN_HEADER: TOKEN, "Origin": origin, **JSON}
    assert outside.post("/api/queue/pause", headers=headers, json={}).status_code == 403
    assert outside.get("/api/queue", headers=headers).status_code == 403
    assert not is_paused(studio)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_a_request_that_a_browser_marks_as_foreign_is_refused(outside, studio, site):
    headers = {TOKEN_HEADER: TOKEN, "Sec-Fetch-Site": site}
    assert outside.post("/api/queue/pause", headers=headers, json={}).status_code == 403
    assert outside.get("/api/queue", headers={**headers, "Sec-Fetch-Mode": "navigate"}).status_code == 403
    assert not is_paused(studio)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8384", "localhost.evil.example", "", "[", "a b"])
def test_a_foreign_name_of_this_machine_is_refused(outside, host):
    """DNS rebinding: a page's own name points here, and Origin and Host agree."""
    headers = {TOKEN_HEADER: TOKEN, "Host": host, "Origin": f"http://{host}"}
    assert outside.get("/api/queue", headers=headers).status_code == 403
    assert outside.get("/", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["workstation:8384", "192.168.1.5:8384", "[::1]:8384", "127.0.0.1"])
def test_own_names_and_addresses_are_answered(outside, host):
    headers = {TOKEN_HEADER: TOKEN, "Host": host, "Origin": f"http://{host}"}
    assert outside.get("/api/queue", headers=headers).status_code == 200


def test_forms_are_refused(client, studio):
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", ""):
        assert client.post("/api/queue/pause", content=b"{}", headers={"Content-Type": kind}).status_code == 415
    assert not is_paused(studio)


def test_reading_changes_nothing(client, studio, make_run):
    def files() -> dict:
        found = [file for file in studio.folder.rglob("*") if file.is_file() and "queue.db" not in file.name]
        return {file: file.stat().st_mtime_ns for file in found}

    make_run("a", *steps(2))
    [row] = client.get("/api/runs").json()
    before = files()
    for path, verbs in make_app(studio).openapi()["paths"].items():
        if "get" in verbs and path != "/api/events":
            client.get(path.replace("{name}", row["id"]).replace("{number}", "1"))
    assert files() == before


def test_nothing_is_said_without_the_token(outside, studio):
    api = make_app(studio).openapi()["paths"]
    assert len(api) > 15 and all(path.startswith("/api/") for path in api)
    for path in api:
        for token in (None, "", "wrong", TOKEN[:-1], TOKEN + "x"):
            headers = {} if token is None else {TOKEN_HEADER: token}
            assert outside.get(path, headers=headers).status_code == 401, path
            assert outside.post(path, headers=headers, json={}).status_code == 401, path


@given(path=st.text(alphabet="api/.%2fAPI\\;?#", min_size=1, max_size=20))
def test_no_spelling_of_a_path_gets_around_the_token(path):
    reached = []

    async def app(scope, receive, send):
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    from tunesmith.studio.guard import Guard

    client = TestClient(Guard(app, TOKEN, ["localhost"], "1"), base_url=ORIGIN)
    client.get("/" + path.lstrip("/"))
    assert not [path for path in reached if path.startswith("/api/")]


def test_wrong_tokens_from_another_machine_are_slowed_down(studio):
    app = guarded(make_app(studio), TOKEN, ["localhost"])
    far = TestClient(app, base_url=ORIGIN, client=("192.168.1.9", 4000))
    statuses = [far.get("/api/queue", headers={TOKEN_HEADER: f"guess {n}"}).status_code for n in range(FAILURES + 1)]
    assert statuses == [401] * FAILURES + [429]
    assert far.get("/api/queue", headers={TOKEN_HEADER: TOKEN}).status_code == 429
    near = TestClient(app, base_url=ORIGIN, client=("127.0.0.1", 4000))
    assert near.get("/api/queue", headers={TOKEN_HEADER: TOKEN}).status_code == 200


def test_failures_of_any_number_of_addresses_take_little_memory(studio):
    """Also requests with the right token, or with none, of which there may be many."""
    app = guarded(make_app(studio), TOKEN, ["localhost"])
    for number in range(3 * MOST_FAILED):
        headers = [{TOKEN_HEADER: "a guess"}, {TOKEN_HEADER: TOKEN}, {}][number % 3]
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        app._wrong_token(address, Headers(headers))
    assert len(app._failures) == MOST_FAILED
    for _ in range(FAILURES):
        app._wrong_token("10.200.0.1", Headers({TOKEN_HEADER: "a guess"}))
    for number in range(MOST_FAILED - 1):  # who failed last is remembered
        app._wrong_token(f"10.201.{number >> 8}.{number & 255}", Headers({TOKEN_HEADER: "a guess"}))
    assert app._wrong_token("10.200.0.1", Headers({TOKEN_HEADER: TOKEN}))[0] == 429


def test_a_studio_for_other_machines_can_only_be_read(studio):
    app = guarded(make_app(studio), TOKEN, ["localhost"], read_only=True)
    client = TestClient(app, base_url=ORIGIN, headers={TOKEN_HEADER: TOKEN})
    assert client.get("/api/queue").status_code == 200
    refused = client.post("/api/queue/pause", json={})
    assert refused.status_code == 403 and "--allow-changes" in refused.json()["error"]["message"]
    assert not is_paused(studio)


def test_a_body_that_fills_the_memory_is_refused(client):
    headers = {**JSON, "Content-Length": str(MOST_BODY_BYTES + 1)}
    assert client.post("/api/jobs", content=b"{}", headers=headers).status_code == 413

    def chunks():
        yield b"{}"

    assert client.post("/api/jobs", content=chunks(), headers=JSON).status_code == 411
    both = {**JSON, "Content-Length": "2", "Transfer-Encoding": "chunked"}
    assert client.post("/api/jobs", content=chunks(), headers=both).status_code == 411
    binary = {"Content-Type": BINARY}
    assert client.post("/api/jobs", content=b"{}", headers=binary).status_code == 415


def test_no_answer_allows_other_origins(client, outside):
    answers = [
        client.get("/api/queue"),
        outside.get("/"),
        outside.options("/api/queue", headers={"Origin": "http://evil.example"}),
        outside.get("/api/queue", headers={"Origin": "http://evil.example"}),
    ]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "set-cookie" not in answer.headers
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy and "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in policy and "http:" not in policy and "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_websockets_are_closed(client):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/events"):
        pass


def test_a_report_is_shown_only_under_its_secret(client, outside, make_run):
    run = make_run("<script>alert(1)</script>".replace("/", "∕"), ("start", START))
    [row] = client.get("/api/runs").json()
    answer = client.post(f"/api/runs/{row['id']}/report", json={})
    assert answer.status_code == 200, answer.text
    url = answer.json()["url"]
    shown = outside.get(f"/{url}")
    assert shown.status_code == 200 and "<script>alert" not in shown.text and run.name not in url
    assert "sandbox" in shown.headers["content-security-policy"]
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    assert outside.get("/reports/guess").status_code == 400
