"""The chat view: conversations on the studio's server, with a server that stands in for a model."""

import base64
import json
import shutil

import pytest

from tests.browser import needs_browser
from tests.studio.calling import standing_in
from tests.studio.pages import accessibility, opened, studio_in, until
from tunesmith.files import state_folder
from tunesmith.studio.servers import KEY

pytestmark = needs_browser


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        patch.setenv(KEY, " not a key ")  # with which no server starts
        with studio_in(folder) as started:
            yield started


@pytest.fixture
def server(studio, monkeypatch):
    """A server that this studio finds, with no conversations from before."""
    monkeypatch.setenv("TUNESMITH_STATE", studio.environment["TUNESMITH_STATE"])
    for folder in (state_folder() / "conversations", studio.folder / "uploads"):
        shutil.rmtree(folder, ignore_errors=True)
    with standing_in() as standin:
        yield standin


@pytest.fixture
def page(browser, server, studio):
    with opened(browser, studio, "chat") as page:
        page.wait_for_selector("#model option", state="attached")
        yield page
        server.gate.set()


def ask(page, text: str) -> None:
    """Asks a question and waits for the answer."""
    count = page.locator(".turn").count()
    page.fill("#message", text)
    page.press("#message", "Enter")
    page.wait_for_selector(f".turn:nth-child({count + 1}) .again")


def asked(server) -> list[dict]:
    return server.bodies("/v1/chat/completions")


def rows(studio, name: str) -> list[dict]:
    return [json.loads(line) for line in (studio.folder / "uploads" / name).read_text().splitlines()]


def test_a_conversation_is_kept_found_renamed_and_deleted(page, server):
    ask(page, "What is a merge?")
    assert page.inner_text(".answer .body") == "Hello from my-run"
    assert accessibility(page) == []
    page.click("text=New conversation")
    page.wait_for_selector("text=Say something to my-run")
    ask(page, "Another matter")
    assert page.locator(".conversation-title").all_inner_texts() == ["Another matter", "What is a merge?"]
    page.fill("input[type=search]", "MERGE?")
    until(lambda: page.locator(".conversation-title").all_inner_texts() == ["What is a merge?"])
    page.click(".conversation-list li a")
    page.wait_for_selector(".question:has-text('What is a merge?')")
    ask(page, "And then?")
    assert [message["content"] for message in asked(server)[-1]["messages"]] == [
        "What is a merge?",
        "Hello from my-run",
        "And then?",
    ]
    page.click("text=Rename")
    page.fill("dialog[open] input", "Merging")
    page.press("dialog[open] input", "Enter")
    page.fill("input[type=search]", "")
    page.wait_for_selector(".conversation-title >> text=Merging")
    page.click(".conversation-list >> text=Delete")
    page.click("dialog[open] >> text=Delete >> nth=-1")
    page.wait_for_selector("text=Say something to my-run")
    until(lambda: page.locator(".conversation-title").all_inner_texts() == ["Another matter"])


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(page, server):
    server.pieces["my-run"] = ["one ", "two ", "three ", "four"]
    server.hold_after = 2
    page.fill("#message", "Count")
    page.press("#message", "Enter")
    page.wait_for_selector(".body:has-text('one two')")
    page.reload()
    page.wait_for_selector(".body:has-text('one two')")
    assert page.locator("#stop").is_visible()
    server.gate.set()
    page.wait_for_selector(".again")
    assert page.inner_text(".answer .body") == "one two three four"
    assert len(asked(server)) == 1


