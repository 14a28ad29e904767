"""What the page shows changes by itself, from one event stream, and nothing is asked for again and again."""

import time

import pytest

from tests.browser import needs_browser
from tests.studio.calling import standing_in
from tests.studio.pages import accessibility, append, make_run, opened, start, step, studio_in, until
from tunesmith.jobs import ask, process
from tunesmith.jobs.store import Job, Store
from tunesmith.studio.catalogue import id_of

pytestmark = needs_browser
VIEWS = ["", "data", "new", "runs", "chat", "serve", "models"]
QUIET_SECONDS = 5
NO_LOCKS = "Object.defineProperty(Navigator.prototype, 'locks', {get: () => undefined})"
HIDE = """(hidden) => {
    Object.defineProperty(document, "hidden", {get: () => hidden, configurable: true});
    document.dispatchEvent(new Event("visibilitychange"));
}"""
NOTIFICATIONS = """
window.notified = [];
window.Notification = class {
    static permission = "granted";
    static requestPermission = async () => "granted";
    constructor(title, options) { window.notified.push([title, options.body]); }
};
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("studio")
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        with studio_in(folder) as started:
            yield started


@pytest.fixture
def studio(shared, monkeypatch):
    """A studio whose queue starts nothing. The test's servers and jobs are in its state."""
    monkeypatch.setenv("TUNESMITH_STATE", shared.environment["TUNESMITH_STATE"])
    ask.pause(Store())
    return shared


class Asked:
    """What pages ask of the studio, and when they did so last."""

    def __init__(self, pages):
        self._page, self.urls, self.at = pages[0], [], time.monotonic()
        for page in pages:
            page.on("request", self._note)

    def _note(self, request) -> None:
        self.urls.append(request.url)
        self.at = time.monotonic()

    def settle(self) -> None:
        """Waits until nothing has been asked for a while, and forgets what was."""
        while time.monotonic() - self.at < 2:
            self._page.wait_for_timeout(100)
        self.urls.clear()

    def wait(self, seconds: float) -> None:
        self._page.wait_for_timeout(1000 * seconds)


def live(folder, name: str, *losses: float | None):
    return make_run(folder, name, start(100), *[step(at, loss) for at, loss in enumerate(losses, 1)], result=False)


def test_a_quiet_page_asks_for_nothing(browser, studio):
    runs = [live(studio.folder, name, 3.0, 2.0) for name in ("one", "two")]
    ids = [id_of(run.folder) for run in runs]
    views = [*VIEWS, f"compare?runs={','.join(ids)}", f"runs/{ids[0]}"]
    with standing_in(), runs[0].held(), opened(browser, studio, tabs=len(views)) as pages:
        asked = Asked(pages)
        for page, view in zip(pages, views):
            page.goto(f"{studio.url}/#/{view}")
        asked.settle()
        asked.wait(QUIET_SECONDS)
        assert asked.urls == []
        append(runs[0], step(3, 1.0))  # the stream brings it, too
        pages[-1].wait_for_selector("text=step 3 of 100")
        asked.wait(1)
        assert asked.urls == []


def test_a_server_of_a_terminal_appears_and_leaves(browser, studio):
    with opened(browser, studio, tabs=2) as pages:
        for page, view in zip(pages, ("serve", "chat")):
            page.goto(f"{studio.url}/#/{view}")
        pages[0].wait_for_selector("text=None is running")
        pages[1].wait_for_selector("text=No model is running")
        asked = Asked(pages)
        asked.settle()
        with standing_in():
            pages[0].wait_for_selector(".server >> text=my-run")
            pages[1].wait_for_selector("text=Say something to my-run")
            late = pages[0].context.new_page()  # is told by the tab that has the connection
            late.goto(f"{studio.url}/#/serve")
            late.wait_for_selector(".server >> text=my-run")
        for page in (pages[0], late):
            page.wait_for_selector("text=None is running")
        assert not [url for url in asked.urls if "/api/servers" in url]


