"""Draws the pictures of docs/how-to/studio.md: python docs/studio_pictures.py [--steps N].

It does all the steps of that page in a real browser with a real model, as a user would: data, recipe, plan, queue,
watching, stopping, resuming, chat, export. It needs `make example-model`, Chromium, and half an hour on two cores.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
HOUR = 3_600_000.0
RECIPE = """# Tickets become JSON
model:
  path: {model}
data:
  train: data.jsonl
  eval: held_out.jsonl
  eval_limit: 40
  sequence_length: 256
adapter:
  rank: 16
  alpha: 32
train:
  max_steps: {steps}
  batch: 8
  learning_rate: 1e-3
  eval_every: 10
evaluate:
  samples: 2
  max_new_tokens: 40
name: tickets
"""


def draw(page: Page, name: str) -> None:
    """Writes the page's picture in light, dark and narrow."""
    page.wait_for_timeout(1500)
    for ending, scheme, size in (("", "light", WIDE), ("-dark", "dark", WIDE), ("-narrow", "light", NARROW)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(size)
        page.wait_for_timeout(700)
        page.screenshot(path=IMAGES / f"studio-{name}{ending}.png")
    page.emulate_media(color_scheme="light")
    page.set_viewport_size(WIDE)
    print(f"{time.strftime('%H:%M:%S')}  {name}", flush=True)


def wait_for_share(page: Page, percent: int) -> None:
    """Waits until the title says that a run has done so much. The page's policy allows no code from outside."""
    while not (found := re.match(r"(\d+)", page.title())) or int(found[1]) < percent:
        time.sleep(0.5)


def tour(page: Page, url: str, steps: int) -> None:
    """Does what docs/how-to/studio.md describes."""

    def go(path: str) -> None:
        page.goto(f"{url}/#/{path}")

    go(f"data?file=data.jsonl&model={MODEL}")
    page.wait_for_selector("mark", timeout=HOUR)
    draw(page, "data")
    go("new")
    page.fill("[aria-label='The recipe as YAML']", RECIPE.format(model=MODEL, steps=steps))
    page.wait_for_selector(".plan-pane >> text=Tokens/s", timeout=HOUR)
    draw(page, "new-run")
    page.click("button:text-is('Queue')")
    page.click("dialog[open] button:has-text('Queue') >> nth=-1")
    go("")
    page.wait_for_selector(".jobs .job-name >> text=tickets")
    wait_for_share(page, 1)
    draw(page, "home")
    page.click(".jobs a:has-text('tickets')")
    page.wait_for_selector(".chart canvas", timeout=HOUR)
    wait_for_share(page, 40)
    draw(page, "run")
    page.click("button:text-is('Stop')")
    page.click("dialog[open] >> text=Save and stop")
    page.wait_for_selector(".badge:has-text('stopped')", timeout=HOUR)
    page.click("button:text-is('Resume')", timeout=HOUR)
    page.wait_for_selector(".badge:has-text('finished')", timeout=HOUR)
    page.wait_for_selector("a:has-text('Export & serve') >> nth=-1", timeout=HOUR)
    draw(page, "run-finished")
    page.click("[role=tab]:has-text('Plan')")
    draw(page, "plan")
    go("chat")
    page.check(".choices >> text=tickets")
    page.click("text=Start the server")
    page.wait_for_selector("#model option", state="attached", timeout=HOUR)
    page.check("#compare")
    page.fill("#message", "order 1000 arrived broken, the lid is cracked")
    page.press("#message", "Enter")
    page.wait_for_selector(".again", timeout=HOUR)
    page.locator(".question").scroll_into_view_if_needed()
    draw(page, "chat")
    go("serve")
    page.click("section[aria-label=Exports] >> button:text-is('Export')")
    page.click("text=Queue the export")
    page.wait_for_selector("section[aria-label=Exports] >> text=/verified|matches/i", timeout=HOUR)
    draw(page, "serve")
    go("models")
    page.wait_for_selector("text=tickets")
    draw(page, "models")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name) / "tickets"
        shutil.copytree(ROOT / "examples" / "tickets", folder)
        shutil.copy(ROOT / "examples" / "models" / MODEL, folder)
        environment = os.environ | {"TUNESMITH_STATE": f"{name}/state"}
        command = [sys.executable, "-m", "tunesmith", "studio", "--no-open", "--port", "0"]
        studio = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        address = re.search(r"http://\S+", studio.stderr.readline()).group()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport=WIDE)
        page.goto(address)
        try:
            tour(page, address.partition("/#")[0], asked.steps)
        except BaseException:
            page.screenshot(path=IMAGES.parent.parent / "studio-failed.png")
            raise
        finally:
            studio.terminate()
            subprocess.run(["pkill", "-f", f"{name}/"], check=False)


if __name__ == "__main__":
    main()
