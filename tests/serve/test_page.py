"""The chat page in a browser, with a small server that streams as slowly as a test requires."""

import re

import pytest

from tests.browser import needs_browser
from tests.serve.standin import StandIn
from tunesmith.serve.apis.openai_api import ChatRequest
from tunesmith.studio.page import STATIC


@pytest.fixture
def server():
    with StandIn() as standin:
        yield standin


@pytest.fixture
def page(browser, server):
    """Opens the page. Fails if a request goes to another server, if the page throws an error, or if it tries what its
    Content-Security-Policy forbids."""
    context = browser.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    requested, errors = [], []
    opened.on("console", lambda message: "Security Policy" in message.text and errors.append(message.text))
    opened.on("request", lambda request: requested.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server.url)
    opened.wait_for_selector("#model option", state="attached")
    yield opened
    server.gate.set()
    context.close()
    assert errors == []
    assert [url for url in requested if not url.startswith(server.url + "/")] == []


def ask(page, text: str, done: bool = True):
    page.fill("#message", text)
    page.press("#message", "Enter")
    if done:
        page.wait_for_selector("#send:visible")
        page.wait_for_selector(".again")


def asked(server) -> list[dict]:
    return server.bodies("/v1/chat/completions")


@needs_browser
def test_text_shows_as_it_comes(page, server):
    server.pieces["my-run"], server.hold_after = ["One, ", "two, ", "three."], 2
    ask(page, "Count", done=False)
    page.wait_for_selector(".answer .body :text-is('One, two,')")
    assert page.get_attribute(".answer", "aria-busy") == "true" and page.is_visible("#stop")
    server.gate.set()
    page.wait_for_selector("#send:visible")
    assert page.inner_text(".answer .body") == "One, two, three."
    figures = page.inner_text(".answer-figures")
    assert re.fullmatch(r"[\d.e+]+ tokens/s · first after [\d.]+ s · 3 tokens · seed \d+", figures), figures
    [body] = asked(server)
    assert body["model"] == "my-run" and body["stream"] and body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [{"role": "user", "content": "Count"}] and f"seed {body['seed']}" in figures


@needs_browser
def test_reasoning_is_shown_separately(page, server):
    server.thoughts, server.pieces["my-run"] = ["Hm, ", "<b>so</b>."], ["Three."]
    ask(page, "Count")
    assert page.inner_text(".answer .body") == "Three." and not page.is_visible(".thoughts pre")
    page.click("text=Reasoning")
    assert page.inner_text(".thoughts pre") == "Hm, <b>so</b>."
    ask(page, "Again")
    assert [m["content"] for m in asked(server)[1]["messages"]] == ["Count", "Three.", "Again"]


@needs_browser
@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_request(page, server, how):
    server.endless = True
    ask(page, "Go on", done=False)
    page.wait_for_selector(".answer .body:has-text('more')")
    page.click("#stop") if how == "button" else page.press("#message", "Escape")
    assert server.left.wait(20)
    page.wait_for_selector("#send:visible")
    assert "more" in page.inner_text(".answer .body") and page.inner_text(".answer .note") == "Stopped."


@needs_browser
def test_an_answer_that_was_cut_off_is_continued(page, server):
    server.finish = "length"
    ask(page, "Count")
    page.wait_for_selector(".answer .note:has-text('Cut off')")
    server.finish, server.pieces["my-run"] = "stop", [", four"]
    page.click("button:text-is('Continue')")
    page.wait_for_selector(".answer .body:has-text('Hello from my-run, four')")
    page.wait_for_selector(".answer-figures:has-text('4 tokens')")
    first, second = asked(server)
    begun = {"role": "assistant", "content": "Hello from my-run", "prefix": True}
    assert second == first | {"messages": [*first["messages"], begun]}
    assert page.locator("button:text-is('Continue')").count() == 0