def test_a_conversation_of_another_tab_appears_changes_and_leaves(browser, studio):
    titles = ".conversation-title"
    with standing_in(), opened(browser, studio, "chat", tabs=2) as (mine, other):
        for page in (mine, other):
            page.wait_for_selector("text=Say something to my-run")
        assert mine.locator(titles).count() == 0
        other.fill("#message", "What is a merge?")
        other.press("#message", "Enter")
        mine.click(f"{titles} >> text=What is a merge?")
        mine.wait_for_selector(".answer .body:has-text('Hello from my-run')")
        other.wait_for_selector(".again")
        other.fill("#message", "And then?")
        other.press("#message", "Enter")
        mine.wait_for_selector(".turn:nth-child(2) .answer .body:has-text('Hello from my-run')")
        other.click("text=Rename")
        other.fill("dialog[open] input", "Merging")
        other.press("dialog[open] input", "Enter")
        mine.wait_for_selector(f"{titles} >> text=Merging")
        other.wait_for_selector("dialog[open]", state="detached")
        other.click(".conversation-list >> text=Delete")
        other.click("dialog[open] >> text=Delete >> nth=-1")
        mine.wait_for_selector(titles, state="detached")
        mine.wait_for_selector("text=it may have been deleted")


@pytest.mark.slow
def test_recipes_and_uploads_appear_where_files_are_chosen(browser, studio):
    with opened(browser, studio, tabs=2) as (new, data):
        new.goto(f"{studio.url}/#/new")
        new.click("button:has-text('Open')")
        new.wait_for_selector("text=have no recipe yet")
        (studio.folder / "recipes").mkdir()
        (studio.folder / "recipes" / "mine.yaml").write_text("model: m\ndata: d.jsonl\n")
        new.wait_for_selector("dialog[open] >> text=recipes/mine.yaml")
        data.goto(f"{studio.url}/#/data")
        data.wait_for_selector("[aria-label=Files]")
        (studio.folder / "uploads").mkdir()
        data.click("[aria-label=Files] >> text=uploads")
        data.wait_for_selector("text=↑ Up")
        (studio.folder / "uploads" / "rows.jsonl").write_text("{}\n")
        data.wait_for_selector("[aria-label=Files] >> text=rows.jsonl")


def test_compared_runs_grow_with_the_stream(browser, studio):
    runs = [live(studio.folder, name, 3.0, 2.5, 2.0) for name in ("left", "right")]
    ids = ",".join(id_of(run.folder) for run in runs)
    readout = ".chart:has-text('Loss') .readout"
    with runs[1].held(), opened(browser, studio, f"compare?runs={ids}") as page:
        page.wait_for_selector(f"{readout} >> text=left 2 · right 2")
        asked = Asked([page])
        asked.settle()
        append(runs[1], step(4, 1.25), step(5, 0.75))
        page.wait_for_selector(f"{readout} >> text=left 2 · right 0.75")
        assert asked.urls == []
        append(runs[1], ("resume", {"step": 4}), step(5, 0.5))  # undoes a step, so it is read again
        page.wait_for_selector(f"{readout} >> text=left 2 · right 0.5")


@pytest.mark.slow
def test_a_run_at_work_has_a_small_curve_that_grows(browser, studio):
    run = live(studio.folder, "mine", 3.0, 2.0, None, 1.0)
    queued = live(studio.folder, "queued", 4.0, 2.0)
    Store().add("train", queued.folder)
    curve = ".sparkline[aria-label^='Loss of {}']".format
    with opened(browser, studio) as page:
        page.wait_for_selector(".recent >> text=mine")
        assert page.locator(".sparkline").count() == 0
        with run.held(), queued.held():
            page.wait_for_selector(f".jobs {curve('queued')}")
            page.wait_for_selector(f".recent {curve('mine')}")
            until(lambda: page.locator(".sparkline").count() == 2)  # the queued one is not shown twice
            small = page.locator(curve("mine"))
            said = small.get_attribute("aria-label")
            assert said == "Loss of mine: 3 at step 1, 1 at step 4; not a number at some steps"
            assert small.locator("path").get_attribute("d").count("M") == 2  # a gap
            asked = Asked([page])
            asked.settle()
            append(run, step(5, 0.25))
            until(lambda: "0.25 at step 5" in small.get_attribute("aria-label"))
            assert asked.urls == []
            assert accessibility(page) == []
        page.wait_for_selector(".sparkline", state="detached")


