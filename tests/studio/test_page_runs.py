"""The views of runs: their list, one run, and several side by side."""

import json
import math
import shutil

import pytest

from tests.browser import needs_browser
from tests.studio.pages import (
    KEY,
    accessibility,
    append,
    make_run,
    opened,
    start,
    step,
    studio_in,
    until,
)
from tunesmith.studio.catalogue import id_of

pytestmark = needs_browser
DONE = ("stop", {"step": 40, "reason": "done"})
INTERVALS = {"mean": 2.0, "low": 1.9, "high": 2.1}
HOSTILE = "<img src=x onerror=alert(1)>"
EVALUATION = {
    "rows": 40,
    "held_out": "the same",
    "before": {"loss": INTERVALS | {"mean": 3.0}, "perplexity": INTERVALS},
    "after": {"loss": INTERVALS, "perplexity": INTERVALS},
    "difference": {"loss": {"mean": -1.0, "low": -1.2, "high": -0.8}},
    "samples": [{"prompt": HOSTILE, "reference": "r", "before": "b", "after": "a"}],
}


def finished(folder, name: str, shift: float = 0.0):
    """A run of 40 steps with a spike, a step that is no number, and a resume."""
    steps = [step(at, 3 - at / 20 + shift) for at in range(1, 41)]
    steps[9] = step(10, 77.0)
    steps[19] = step(20, None)
    evals = [
        ("eval", {"step": at, "loss": 3 - at / 40, "low": 2, "high": 3.5, "rows": 40, "seconds": 1}) for at in (0, 40)
    ]
    run = make_run(
        folder, name, start(40), evals[0], *steps[:30], ("resume", {"step": 30}), *steps[30:], evals[1], DONE
    )
    run.eval_file.write_text(json.dumps(EVALUATION))
    row = {"file": "rows.jsonl", "line": 7, "action": "dropped", "reason": "too_long", "detail": HOSTILE}
    run.ledger_file.write_text(json.dumps(row) + "\n")
    return run


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    finished(folder, "first")
    finished(folder, "second", 0.5)
    make_run(folder, "cut", start(40), step(1, 3.0), result=False)
    with studio_in(folder) as started:
        yield started


def address(studio, name: str) -> str:
    return f"runs/{id_of(studio.folder / 'runs' / name)}"


def place(page) -> str:
    return page.evaluate("location.hash")


def table(page, label: str) -> list[list[str]]:
    """The cells of a table."""
    rows = page.locator(f"table[aria-label='{label}'] tbody tr")
    return [row.locator("td").all_inner_texts() for row in rows.all()]


def test_runs_are_searched_sorted_and_chosen_for_comparison(browser, studio):
    with opened(browser, studio, "runs") as page:
        names = page.locator("tbody a")
        until(lambda: names.count() == 3)
        page.click("button:has-text('Run')")
        until(lambda: names.all_inner_texts() == ["cut", "first", "second"])
        page.click("button:has-text('Run')")
        until(lambda: names.all_inner_texts() == ["second", "first", "cut"])
        page.keyboard.press("/")
        page.keyboard.type("FIR")
        until(lambda: names.all_inner_texts() == ["first"])
        page.reload()
        until(lambda: names.all_inner_texts() == ["first"])
        page.fill("input[type=search]", "")
        page.select_option("select", "cut off")
        until(lambda: names.all_inner_texts() == ["cut"])
        page.select_option("select", "")
        page.check("[aria-label='Compare first']")
        page.check("[aria-label='Compare second']")
        assert accessibility(page) == []
        page.click("text=Compare 2")
        page.wait_for_selector("#title:has-text('Compare')")
        page.wait_for_selector(".chart canvas")