@needs_browser
def test_both_models_get_the_same(page, server):
    server.pieces |= {"my-run": ["tuned answer"], "base-1b": ["base answer"]}
    page.check("#compare")
    assert page.input_value("#model") == "my-run" and page.input_value("#other") == "base-1b"
    ask(page, "First")
    page.click("text=Go on from here")
    ask(page, "Second")
    page.click("text=Regenerate")
    page.wait_for_selector(".again")
    assert page.locator(".turn").count() == 2 and page.locator(".turn:last-child .answer").count() == 2
    pairs = [asked(server)[at : at + 2] for at in (0, 2, 4)]
    for pair in pairs:
        assert {body.pop("model") for body in pair} == {"my-run", "base-1b"}
        assert pair[0] == pair[1]
    seeds = [body.pop("seed") for pair in pairs for body in pair]
    assert len(set(seeds)) == 3
    assert pairs[1] == pairs[2]
    assert [m["content"] for m in pairs[1][0]["messages"]] == ["First", "base answer", "Second"]


@needs_browser
def test_the_models_of_a_comparison_answer_at_once(page, server):
    server.pieces, server.hold_after = {"my-run": ["a", "b"], "base-1b": ["c", "d"]}, 1
    page.check("#compare")
    ask(page, "Both", done=False)
    page.wait_for_selector(".answer:nth-child(1) .body :text-is('a')")
    page.wait_for_selector(".answer:nth-child(2) .body :text-is('c')")
    server.gate.set()
    page.wait_for_selector(".again")
    assert page.locator(".answer .body").all_inner_texts() == ["ab", "cd"]


ATTACKS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "![picture](http://192.0.2.1/track.png)",
    "![picture](/v1/models)",
    "[link](javascript:window.hit=1)",
    "[link](data:text/html,<script>window.hit=1</script>)",
    "[link](/v1/models)",
    '<a href="javascript:window.hit=1">link</a>',
    "<svg onload='window.hit = 1'><style><img src=x onerror='window.hit = 1'></style></svg>",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>",
    "<form action=http://192.0.2.1><button id=send>Send</button></form>",
    "<style>body { display: none }</style>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=window.hit=1&gt;'>",
    '```"><img/src=x/onerror=window.hit=1>\ncode\n```',
    '[a](https://example.org/"onmouseover="window.hit=1)',
    "<details open ontoggle='window.hit = 1'><summary>x</summary></details>",
    "<https://example.org/?<script>window.hit=1</script>>",
]


@needs_browser
def test_markup_in_an_answer_does_not_run(page, server):
    from playwright.sync_api import Error

    server.pieces["my-run"] = [piece + "\n\n" for piece in ATTACKS]
    ask(page, "Attack")
    for link in page.locator(".answer .body a").all():
        link.hover()
    tags = page.eval_on_selector(".answer .body", "e => [...e.querySelectorAll('*')].map(n => n.localName)")
    assert set(tags) <= {"p", "br", "a", "code", "pre", "div", "span", "button"}
    attributes = page.eval_on_selector(
        ".answer .body", "e => [...e.querySelectorAll('*')].flatMap(n => [...n.attributes]).map(a => [a.name, a.value])"
    )
    assert {name for name, _ in attributes} <= {"href", "target", "rel", "class", "type", "aria-label", "tabindex"}
    assert all(value.startswith("https://example.org/") for name, value in attributes if name == "href")
    assert {value for name, value in attributes if name == "rel"} == {"noopener noreferrer nofollow"}
    assert page.evaluate("window.hit") is None
    assert "<script>window.hit = 1</script>" in page.inner_text(".answer .body")
    for inline in (
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hit = 1'}))",
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit=1\">')",
    ):
        with pytest.raises(Error, match="Trusted"):
            page.evaluate(f"() => {{ {inline} }}")


MARKDOWN = """# Title

Some **bold** text, a [link](https://example.org/a) and `inline`.

- [x] done
- one

| a | b |
|---|---|
| 1 | 2 |

```python
def f(x):
    return "<b>" + x
```
"""


