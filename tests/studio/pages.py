"""A studio's page in a browser that notes everything that must not happen."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.studio.process import StudioProcess
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.studio.page import STATIC

KEY = "a-key-of-the-tests"
AXE = STATIC.parent / "web" / "node_modules" / "axe-core" / "axe.min.js"


@contextmanager
def studio_in(folder: Path) -> Iterator[StudioProcess]:
    """A studio whose queue and cache are in the folder too."""
    own = {"TUNESMITH_STATE": str(folder / ".state"), "TUNESMITH_CACHE": str(folder / ".cache")}
    started = StudioProcess(folder, "--key", KEY, OMP_NUM_THREADS="1", **own)
    try:
        yield started
    finally:
        started.stop()


@contextmanager
def opened(browser, studio: StudioProcess, path: str = "", tabs: int = 1, script: str = "", **options) -> Iterator:
    """Opens the page with its key. Fails if a request leaves the studio, if the page throws an error, or if the
    Content-Security-Policy refuses something. `script` runs before the page's own. Yields the page, or a list if there
    are several tabs."""
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    context.add_init_script(script)
    requested, errors = [], []
    context.on("request", lambda request: requested.append(request.url))
    context.on("weberror", lambda error: errors.append(str(error.error.stack)))
    context.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
    pages = [context.new_page() for _ in range(tabs)]
    for page in pages:
        page.goto(f"{studio.url}/#token={KEY}")
        page.wait_for_selector("#title")
        if path:
            page.goto(f"{studio.url}/#/{path}")
    yield pages[0] if tabs == 1 else pages
    context.close()
    assert not errors, errors
    others = [url for url in requested if not url.startswith((studio.url + "/", "data:", f"blob:{studio.url}/"))]
    assert not others, others


def accessibility(page) -> list[str]:
    """What axe finds wrong in the page as it is."""
    if not AXE.exists():
        return []
    page.evaluate("document.activeElement?.blur?.()")
    page.evaluate(AXE.read_text() + "; true")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{problem['id']}: {node['target']} {node['failureSummary']}"
        for problem in found["violations"]
        for node in problem["nodes"]
    ]


def make_run(folder: Path, name: str, *events: tuple[str, dict], result: bool = True) -> Run:
    """Makes a run folder as training writes it."""
    recipe = {"model": {"path": "model"}, "data": {"train": "rows.jsonl"}, "name": name, "output": str(folder / "runs")}
    run = Run.create(Recipe.build(recipe))
    for event, values in events:
        run.log(event, **values)
    if result:
        run.result.mkdir()
    return run


def step(number: int, loss: float | None, **values) -> tuple[str, dict]:
    """A `step` event with the numbers that training writes."""
    usual = {"epoch": 1, "learning_rate": 1e-4, "grad_norm": 1.5, "tokens": 100, "seconds": 0.5}
    usual |= {"supervised_tokens": 60}
    usual |= {"tokens_per_second": 200.0, "waiting_seconds": 0.01, "memory_bytes": 10**9}
    return "step", {"step": number, "loss": loss, **usual, **values}


def start(steps: int) -> tuple[str, dict]:
    """A `start` event."""
    values = {"rows": 40, "eval_rows": 8, "trainable_parameters": 1000, "parameters": 9000}
    return "start", {"step": 0, "steps": steps, "loading_seconds": 0.5, "host_peak_bytes": 10**8, **values}


def until(check, seconds: float = 20):
    """Waits for a value that is true, and returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := check():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def append(run: Run, *events: tuple[str, dict]) -> None:
    """Writes further events, as a training process does."""
    with run.events_file.open("a") as lines:
        for event, values in events:
            lines.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")
