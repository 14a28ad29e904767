"""The view of models."""

import threading
from http.server import ThreadingHTTPServer

import pytest

from tests import tiny
from tests.browser import needs_browser
from tests.studio.calling import standing_in
from tests.studio.pages import accessibility, make_run, opened, studio_in, until
from tests.studio.test_models import Hub, StandIn

pytestmark = needs_browser


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A studio's folder with two models. Its hub's cache is empty."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tiny.save("qwen3", tmp_path / "model")
    tiny.save("llama3", tmp_path / "other")
    return tmp_path


def names(page) -> list[str]:
    return page.locator(".model-name").all_inner_texts()


def test_models_are_found_sorted_and_deleted(browser, folder):
    make_run(folder, "first", result=False)  # of "model"
    (folder / "other" / "notes.txt").write_text("mine")
    with studio_in(folder) as studio, opened(browser, studio, "models") as page:
        until(lambda: names(page) == ["model", "other"])
        page.click("text=Size")
        page.click("text=Size")
        until(lambda: names(page) == ["other", "model"])
        assert page.url.endswith("sort=-size")
        page.fill("input[type=search]", "qwen3")
        until(lambda: names(page) == ["model"])
        page.wait_for_selector("[data-title='Used by'] >> text=first")
        assert page.get_attribute("text=Train", "href") == "#/new?model=model"
        assert accessibility(page) == []
        page.click("[aria-label='Delete model']")
        page.wait_for_selector("dialog[open] >> text=it is the base of first; delete these runs first")
        assert page.is_disabled("dialog[open] button[type=submit]")
        page.keyboard.press("Escape")
        page.fill("input[type=search]", "")
        page.click("[aria-label='Delete other']")
        page.wait_for_selector("dialog[open] >> text=These files are not the model’s, and stay: notes.txt")
        page.click("dialog[open] button[type=submit]")
        page.wait_for_selector(".toast:has-text('other is deleted')")
        until(lambda: names(page) == ["model"])
        assert [file.name for file in (folder / "other").iterdir()] == ["notes.txt"]
        page.click("text=Chat >> nth=-1")
        page.wait_for_selector(".choices >> text=model")
        assert page.locator(".choices input:checked").count() == 1


def test_chat_opens_the_model_that_is_served(browser, folder, monkeypatch):
    with studio_in(folder) as studio:
        monkeypatch.setenv("TUNESMITH_STATE", studio.environment["TUNESMITH_STATE"])
        (folder / "model").rename(folder / "base-1b")  # as the stand-in names it, beside a tuned one
        with standing_in(paths=[folder / "base-1b"]), opened(browser, studio, "models") as page:
            page.click("tr:has-text('base-1b') >> text=Chat")
            page.wait_for_selector("text=Say something to base-1b.")
            assert page.locator("dialog[open]").count() == 0


def test_nothing_is_downloaded_offline(browser, folder):
    with studio_in(folder) as studio, opened(browser, studio, "models") as page:
        page.click("text=Download a model")
        page.fill("dialog[open] input >> nth=0", "org/tiny")
        page.click("dialog[open] button[type=submit]")
        page.wait_for_selector("dialog[open] >> text=HF_HUB_OFFLINE is set")


def test_a_download_shows_how_far_it_is_and_is_stopped_and_continued(browser, folder, monkeypatch):
    files = {file.name: file.read_bytes() for file in (folder / "other").iterdir()}
    monkeypatch.setattr(StandIn, "repositories", {"/models/org/tiny": files})
    begun, go, whole = threading.Event(), threading.Event(), Hub.body

    def held(self, path):
        if path.endswith("model.safetensors"):
            begun.set()
            go.wait(60)
        return whole(self, path)

    monkeypatch.setattr(Hub, "body", held)
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    try:
        with studio_in(folder) as studio, opened(browser, studio, "models") as page:
            page.click("text=Download a model")
            page.fill("dialog[open] input >> nth=0", "org/tiny")
            page.click("dialog[open] button[type=submit]")
            assert begun.wait(60)
            page.wait_for_selector(".downloads [role=progressbar]")
            page.wait_for_selector(".downloads >> text=kB,")
            assert accessibility(page) == []
            page.click(".downloads >> text=Stop")
            page.wait_for_selector(".downloads >> text=stopped")
            go.set()
            page.click(".downloads >> text=Continue")
            page.wait_for_selector(".downloads >> text=done", timeout=60_000)
            until(lambda: "org/tiny" in names(page))
            page.click("text=Remove from the list")
            page.wait_for_selector(".downloads", state="detached")
    finally:
        go.set()
        hub.shutdown()