@needs_browser
def test_markdown_and_code(page, server):
    server.pieces["my-run"] = list(MARKDOWN)
    ask(page, "Show me")
    body = page.locator(".answer .body")
    assert [body.locator(tag).first.inner_text() for tag in ("h1", "strong", "p code", "td")] == [
        "Title",
        "bold",
        "inline",
        "1",
    ]
    assert "☑ done" in " ".join(body.locator("li").first.inner_text().split())
    link = body.locator("a")
    assert link.get_attribute("target") == "_blank" and "noopener" in link.get_attribute("rel")
    code = 'def f(x):\n    return "<b>" + x'
    assert body.locator("pre").inner_text().rstrip() == code and body.locator(".code-bar span").inner_text() == "python"
    body.locator(".code-bar button").click()
    body.locator("text=Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == code
    page.click("#open-settings")
    page.uncheck("[name=markdown]")
    page.click("#settings >> text='Close'")
    page.wait_for_selector(".body.plain")
    assert body.inner_text().strip() == MARKDOWN.strip()


@needs_browser
def test_tokens_and_their_ids(page, server):
    ask(page, "Hi there")
    page.click("footer >> text='Tokens'")
    page.wait_for_selector("#token-list li")
    [asked_before], [rendered] = asked(server), server.bodies("/render")
    assert rendered == {name: asked_before[name] for name in ("model", "messages")}
    assert page.inner_text("#rendered") == "<user> Hi there"
    assert page.locator("#token-list li").all_inner_texts() == ["<user>\n1000", "Hi·there\n1001"]
    page.keyboard.press("Escape")
    assert not page.is_visible("#tokens")


@needs_browser
def test_conversation_and_settings_stay_until_cleared(page, server):
    page.click("#open-settings")
    chosen = {"system": "Be brief.", "temperature": "0.2", "top_p": "0.5", "max_tokens": "9", "seed": "7"}
    for name, value in chosen.items():
        page.fill(f"[name={name}]", value)
    page.click("#settings >> text='Close'")
    ask(page, "Remember")
    page.reload()
    page.wait_for_selector(".again")
    assert page.inner_text(".question") == "Remember" and page.inner_text(".answer .body") == "Hello from my-run"
    page.press("#message", "ArrowUp")
    assert page.input_value("#message") == "Remember"
    page.fill("#message", "")
    ask(page, "More")
    first, second = asked(server)
    assert {name: second[name] for name in ("temperature", "top_p", "max_tokens", "seed")} == {
        "temperature": 0.2,
        "top_p": 0.5,
        "max_tokens": 9,
        "seed": 7,
    }
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][0]["content"] == first["messages"][0]["content"] == "Be brief."
    page.click("#clear")
    page.click("dialog[open] >> text='Cancel'")
    assert page.locator(".turn").count() == 2
    page.click("#clear")
    page.click("dialog[open] >> text='Clear'")
    page.wait_for_selector(".welcome")
    page.reload()
    page.wait_for_selector(".welcome")
    assert page.locator(".turn").count() == 0 and "Remember" not in page.evaluate("JSON.stringify(localStorage)")


ORDERED = """1. Install it:

```sh
pip install thing
```

2. Run it:

```sh
thing --go
```

3. Look at the result.

| item | price | note that is centred |
|:-----|------:|:----:|
| a | 1.50 | x |
| b | 200.00 | y |
"""


@needs_browser
def test_numbers_of_lists_and_alignment_of_tables_stay(page, server):
    server.pieces["my-run"] = [ORDERED]
    ask(page, "Show me")
    lists = page.eval_on_selector_all(".body ol", "all => all.map(list => list.start)")
    assert lists == [1, 2, 3]
    aligned = page.eval_on_selector_all(".body tr:last-child td", "all => all.map(e => getComputedStyle(e).textAlign)")
    assert aligned == ["left", "right", "center"]
    page.focus(".scroller")  # the keyboard reaches a table, to scroll it
    assert page.evaluate("document.activeElement.ariaLabel") == "Table"


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_cells_keep_room_beside_each_other(page, server, width):
    words = "several words that stand in one cell of the table"
    row = "|" + f" {words} |" * 5
    server.pieces |= {name: [f"{row}\n|{'-|' * 5}\n{row}\n"] for name in ("my-run", "base-1b")}
    page.set_viewport_size({"width": width, "height": 800})
    page.check("#compare")
    ask(page, "Show me")
    widths = page.eval_on_selector_all(".body td", "all => all.map(e => e.getBoundingClientRect().width)")
    assert len(widths) == 10 and min(widths) > 150
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # the table scrolls, not the page


@needs_browser
def test_tabs_keep_their_own_conversations(page, server):
    other = page.context.new_page()
    other.goto(server.url)
    other.wait_for_selector("#model option", state="attached")
    idle = page.context.new_page()
    idle.goto(server.url)
    for text in ("First here", "Second here"):
        ask(page, text)
    ask(other, "First there")
    idle.goto("about:blank")
    for tab, questions in ((page, ["First here", "Second here"]), (other, ["First there"])):
        tab.reload()
        tab.wait_for_selector(".again")
        assert tab.locator(".question").all_inner_texts() == questions
    latest = page.context.new_page()
    latest.goto(server.url)
    latest.wait_for_selector(".again")
    assert latest.locator(".question").all_inner_texts() == ["First there"]


