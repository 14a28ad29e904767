"""The view of exports and servers."""

import json

import pytest

from tests import tiny
from tests.browser import needs_browser
from tests.studio.calling import standing_in
from tests.studio.pages import (
    accessibility,
    make_run,
    opened,
    start,
    step,
    studio_in,
)
from tunesmith.jobs import ask
from tunesmith.jobs.store import Store

pytestmark = needs_browser
REPORT = {
    "form": "gguf",
    "passed": True,
    "problem": None,
    "engine": "llama.cpp",
    "rows": 24,
    "rows_from": "held-out rows",
    "tokens": {"texts": 24, "conversations": 8, "not_expressed": [], "excused": []},
    "logits": {"positions": 900, "mean_kl": 0.0213, "top1_agreement": 0.958, "largest_drift": 0.31},
    "bound": {"kl": 0.15, "top1": 0.8},
    "answers": {"asked": 8, "identical": 6, "stopped_trained": 8, "stopped_of_them": 7, "bound": 0.9},
    "measure": {"loss": {"trained": 1.2034, "exported": 1.2101}},
}
ELSEWHERE = {
    "vLLM": {
        **{key: REPORT[key] for key in ("passed", "problem", "rows", "rows_from", "tokens", "bound", "answers")},
        "engine": "vLLM 0.32.0",
        "logits": {"positions": 900, "mean_kl": 0.0301, "top1_agreement": 0.94, "largest_drift": 0.4},
        "measure": {"loss": {"trained": 1.2034, "exported": 1.2111}},
    },
    "Ollama": {"passed": None, "problem": "it does not run"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A studio's folder with a run, and a queue that starts nothing."""
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / ".state"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    ask.pause(Store(tmp_path / ".state" / "queue"))
    return tmp_path


def run_in(folder):
    return make_run(folder, "first", start(2), step(1, 2.0), ("stop", {"step": 2, "reason": "done"}))


def test_exports_show_their_comparison_and_new_ones_are_queued(browser, folder):
    run = run_in(folder)
    for name, report in (
        ("gguf", REPORT),
        ("merged", REPORT | {"form": "merged", "engine": "Transformers", "elsewhere": ELSEWHERE}),
        ("fp8.failed", REPORT | {"form": "fp8", "passed": False, "problem": "the mean KL is 0.2"}),
    ):
        (run.folder / name).mkdir()
        (run.folder / name / "parity.json").write_text(json.dumps(report))
        (run.folder / name / "first.gguf").touch()
    with studio_in(folder) as studio, opened(browser, studio, "serve") as page:
        page.wait_for_selector(".server:has-text('fp8') >> text=the mean KL is 0.2")
        card = page.locator(".server:has(h3:text-is('gguf'))")
        card.locator("text=matches the trained model").wait_for()
        card.locator("summary").click()
        table = {row.split("\t")[0]: row.split("\t")[1:] for row in card.locator("tr").all_inner_texts()}
        assert table["Mean KL of logits, nats"] == ["0.0213", "≤ 0.15"]
        assert table["Same top token"] == ["95.8 %", "≥ 80 %"]
        assert table["Answers that stop"] == ["7 of 8", "≥ 90 %"]
        card.locator("summary").click()
        both = page.locator(".server:has(h3:text-is('merged'))")
        both.locator("text=Not compared in Ollama: it does not run").wait_for()
        both.locator("summary:has-text('Compared in Transformers and vLLM 0.32.0')").click()
        table = {row.split("\t")[0]: row.split("\t")[1:] for row in both.locator("tr").all_inner_texts()}
        assert table["Measure"] == ["in Transformers", "in vLLM 0.32.0", "Bound"]
        assert table["Mean KL of logits, nats"] == ["0.0213", "0.0301", "≤ 0.15"]
        assert table["Loss, trained 1.203"][:2] == ["1.21", "1.211"]
        assert card.locator(".export-commands code").first.inner_text().startswith("tunesmith serve")
        page.click("section[aria-label=Exports] >> button:text-is('Export')")
        page.select_option("dialog[open] select >> nth=0", "ollama")
        page.get_by_label("Precision").select_option("q4_k_m")
        page.get_by_label("Importance").check()
        assert accessibility(page) == []
        page.click("text=Queue the export")
        page.wait_for_selector(".server:has-text('ollama') >> text=waiting")
        [job] = Store(folder / ".state" / "queue").jobs()
        assert job.arguments == ["--to", "ollama", "--precision", "q4_k_m", "--importance"]
        page.click("section[aria-label=Exports] >> button:text-is('Export')")
        page.select_option("dialog[open] select >> nth=0", "gguf")
        page.click("text=Queue the export")
        page.wait_for_selector("dialog[open] [role=alert]:has-text('exists already')")
        page.keyboard.press("Escape")
        page.click(".server:has-text('ollama') >> text=Cancel")
        page.wait_for_selector(".server:has-text('ollama') >> text=cancelled")


def test_a_program_is_connected_with_a_server(browser, folder):
    with standing_in() as server, studio_in(folder) as studio, opened(browser, studio, "serve") as page:
        page.click("text=Connect")
        page.select_option("dialog[open] select >> nth=0", "opencode")
        page.wait_for_selector(".configuration pre:has-text('my-run')")
        text = page.inner_text(".configuration pre")
        assert server.url in text
        assert accessibility(page) == []
        page.click("text=Test it")
        page.wait_for_selector(".configuration .notice.good")
        page.click("text=Write it there")
        page.wait_for_selector(".configuration .notice.good:has-text('opencode.json')")
        [written] = (folder / "home").rglob("opencode.json")
        assert server.url in written.read_text()
        server.failure = (500, "the GPU is gone")
        page.click("text=Test it")
        page.wait_for_selector(".configuration .notice.bad:has-text('the GPU is gone')")
        page.keyboard.press("Escape")
        page.click(".server >> text=Chat")
        page.wait_for_selector("text=Say something to base-1b")


@pytest.mark.slow
def test_a_server_is_started_asked_and_stopped(browser, folder):
    tiny.save("qwen3", folder / "model")
    with studio_in(folder) as studio, opened(browser, studio, "chat?serve=model") as page:
        page.click("text=More settings")
        page.fill(".start-server input[type=number]", "128")
        page.click("text=Start the server")
        page.wait_for_selector("text=The model is loading")
        page.wait_for_selector("text=Say something to model", timeout=90_000)
        page.wait_for_selector("text=a context of 128 tokens")
        page.fill("#message", "1+1")
        page.press("#message", "Enter")
        page.wait_for_selector(".answer .answer-figures", timeout=60_000)
        page.goto(f"{studio.url}/#/serve")
        page.click(".server >> text=Log")
        page.wait_for_selector("dialog[open] .log:has-text('serving http')")
        page.keyboard.press("Escape")
        page.click(".server >> text=Stop")
        page.click("dialog[open] button:text-is('Stop')")
        page.wait_for_selector("text=None is running", timeout=60_000)
