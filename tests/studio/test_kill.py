"""Server and training are killed at random moments while the page is open: nothing is lost, and nothing that is shown
is untrue."""

import json
import os
import random
import signal
import time
from contextlib import suppress

import pytest

from tests import tiny
from tests.browser import needs_browser
from tests.conftest import sums, write_rows
from tests.studio.pages import opened, studio_in, until
from tests.studio.test_page_home import add
from tunesmith.evaluate.summary import summary
from tunesmith.run import Run

pytestmark = needs_browser
STEPS = 400


@pytest.fixture
def studio(tmp_path):
    tiny.save("qwen3", tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", sums(24))
    with studio_in(tmp_path) as started:
        yield started


def processes(run: Run, folder) -> list[int]:
    """The process that trains, and the small one that started it."""
    found = [run.holder["pid"]] if run.holder else []
    for lock in (folder / ".state" / "queue" / "logs").glob("*.lock"):
        with suppress(ValueError):
            found.append(json.loads(lock.read_text() or "{}").get("pid"))
    return [pid for pid in found if pid]


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def losses(run: Run) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in run.events("step")]


def wait_for_step(run: Run, after: int) -> None:
    """Waits until a run has done more steps, or has finished."""
    until(lambda: len(run.events("step")) > after or run.result.exists(), 90)


def train_through(page, studio, name: str, kills: list[str], rng: random.Random) -> Run:
    """Trains a run to its end with the page open, while things are killed; resumes it on the page when it was cut
    off."""
    add(page, name, STEPS)
    run = Run(studio.folder / "runs" / name)
    page.goto(f"{studio.url}/#/runs")
    page.click(f"a:text-is('{name}')")
    for killed in kills:
        wait_for_step(run, len(run.events("step")))
        time.sleep(rng.uniform(0, 2))
        if run.result.exists():
            break
        if killed in ("server", "both"):
            studio.stop()
        if killed in ("training", "both"):
            kill(processes(run, studio.folder))
            until(lambda: not run.is_held, 30)
        if killed in ("server", "both"):
            page.wait_for_selector("text=not reachable")
            studio.start()
        page.wait_for_selector("text=not reachable", state="hidden", timeout=40_000)
        if killed != "server":
            page.wait_for_selector("button:text-is('Resume')", timeout=40_000)
            assert summary(run)["status"] == "cut off" and "cut off" in page.inner_text("main")
            page.click("button:text-is('Resume')")
            until(lambda: run.is_held or run.result.exists(), 60)
    page.wait_for_selector("main >> text=finished", timeout=120_000)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_moments_lose_nothing(browser, studio, seed):
    rng = random.Random(seed)
    kills = [rng.choice(["server", "training", "both"]) for _ in range(4)]
    with opened(browser, studio) as page:
        whole = train_through(page, studio, "whole", [], rng)
        killed = train_through(page, studio, "killed", kills, rng)
        assert losses(killed) == losses(whole) and len(losses(whole)) == STEPS
        last = f"{losses(killed)[-1][1]:.4g}"[:4]
        until(lambda: last in page.inner_text("main"))  # the last events come a moment after the state
    weights = [(run.result / "adapter_model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]
