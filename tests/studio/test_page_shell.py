"""The frame of the studio's page: its key, its views, its connection."""

import pytest

from tests.browser import needs_browser
from tests.studio.pages import KEY, accessibility, opened, studio_in, until

pytestmark = needs_browser
VIEWS = ["Home", "Data", "New run", "Runs", "Compare", "Chat", "Export & serve", "Models"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    with studio_in(tmp_path_factory.mktemp("studio")) as started:
        yield started


def test_the_key_leaves_the_address_and_is_kept(browser, studio):
    with opened(browser, studio) as page:
        assert KEY not in page.url
        page.reload()
        page.wait_for_selector("#title:has-text('Home')")
        page.wait_for_selector(".machine-name")


def test_a_wrong_key_is_asked_for_once(browser, studio):
    with opened(browser, studio) as page:
        page.evaluate("localStorage.setItem('tunesmith.token', 'old')")
        calls = []
        page.on("request", lambda request: calls.append(request.url) if "/api/" in request.url else None)
        page.reload()
        page.wait_for_selector(".unlock input")
        page.wait_for_timeout(1500)
        assert len(calls) < 8
        assert accessibility(page) == []
        page.fill(".unlock input", "wrong")
        page.press(".unlock input", "Enter")
        page.wait_for_selector("text=does not accept this key")
        page.fill(".unlock input", f"{studio.url}/#token={KEY}")
        page.press(".unlock input", "Enter")
        page.wait_for_selector("#title:has-text('Home')")
        page.wait_for_selector(".machine-name")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_opens_and_is_accessible(browser, studio, width, scheme):
    with opened(browser, studio, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        for title in VIEWS:
            link = page.locator(f".sidebar nav a:has-text('{title}')").first
            if not link.is_visible():
                page.click("text=More")
                link = page.locator(f".more-list a:has-text('{title}')")
            link.click()
            page.wait_for_selector(f"#title:has-text('{title}')")
            if title != "Home":
                until(lambda: page.evaluate("document.activeElement.id") == "title")
            assert title in page.title()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert accessibility(page) == [], title


def test_keys_open_views_and_help(browser, studio):
    with opened(browser, studio) as page:
        page.keyboard.press("g")
        page.keyboard.press("r")
        page.wait_for_selector("#title:has-text('Runs')")
        assert page.url.endswith("#/runs")
        page.keyboard.press("?")
        page.wait_for_selector("dialog[open] >> text=Keyboard shortcuts")
        page.keyboard.press("Escape")
        page.click("[aria-label='Dark']:visible")
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_eight_tabs_share_one_connection(browser, studio):
    with opened(browser, studio, tabs=8) as pages:
        streams = []
        for page in pages:
            page.on("request", lambda request: streams.append(request.url) if "/api/events" in request.url else None)
        for page in pages:
            page.wait_for_selector(".machine-name")
        pages[7].reload()
        pages[7].wait_for_selector(".machine-name")
        pages[0].close()
        pages[7].goto(f"{studio.url}/#/runs")
        pages[7].wait_for_selector("#title:has-text('Runs')")
        pages[7].wait_for_timeout(500)
        assert len(streams) <= 1  # the tab that took over


def test_a_studio_that_is_gone_is_said_and_found_again(browser, tmp_path):
    with studio_in(tmp_path) as studio, opened(browser, studio) as page:
        page.wait_for_selector(".machine-name")
        studio.stop()
        page.wait_for_selector("text=The studio is not reachable; training continues")
        studio.start()
        page.click("text=Try now")
        page.wait_for_selector(".banner", state="detached")


def test_a_page_of_an_older_version_says_so(browser, studio):
    with opened(browser, studio) as page:
        page.wait_for_selector(".machine-name")

        def newer(route):
            answer = route.fetch()
            route.fulfill(response=answer, headers={**answer.headers, "x-tunesmith-version": "99.0"})

        page.route("**/api/runs", newer)
        page.click(".sidebar nav a:has-text('Runs')")
        page.wait_for_selector("text=The studio is now version 99.0")