@needs_browser
@pytest.mark.parametrize(
    ("full", "said"),
    [
        ("localStorage", "The conversation is lost when this tab is closed."),
        ("sessionStorage", "The conversation is lost when this page is reloaded or closed."),
    ],
)
def test_full_storage_is_reported_visibly(page, server, full, said):
    page.evaluate(f"""() => {{
        for (let size = 2 ** 24; size >= 1; size /= 2) {{
            try {{ {full}.setItem("fill" + size, "x".repeat(size)); }} catch {{}}
        }}
    }}""")
    ask(page, "Remember this")
    assert said in page.inner_text("#notice") and page.is_visible("#notice")
    page.evaluate(f"() => {full}.clear()")
    ask(page, "And this")
    assert not page.is_visible("#notice")


@needs_browser
def test_an_answer_that_a_reload_cancels_is_no_error(page, server):
    server.endless = True
    ask(page, "Go on", done=False)
    page.wait_for_selector(".answer .body:has-text('more')")
    page.reload()
    page.wait_for_selector(".again")
    assert page.inner_text(".answer .note") == "Stopped: the page was left." and "more" in page.inner_text(".body")
    assert page.locator(".failed:visible").count() == 0


@needs_browser
def test_the_server_accepts_what_the_form_accepts(page, server):
    page.click("#open-settings")
    bounds = page.eval_on_selector_all(".numbers input", "all => all.map(e => [e.name, [e.min, e.max]])")
    assert len(bounds) == 4
    for name, ends in bounds:
        for value in ends:
            ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], name: float(value)})
    page.fill("[name=top_p]", "0")
    page.click("#settings >> text='Close'")
    assert page.is_visible("#settings")  # the browser says what is wrong with the value
    page.fill("[name=top_p]", "0.5")
    page.click("#settings >> text='Close'")
    assert not page.is_visible("#settings")
    ask(page, "Hi")
    assert asked(server)[0]["top_p"] == 0.5


WATCH = """() => {
    window.drawn = [];
    for (const turn of document.querySelectorAll('.turn')) {
        turn.dataset.mark = window.drawn.push(0) - 1;
        new MutationObserver(changes => { window.drawn[turn.dataset.mark] += changes.length; })
            .observe(turn, {subtree: true, childList: true, characterData: true, attributes: true});
    }
}"""


@needs_browser
def test_earlier_turns_are_not_drawn_again(page, server):
    for text in ("One", "Two", "Three"):
        ask(page, text)
    page.evaluate(WATCH)
    ask(page, "Four")
    ask(page, "Five")
    assert page.eval_on_selector_all(".turn", "all => all.map(e => e.dataset.mark)") == ["0", "1", "2", None, None]
    first, second, third = page.evaluate("window.drawn")
    assert (first, second) == (0, 0) and third > 0  # the last one of them can no longer be regenerated
    box, pane = page.locator(".turn:last-child").bounding_box(), page.locator("main").bounding_box()
    assert box["y"] + box["height"] <= pane["y"] + pane["height"]  # the end is in sight
    page.click("#open-settings")
    page.uncheck("[name=markdown]")
    page.click("#settings >> text='Close'")
    page.wait_for_selector(".turn:first-child .body.plain")
    assert page.locator(".body.plain").count() == 5


def wait_for_more(page):
    """Waits for as much text as takes a few lines."""
    length = len(page.inner_text(".body"))
    while len(page.inner_text(".body")) < length + 300:
        page.wait_for_timeout(20)


@needs_browser
def test_text_that_comes_leaves_the_reader_alone(page, server):
    server.pieces["my-run"], server.endless = ["**bold** text\n\n"] * 60, True
    ask(page, "Go on", done=False)
    page.wait_for_selector(".body:has-text('more')")
    beyond = "(m => m.scrollHeight - m.scrollTop - m.clientHeight)(document.querySelector('main'))"
    assert page.evaluate(beyond) < 2  # the end is followed
    page.evaluate("""() => {
        document.querySelector('main').scrollTo(0, 100);
        getSelection().selectAllChildren(document.querySelector('.body strong'));
    }""")
    wait_for_more(page)
    assert page.evaluate("[document.querySelector('main').scrollTop, getSelection().toString()]") == [100, "bold"]
    page.evaluate("document.querySelector('main').scrollTo(0, 1e6)")
    wait_for_more(page)
    assert page.evaluate(beyond) < 2