@pytest.mark.slow
def test_five_hundred_runs_are_listed(browser, tmp_path):
    run = make_run(tmp_path, "run-000", start(2), step(1, 2.0))
    for number in range(1, 500):
        shutil.copytree(run.folder, run.folder.with_name(f"run-{number:03}"))
    with studio_in(tmp_path) as studio, opened(browser, studio, "runs") as page:
        until(lambda: page.locator("tbody tr").count() == 500)
        page.fill("input[type=search]", "run-49")
        until(lambda: page.locator("tbody tr").count() == 10)


def test_the_verdict_comes_first_and_every_part_opens(browser, studio):
    with opened(browser, studio, address(studio, "first")) as page:
        page.wait_for_selector(".verdict >> text=Held-out loss fell from 3.00 to 2.00")
        page.wait_for_selector(".chart canvas")
        assert accessibility(page) == []
        page.focus("[role=tab][aria-selected=true]")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f".samples >> text={HOSTILE}")
        assert place(page).endswith("?tab=samples")
        for tab, text in [
            ("Data", "rows.jsonl:7"),
            ("Plan", "There is no plan"),
            ("Recipe", "path: model"),
            ("Log", "held-out loss 3 (95 % interval 2 to 3.5)"),
        ]:
            page.click(f"[role=tab]:has-text('{tab}')")
            page.wait_for_selector(f"[role=tabpanel] >> text={text}")
            assert accessibility(page) == []
        page.click("[role=tab]:has-text('Report')")
        report = page.frame_locator("iframe.report")
        report.locator("text=first").first.wait_for()
        assert KEY not in page.locator("iframe.report").get_attribute("src")


def test_curves_show_each_spike_and_what_is_not_a_number(browser, studio):
    with opened(browser, studio, address(studio, "first")) as page:
        page.wait_for_selector(".chart canvas")
        page.wait_for_selector("text=✕ marks steps at which a value was not a number")
        page.click("text=The values as tables")
        until(lambda: [row[0] for row in table(page, "Training steps")] == [str(at) for at in range(1, 41)])
        rows = table(page, "Training steps")
        assert rows[9][1] == "77" and rows[19][1] == "not a number"
        until(lambda: [row[1:] for row in table(page, "Held-out loss")] == [["3", "2 – 3.5"], ["2", "2 – 3.5"]])
        chart = page.locator(".chart .u-over").first
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] * 0.1, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.3, y, steps=4)
        page.mouse.up()
        until(lambda: "low=" in place(page) and "high=" in place(page))
        until(lambda: len(table(page, "Training steps")) < 12)
        assert "77" in [row[1] for row in table(page, "Training steps")]
        page.reload()
        page.click("text=The values as tables")
        until(lambda: 0 < len(table(page, "Training steps")) < 12)
        page.click("text=Show all")
        until(lambda: len(table(page, "Training steps")) == 40)
        page.select_option(".chart-controls select", "tokens")
        until(lambda: [row[0] for row in table(page, "Training steps")][-1:] == ["4 k"])
        page.check("text=Log scale")
        page.locator("input[type=range]").fill("0.9")
        until(lambda: "smoothing=0.9" in place(page))
        page.wait_for_selector(".chart canvas")


def test_steps_appear_as_they_are_written(browser, tmp_path):
    run = make_run(tmp_path, "live", start(1000), *[step(at, 2.0) for at in range(1, 4)], result=False)
    with studio_in(tmp_path) as studio, run.held(), opened(browser, studio, address(studio, "live")) as page:
        page.wait_for_selector(".badge:has-text('running')")
        page.wait_for_selector(".chart canvas")
        page.click("text=The values as tables")
        until(lambda: len(table(page, "Training steps")) == 3)
        append(
            run, step(4, 1.25), ("eval", {"step": 4, "loss": 1.75, "low": 1.5, "high": 2.0, "rows": 8, "seconds": 1})
        )
        until(lambda: len(table(page, "Training steps")) == 4)
        assert table(page, "Training steps")[3][:2] == ["4", "1.25"]
        until(lambda: table(page, "Held-out loss") == [["4", "1.75", "1.5 – 2"]])
        page.wait_for_selector("text=step 4 of 1,000")
        append(run, ("resume", {"step": 2}), step(3, 0.5))
        until(lambda: [row[:2] for row in table(page, "Training steps")] == [["1", "2"], ["2", "2"], ["3", "0.5"]])


