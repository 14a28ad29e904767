"""Three unlike GPUs that are simulated: who holds them, and why a job waits."""

import threading

import pytest

from tests.browser import needs_browser
from tests.studio.calling import TOKEN, calling
from tests.studio.pages import accessibility
from tunesmith import leases
from tunesmith.machine import Gpu
from tunesmith.studio.gpus import Gpus

GB = 10**9
GPUS = [
    Gpu(0, "RTX 4090", 24 * GB, 3 * GB, (8, 9), "GPU-a", celsius=71, power_watts=450.0),
    Gpu(1, "RTX 3090", 24 * GB, 23 * GB, (8, 6), "GPU-b", celsius=40, power_watts=350.0),
    Gpu(2, "RTX 3060", 12 * GB, 8 * GB, (8, 6), "GPU-c", celsius=52, power_watts=170.0),
]


@pytest.fixture
def three(monkeypatch):
    monkeypatch.setattr("tunesmith.studio.gpus.find_gpus", lambda: ("570.1", GPUS))
    monkeypatch.setattr("tunesmith.studio.gpus.gpu_watts", {"GPU-a": 402.0, "GPU-b": 25.0, "GPU-c": None}.get)


@needs_browser
def test_devices_their_holders_and_the_reason_why_a_job_waits(browser, three, studio, make_run):
    studio.store.add("train", make_run("waits").folder, gpus=3)
    with (
        leases.held(["GPU-a"], "training", exclusive=True, folder=make_run("trains").folder),
        leases.held(["GPU-c"], "serving", nbytes=3 * GB, folder=studio.folder / "model"),
        calling(studio) as client,
    ):
        page = browser.new_page()
        address = str(client.base_url).removesuffix("/").removesuffix("/api")
        page.goto(f"{address}/#token={TOKEN}")
        page.wait_for_selector(".devices >> text=GPU 0 (RTX 4090)")
        rows = page.locator(".devices > li").all_inner_texts()
        assert [row.splitlines()[0] for row in rows[:3]] == [gpu.label for gpu in GPUS]
        assert "21.0 GB of 24.0 GB" in rows[0] and "71 °C · 402 of 450 W" in rows[0] and "training trains" in rows[0]
        assert "25 of 350 W" in rows[1] and "idle" in rows[1]
        assert "serving model, 3.0 GB" in rows[2] and " W" not in rows[2]
        reason = page.inner_text(".jobs li:has-text('waits')")
        assert "it needs 3 GPUs, of which 2 are free: GPU 0 (RTX 4090) is held by" in reason
        assert accessibility(page) == []
        page.close()


@needs_browser
@pytest.mark.parametrize("count", [1, 3])
def test_a_job_is_queued_for_some_of_the_gpus(browser, three, studio, small, monkeypatch, count):
    monkeypatch.setattr("tunesmith.studio.gpus.find_gpus", lambda: ("570.1", GPUS[:count]))
    with calling(studio) as client:
        page = browser.new_page()
        address = str(client.base_url).removesuffix("/").removesuffix("/api")
        page.goto(f"{address}/#token={TOKEN}")
        page.wait_for_selector(".devices >> text=GPU 0 (RTX 4090)")
        page.goto(f"{address}/#/new?model=m&data=d.jsonl")
        page.route("**/api/jobs", lambda route: route.fulfill(json=[7]))
        page.click("button:text-is('Queue')")
        page.wait_for_selector("dialog[open] >> text=Not before")
        choice = page.get_by_label("GPUs", exact=True)
        assert choice.count() == (count > 1)
        if count > 1:
            assert choice.locator("option").all_inner_texts() == ["As the recipe says, else all", "1", "2", "3"]
            choice.select_option("2")
            assert accessibility(page) == []
        with page.expect_request("**/api/jobs") as request:
            page.click("dialog[open] button[type=submit]")
        assert request.value.post_data_json.get("gpus") == (2 if count > 1 else None)
        page.close()


def test_a_driver_that_does_not_answer_does_not_stop_the_studio(client, studio, monkeypatch, three):
    assert len(client.get("/api/machine").json()["gpus"]) == 3
    never = threading.Event()
    monkeypatch.setattr("tunesmith.studio.gpus.WAIT_SECONDS", 0.1)
    monkeypatch.setattr("tunesmith.studio.gpus.FRESH_SECONDS", 0.0)
    monkeypatch.setattr("tunesmith.studio.gpus.find_gpus", lambda: never.wait() and ("", []))
    assert len(client.get("/api/machine").json()["gpus"]) == 3
    assert client.get("/api/queue").status_code == 200
    never.set()


def test_the_driver_is_asked_once_for_all_clients(monkeypatch):
    asked = []
    monkeypatch.setattr("tunesmith.studio.gpus.find_gpus", lambda: asked.append(1) or ("", []))
    gpus = Gpus()
    threads = [threading.Thread(target=gpus.now) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [1]