@needs_browser
def test_the_focus_goes_where_it_is_needed(page, server):
    def focused() -> str:
        return page.evaluate("document.activeElement.id")

    assert focused() == "message"
    ask(page, "Hi")
    server.endless = True
    page.click("text=Regenerate")
    page.wait_for_selector(".body:has-text('more')")
    assert focused() == "stop"
    page.keyboard.press("Enter")
    page.wait_for_selector(".again")
    assert focused() == "message"
    page.click("#clear")
    page.keyboard.press("Escape")
    page.wait_for_selector("#clear:focus")
    page.keyboard.press("Enter")
    page.click("dialog[open] >> text='Clear'")
    page.wait_for_selector("#message:focus")


@needs_browser
def test_errors_are_shown_and_a_key_is_sent(page, server):
    server.failure = (400, "the prompt has 9 tokens, the context 8")
    ask(page, "Too long")
    assert page.inner_text(".answer .failed") == "the prompt has 9 tokens, the context 8"
    server.failure, server.key = None, "sesame"
    page.click("text=Regenerate")
    page.wait_for_selector("text=asks for an API key")
    page.click("#open-settings")
    page.fill("[name=key]", "sesame")
    page.click("#settings >> text='Close'")
    page.click("text=Regenerate")
    page.wait_for_selector("text=Hello from my-run")
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")


@needs_browser
def test_everything_has_a_name_and_can_be_reached_by_keyboard(page):
    ask(page, "Hi")
    page.focus("body")
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"model", "compare", "open-settings", "clear", "message", "send", "Copy", "Tokens", "Regenerate"} <= reached
    unnamed = page.evaluate("""[...document.querySelectorAll('button, select, input, textarea, dialog, main')].filter(
        e => !(e.labels?.length || e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim())).length""")
    assert unnamed == 0


AXE = STATIC.parent / "web" / "node_modules" / "axe-core" / "axe.min.js"


@needs_browser
@pytest.mark.skipif(not AXE.is_file(), reason="needs the libraries of the page: make page")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_objection(page, server, scheme):
    """axe-core checks names, roles, structure and the contrast of text."""
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.evaluate(AXE.read_text())

    def objections() -> list:
        found = page.evaluate("axe.run().then(result => result.violations)")
        return [(fault["id"], [node["html"] for node in fault["nodes"]]) for fault in found]

    assert objections() == []
    server.pieces |= {"my-run": [MARKDOWN, ORDERED]}
    page.check("#compare")
    ask(page, "Show me")
    server.failure = (400, "the prompt has 9 tokens, the context 8")
    ask(page, "Too long")
    assert objections() == []
    for opens, closes in (("#open-settings", "#settings >> text='Close'"), ("#clear", "dialog[open] >> text='Cancel'")):
        page.click(opens)
        assert objections() == []
        page.click(closes)
    server.failure = None
    page.click("footer >> text='Tokens' >> nth=0")
    page.wait_for_selector("#token-list li")
    assert objections() == []


def test_the_pages_are_self_contained():
    pages = sorted(STATIC.glob("*.html"))
    assert [file.name for file in pages] == ["chat.html", "index.html"]
    for file in pages:
        html = file.read_text()
        links = re.findall(r"""(?:src|href)="([^"]*)""", html)
        assert len(links) >= 3 and all(link.startswith("./") for link in links), links
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", html)
        assert "default-src 'self'" in html and "unsafe" not in html
    for file in STATIC.glob("assets/*.css"):
        assert not re.search(r"@import|url\((?!\./)", file.read_text()), file


def test_the_sources_write_no_markup():
    sources = [file for file in (STATIC.parent / "web" / "src").rglob("*") if file.suffix in (".ts", ".tsx", ".css")]
    assert len(sources) > 20
    for file in sources:
        assert not re.search(r"innerhtml|\beval\(", file.read_text(), re.I), file