def test_a_live_average_continues_that_of_the_server(browser, tmp_path):
    run = make_run(tmp_path, "live", start(100), *[step(at, math.sin(at) + 2) for at in range(1, 8)], result=False)
    readout = ".chart:has-text('Loss') .readout"
    with (
        studio_in(tmp_path) as studio,
        run.held(),
        opened(browser, studio, f"{address(studio, 'live')}?smoothing=0.8") as page,
    ):
        page.wait_for_selector(".chart canvas")
        append(run, *[step(at, math.sin(at) + 2) for at in range(8, 11)])
        page.wait_for_selector("text=step 10 of 100")

        def at_the_end() -> str:
            box = page.locator(".chart .u-over").first.bounding_box()
            page.mouse.move(box["x"] + box["width"] - 1, box["y"] + 20)
            page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 21)
            return page.locator(readout).first.inner_text()

        until(lambda: at_the_end().startswith("10 ·"))
        live = at_the_end()
        page.reload()
        page.wait_for_selector(".chart canvas")
        until(lambda: at_the_end() == live)
        assert "loss smoothed" in live


INK = """canvas => {
    const probe = document.createElement("i");
    probe.style.color = "var(--series-1)";
    document.body.append(probe);
    const ink = getComputedStyle(probe).color.match(/\\d+/g).slice(0, 3).map(Number);
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let at = 0; at < data.length; at += 4) count += ink.every((part, one) => data[at + one] === part);
    return count;
}"""


def test_a_value_between_gaps_is_seen(browser, tmp_path):
    """No line can be drawn to it."""
    make_run(tmp_path, "gaps", start(4), *[step(at, loss) for at, loss in enumerate((None, 2.0, None, None), 1)])
    with studio_in(tmp_path) as studio, opened(browser, studio, f"{address(studio, 'gaps')}?smoothing=0") as page:
        loss = page.locator(".chart canvas").first
        loss.wait_for()
        until(lambda: loss.evaluate(INK) > 0)


def test_a_run_is_deleted_after_its_size_was_said(browser, tmp_path):
    run = make_run(tmp_path, "old", start(2), step(1, 2.0), result=False)
    (run.folder / "notes.txt").write_text("mine")
    with studio_in(tmp_path) as studio, opened(browser, studio, address(studio, "old")) as page:
        page.click("button:text-is('Delete')")
        page.wait_for_selector("dialog[open] >> text=notes.txt")
        assert accessibility(page) == []
        page.click("dialog[open] button.danger:has-text('Delete ')")
        page.wait_for_selector("#title:has-text('Runs')")
        page.wait_for_selector("text=old is deleted")
        assert [entry.name for entry in run.folder.iterdir()] == ["notes.txt"]


def test_runs_are_compared(browser, studio):
    ids = [id_of(studio.folder / "runs" / name) for name in ("first", "second")]
    with opened(browser, studio, f"compare?runs={ids[0]}") as page:
        page.wait_for_selector("text=Choose two or more runs")
        page.select_option("[aria-label='Add a run']", label="second")
        until(lambda: place(page).endswith(f"runs={ids[0]},{ids[1]}"))
        page.wait_for_selector(".chart canvas")
        rows = table(page, "Before and after training")
        assert [row[0] for row in rows] == ["first", "second"]
        assert rows[0][2].split() == ["3", "1.9", "–", "2.1"] and rows[0][4].split() == ["−1", "−1.2", "–", "−0.8"]
        page.wait_for_selector("text=The recipes are the same")
        assert accessibility(page) == []
        page.click("[aria-label='Leave out first']")
        page.wait_for_selector("text=Choose two or more runs")