def test_two_models_are_compared_with_the_same_seed_and_answers_become_rows(page, server, studio):
    page.check("#compare")
    ask(page, "Who are you?")
    seeds = {body["seed"] for body in asked(server)}
    assert {body["model"] for body in asked(server)} == {"my-run", "base-1b"} and len(seeds) == 1
    tuned, base = page.locator(".answer").all()
    tuned.locator("text=Better than the other").click()
    page.wait_for_selector(".toast:has-text('line 1 of uploads/chat-preferences.jsonl')")
    base.locator("text=Correct…").click()
    page.fill("dialog[open] textarea", "I am my-run.")
    page.click("text=This is how it should have been")
    page.wait_for_selector(".toast:has-text('line 2 of uploads/chat-rows.jsonl')")
    right = [row["messages"][-1]["content"] for row in rows(studio, "chat-rows.jsonl")]
    assert right == ["Hello from my-run", "I am my-run."]
    chosen = [
        (row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows(studio, "chat-preferences.jsonl")
    ]
    assert chosen == [("Hello from my-run", "Hello from base-1b"), ("I am my-run.", "Hello from base-1b")]
    until(lambda: page.locator(".badge:has-text('training row')").count() == 2)
    assert accessibility(page) == []


def test_an_answer_is_stopped_regenerated_and_its_question_edited(page, server):
    server.endless = True
    page.fill("#message", "Go on")
    page.press("#message", "Enter")
    page.wait_for_selector(".body:has-text('more')")
    page.keyboard.press("Escape")
    page.wait_for_selector(".answer .note:has-text('Stopped.')")
    assert server.left.wait(10)
    server.endless = False
    page.click("text=Regenerate")
    page.wait_for_selector(".answer .answer-figures:has-text('3 tokens')")
    assert asked(server)[0]["seed"] != asked(server)[1]["seed"]
    page.hover(".asked")
    page.click("text=Edit")
    page.fill(".question-editor textarea", "Say hello")
    page.click("text=Ask again")
    page.wait_for_selector(".question:has-text('Say hello')")
    page.wait_for_selector(".again")
    assert page.locator(".turn").count() == 1
    page.click("button:text-is('Tokens')")
    page.wait_for_selector("#token-list li:has-text('Say·hello')")


def test_an_answer_that_was_cut_off_is_continued(page, server):
    server.finish = "length"
    page.check("#compare")
    ask(page, "Tell me")
    _, base = page.locator(".answer").all()
    base.locator(".note:has-text('Cut off')").wait_for()
    server.finish, server.pieces["base-1b"] = "stop", [" and more"]
    base.locator("button:text-is('Continue')").click()
    base.locator(".body:has-text('Hello from base-1b and more')").wait_for()
    base.locator(".answer-figures:has-text('4 tokens')").wait_for()
    assert page.locator("button:text-is('Continue')").count() == 1  # the tuned model's
    assert page.locator("text=This answer is right").count() == 1  # not of an answer that is cut off
    assert accessibility(page) == []
    page.reload()
    page.wait_for_selector(".body:has-text('Hello from base-1b and more')")


def test_settings_apply_to_the_conversation(page, server):
    page.click("#open-settings")
    page.wait_for_selector(".model-facts:has-text('Tuned from base-1b; a context of 65,536 tokens, tools')")
    page.fill("textarea[name=system]", "Be brief.")
    page.fill("input[name=temperature]", "0")
    with page.expect_response("**/api/chat/settings"):
        page.uncheck("input[name=keep]")
    page.keyboard.press("Escape")
    ask(page, "Hello?")
    [body] = asked(server)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."} and body["temperature"] == 0
    page.wait_for_selector(".conversation-list >> text=not kept")
    page.fill("#message", "What is this?")
    page.reload()
    page.wait_for_selector(".turn")
    assert page.input_value("#message") == "What is this?"  # it is not sent yet


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
GIVE = """([text, kind]) => {
    const files = new DataTransfer();
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    files.items.add(new File([bytes], "cat.png", {type: "image/png"}));
    const options = {bubbles: true, cancelable: true, [kind === "paste" ? "clipboardData" : "dataTransfer"]: files};
    const event = kind === "paste" ? new ClipboardEvent("paste", options) : new DragEvent("drop", options);
    document.querySelector("#message").dispatchEvent(event);
}"""


@pytest.mark.parametrize("way", ["paste", "drop", "button"])
def test_an_image_is_refused_before_anything_is_sent(page, server, way):
    if way == "button":
        page.click("[aria-label='Add an image']")
    else:
        page.evaluate(GIVE, [PIXEL, way])
    page.wait_for_selector("#composer [role=alert]:has-text('my-run takes text only, so no image can be sent to it.')")
    assert page.locator(".images").count() == 0 and asked(server) == []
    ask(page, "Hello")
    assert page.locator("#composer [role=alert]").count() == 0


def test_an_image_is_sent_to_a_model_that_takes_it(browser, studio, monkeypatch):
    monkeypatch.setenv("TUNESMITH_STATE", studio.environment["TUNESMITH_STATE"])
    with standing_in(images=True) as server, opened(browser, studio, "chat") as page:
        page.wait_for_selector("#model option", state="attached")
        with page.expect_file_chooser() as chooser:
            page.click("[aria-label='Add an image']")
        image = {"name": "cat.png", "mimeType": "image/png", "buffer": base64.b64decode(PIXEL)}
        chooser.value.set_files(image)
        page.wait_for_selector(".images >> text=cat.png")
        ask(page, "What is this?")
        page.wait_for_selector(".question img")
        url = f"data:image/png;base64,{PIXEL}"
        assert asked(server)[0]["messages"][0]["content"][1] == {"type": "image_url", "image_url": {"url": url}}
        until(lambda: page.evaluate("document.querySelector('.question img').naturalWidth") == 1)
        assert accessibility(page) == []


def test_a_page_without_a_server_offers_to_start_one_and_says_why_it_fails(browser, studio):
    model = studio.folder / "small"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").write_bytes(b"not read")
    with opened(browser, studio, "chat", viewport={"width": 390, "height": 844}) as page:
        page.wait_for_selector("text=No model is running")
        page.check("text=small")
        page.click("text=Start the server")
        page.wait_for_selector(".server-needed .badge:has-text('loading')")
        assert accessibility(page) == []
        page.wait_for_selector(".server-line:has-text('failed') >> text=use printable ASCII")
        page.click("text=Conversations >> visible=true")
        page.wait_for_selector("dialog[open] >> text=New conversation")