def test_without_locks_each_tab_has_a_connection_while_it_is_seen(browser, studio):
    with opened(browser, studio, script=NO_LOCKS, tabs=2) as pages:
        mine, other = pages
        begun, ended = [], []
        for page in pages:
            page.wait_for_selector(".machine-name")
            page.on("request", lambda request: "/api/events" in request.url and begun.append(request.frame.page))
            page.on("requestfailed", lambda request: "/api/events" in request.url and ended.append(request.frame.page))
        mine.evaluate(HIDE, True)
        until(lambda: mine.wait_for_timeout(100) or ended == [mine])
        live(studio.folder, "meanwhile", 3.0)
        other.wait_for_selector(".recent >> text=meanwhile")
        mine.wait_for_timeout(1000)
        assert begun == [] and ended == [mine]
        assert mine.locator(".banner").count() == 0 and mine.locator(".recent >> text=meanwhile").count() == 0
        mine.evaluate(HIDE, False)
        mine.wait_for_selector(".recent >> text=meanwhile")
        assert begun == [mine] and ended == [mine]


def fail(store: Store, job: Job, message: str) -> None:
    """Writes that a job's process was started and has failed."""
    store.file_of(job.id, "log").parent.mkdir(exist_ok=True)
    process.note(store, job, process.Outcome(1, time.time(), message))
    store.change(job.id, is_due=False, started=time.time())


def test_one_notification_tells_that_a_job_has_ended(browser, studio):
    store = Store()
    runs = [live(studio.folder, name, 3.0) for name in ("good", "bad", "old")]
    _, bad, old = [store.add("train", run.folder) for run in runs]
    fail(store, old, "long ago")
    with opened(browser, studio, script=NOTIFICATIONS, tabs=3) as pages:
        pages[1].check("text=Show a browser notification")

        def notified() -> list:
            return [one for page in pages for one in page.evaluate("window.notified")]

        for page in pages:
            page.wait_for_selector(".jobs li:has-text('good') >> text=waiting")
        with runs[0].held():
            for page in pages:
                page.wait_for_selector(".jobs li:has-text('good') .badge:has-text('running')")
            assert notified() == []
            runs[0].result.mkdir()
        until(lambda: notified() == [["good has finished", ""]])
        fail(store, bad, "out of memory; lower train.batch")  # so soon that it is never seen at work
        until(lambda: len(notified()) == 2)
        assert notified()[-1] == ["bad failed", "out of memory; lower train.batch"]
        for page in pages:
            page.wait_for_selector(".jobs li:has-text('bad') .badge:has-text('failed')")
        pages[0].wait_for_timeout(1500)
        assert len(notified()) == 2


def test_nothing_moves_where_the_user_wants_less_motion(browser, studio):
    run = live(studio.folder, "calm", 3.0, 2.0)
    moving = """() => [...document.querySelectorAll("*")].flatMap((element) => {
        const {animationName, animationDuration, transitionDuration, scrollBehavior} = getComputedStyle(element);
        const lasts = (times) => times.split(", ").some((time) => parseFloat(time) > 0);
        const moves = (animationName !== "none" && lasts(animationDuration)) || lasts(transitionDuration);
        return moves || scrollBehavior === "smooth" ? [element.outerHTML.slice(0, 80)] : [];
    })"""
    with opened(browser, studio) as page:
        assert page.evaluate(moving) != []
    with (
        standing_in() as server,
        run.held(),
        opened(browser, studio, reduced_motion="reduce") as page,
    ):
        server.hold_after = 1
        for view in [*VIEWS, f"runs/{id_of(run.folder)}"]:
            page.goto(f"{studio.url}/#/{view}")
            page.wait_for_selector("#title")
            page.wait_for_timeout(300)
            if view == "chat":
                page.fill("#message", "Go on")
                page.press("#message", "Enter")
                page.wait_for_selector(".answer")
            assert page.evaluate(moving) == [], view
            assert page.evaluate("document.getAnimations().length") == 0, view
        server.gate.set()
