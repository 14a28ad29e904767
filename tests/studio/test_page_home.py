"""The home view: the machine, and the queue with a training of a tiny model."""

import json

import pytest

from tests import tiny
from tests.browser import needs_browser
from tests.conftest import sums, write_rows
from tests.studio.pages import (
    KEY,
    accessibility,
    make_run,
    opened,
    start,
    step,
    studio_in,
    until,
)
from tunesmith.jobs import ask
from tunesmith.jobs.keeper import AFTER_RESTART
from tunesmith.jobs.store import Store
from tunesmith.run import Run

pytestmark = needs_browser


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    tiny.save("qwen3", folder / "model")
    write_rows(folder / "rows.jsonl", sums(24))
    with studio_in(folder) as started:
        yield started


def add(page, name: str, steps: int) -> None:
    """Queues a training as the page does."""
    values = {
        "name": name,
        "model": {"path": "model", "dtype": "float32"},
        "data": {"train": "rows.jsonl", "eval_share": 0.25, "sequence_length": 128},
        "train": {"epochs": 1000, "max_steps": steps, "batch": 2},
        "evaluate": {"samples": 1, "max_new_tokens": 4},
        "adapter": {"rank": 2, "alpha": 4},
    }
    status = page.evaluate(
        """([key, body]) => fetch("api/jobs", {method: "POST", body, headers: {"X-Tunesmith-Token": key,
        "Content-Type": "application/json"}}).then((answer) => answer.status)""",
        [KEY, json.dumps({"recipe": values})],
    )
    assert status == 200


def shown(page, selector: str, texts: list[str]) -> None:
    """Waits until these texts are shown."""
    until(lambda: page.locator(selector).all_inner_texts() == texts)


def test_jobs_are_moved_held_and_cancelled_while_the_queue_is_paused(browser, tmp_path):
    store = Store(tmp_path / ".state" / "queue")
    for name in ("one", "two", "three"):
        store.add("train", make_run(tmp_path, name, result=False).folder)
    ask.pause(store)
    with studio_in(tmp_path) as studio, opened(browser, studio) as page:
        page.wait_for_selector(".devices >> text=CPU")
        page.wait_for_selector(".devices >> text=Disk")
        page.wait_for_selector(".notice >> text=The queue is paused")
        shown(page, ".jobs .job-name", ["one", "two", "three"])
        page.click(".jobs li:has-text('three') >> [aria-label='Start earlier']")
        shown(page, ".jobs .job-name", ["one", "three", "two"])
        page.locator(".jobs li:nth-child(3)").drag_to(page.locator(".jobs li:nth-child(1)"))
        shown(page, ".jobs .job-name", ["two", "one", "three"])
        page.click(".jobs li:has-text('one') >> text=Hold")
        page.wait_for_selector(".jobs li:has-text('one') >> text=Release")
        assert accessibility(page) == []
        for name in ("one", "two", "three"):
            page.click(f".jobs li:has-text('{name}') >> text=Cancel")
            page.click("dialog[open] >> text=Take it out")
            page.wait_for_selector(f".jobs li:has-text('{name}') >> .badge:has-text('cancelled')")
        assert list((tmp_path / "runs").iterdir()) == []
        page.check(".settings input >> nth=0")
        page.click("text=Resume the queue")
        page.wait_for_selector(".notice >> text=The queue is paused", state="detached")
        assert store.setting("paused") == ""
        until(lambda: store.setting(AFTER_RESTART) == "yes")


@pytest.mark.slow
def test_a_training_is_watched_stopped_and_resumed(browser, studio):
    with opened(browser, studio) as page:
        add(page, "watched", 100_000)
        job = page.locator(".jobs li:has-text('watched')")
        until(lambda: "%" in page.title(), 120)
        assert "watched" in page.title()
        page.wait_for_selector(".devices >> text=watched")
        job.locator(".sparkline").wait_for()
        job.locator("text=Log").click()
        page.wait_for_selector("dialog[open] .log")
        page.keyboard.press("Escape")
        page.goto(f"{studio.url}/#/runs")
        page.click("a:has-text('watched')")
        page.wait_for_selector(".chart canvas")
        page.click("button:text-is('Pause')")
        page.wait_for_selector("text=Continue")
        page.click("button:text-is('Continue')")
        page.click("button:text-is('Stop')")
        page.click("dialog[open] >> text=Save and stop")
        page.wait_for_selector(".badge:has-text('stopped')", timeout=60_000)
        run = Run(studio.folder / "runs" / "watched")
        stopped = run.events("step")[-1]["step"]
        assert run.events("stop")[-1]["reason"] == "interrupted"
        page.click("button:text-is('Resume')")
        until(lambda: run.events("step")[-1]["step"] > stopped, 60)
        page.wait_for_selector(".badge:has-text('running')")
        page.click("button:text-is('Stop')")
        page.click("dialog[open] >> text=Save and stop")
        page.wait_for_selector(".badge:has-text('stopped')", timeout=60_000)


def test_recent_runs_say_how_they_ended(browser, tmp_path):
    make_run(tmp_path, "good", start(2), step(1, 2.0), step(2, 1.5), ("stop", {"step": 2, "reason": "done"}))
    message = "the loss is not a finite number; lower train.learning_rate"
    failed = ("stop", {"step": 1, "reason": "not_finite", "message": message})
    make_run(tmp_path, "broken", start(2), step(1, None), failed, result=False)
    with studio_in(tmp_path) as studio, opened(browser, studio) as page:
        page.wait_for_selector(".recent li:has-text('good') >> text=finished")
        page.wait_for_selector(f".recent li:has-text('broken') >> text={message}")
        page.click(".recent >> text=good")
        page.wait_for_selector("#title:has-text('good')")
