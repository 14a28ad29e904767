"""The cost of the studio: python bench/studio.py [--quick] [--out FILE].

Its start, its memory, its lists and curves, how many events a second a client follows, and how much slower a training
is that is watched. The training is that of a 5M Llama on one thread: alone, watched by a client of the event stream,
and watched by a page in a browser on the same machine, in turns. Nothing else should run on the machine.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

import psutil
from corpus import conversations, save_model
from playwright.sync_api import Page, sync_playwright
from trials import heading, results_file

from tunesmith import Recipe
from tunesmith.files import json_text
from tunesmith.run import Run

START = {"steps": 10**6, "rows": 100, "eval_rows": 0, "trainable_parameters": 1, "parameters": 1}
STEP = {"epoch": 0.1, "learning_rate": 1e-4, "grad_norm": 1.2, "tokens": 4096, "supervised_tokens": 2000}
STEP |= {"seconds": 0.5, "tokens_per_second": 8192.0, "waiting_seconds": 0.01, "memory_bytes": 10**9, "joules": 120.0}
HEADER = "X-Tunesmith-Token"


class Studio:
    """A studio in a process of its own."""

    def __init__(self, folder: Path):
        began = time.perf_counter()
        command = [sys.executable, "-m", "tunesmith", "studio", "--no-open", "--port", "0"]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        self.url, self._token = re.search(r"(http://\S+)/#token=(\S+)", self.process.stderr.readline()).groups()
        self.get("/api/machine")
        self.start_seconds = time.perf_counter() - began

    @property
    def address(self) -> str:
        return f"{self.url}/#token={self._token}"

    def open(self, path: str, values: dict | None = None):
        """Sends a GET, or a POST with values."""
        headers = {HEADER: self._token, "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, values and json.dumps(values).encode(), headers)
        return urllib.request.urlopen(request, timeout=120)

    def get(self, path: str):
        with self.open(path) as answer:
            return json.load(answer)

    def timed(self, path: str, values: dict | None = None) -> float:
        """Seconds of a request."""
        began = time.perf_counter()
        with self.open(path, values) as answer:
            answer.read()
        return time.perf_counter() - began

    def megabytes(self) -> float:
        """Memory that is this process's alone."""
        return psutil.Process(self.process.pid).memory_full_info().uss / 1e6

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait()

    @contextmanager
    def stream(self, heard) -> Iterator[None]:
        """Reads the event stream meanwhile. `heard` gets each event's name and value."""
        answer = self.open("/api/events")

        def read() -> None:
            name = ""
            with suppress(OSError, ValueError, AttributeError):  # it is closed
                for line in answer:
                    if line.startswith(b"event: "):
                        name = line[7:].strip().decode()
                    elif line.startswith(b"data: "):
                        heard(name, json.loads(line[6:]))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        yield
        answer.close()


@contextmanager
def studio(folder: Path) -> Iterator[Studio]:
    found = Studio(folder)
    try:
        yield found
    finally:
        found.close()


def make_run(folder: Path, name: str, steps: int) -> Run:
    values = {"model": {"path": "m"}, "data": {"train": "d.jsonl"}, "output": str(folder / "runs"), "name": name}
    run = Run.create(Recipe.build(values))
    run.log("start", **START)
    with run.events_file.open("a") as file:
        for step in range(1, steps + 1):
            event = {"event": "step", "time": 1e9 + step, "step": step, "loss": 3 / step**0.1} | STEP
            file.write(json_text(event) + "\n")
    return run


def start_and_memory(folder: Path) -> Iterator[str]:
    seconds, idle = [], []
    for _ in range(5):
        with studio(folder) as found:
            seconds.append(found.start_seconds)
            time.sleep(2)
            idle.append(found.megabytes())
    yield f"| start of the server until it answers | {statistics.median(seconds):.2f} s (median of 5) |"
    yield f"| memory, idle | {statistics.median(idle):.0f} MB |"
    with studio(folder) as found, ExitStack() as locks:
        runs = [make_run(folder, f"busy-{number}", 1000) for number in range(10)]
        for run in runs:
            locks.enter_context(run.held())
        with found.stream(lambda *_: None):
            for step in range(1001, 1101):
                for run in runs:
                    run.log("step", step=step, loss=1.0, **STEP)
                time.sleep(0.1)
            names = [row["id"] for row in found.get("/api/runs")]
            for name in names:
                found.get(f"/api/runs/{name}/curves")
            yield f"| memory, ten runs of 10 steps a second, all curves opened | {found.megabytes():.0f} MB |"


def lists_and_curves(folder: Path, count: int, steps: int) -> Iterator[str]:
    for number in range(count):
        make_run(folder, f"run-{number:03}", 200)
    with studio(folder) as found:
        first, again = found.timed("/api/runs"), [found.timed("/api/runs") for _ in range(5)]
        yield f"| list of {count} runs of 200 steps, first time | {first * 1000:,.0f} ms |"
        yield f"| the same again | {statistics.median(again) * 1000:,.0f} ms |"
        big = make_run(folder, "big", steps)
        name = next(row["id"] for row in found.get("/api/runs") if row["name"] == "big")
        loading = found.timed(f"/api/runs/{name}/curves?pixels=800")
        size = big.events_file.stat().st_size / 1e6
        yield f"| curves of {steps:,} steps ({size:,.0f} MB of events), first time | {loading:.1f} s |"
        for what, query in (
            ("800 pixels", "pixels=800"),
            ("by time, smoothed", "pixels=800&x=time&smoothing=0.99"),
            ("a thousandth of them", f"pixels=800&low={steps // 2}&high={steps // 2 + steps // 1000}"),
        ):
            seconds = statistics.median(found.timed(f"/api/runs/{name}/curves?{query}") for _ in range(5))
            yield f"| the same again, {what} | {seconds * 1000:,.0f} ms |"
        yield f"| memory with these curves | {found.megabytes():,.0f} MB |"


def followed(folder: Path, rates: list[int], seconds: float) -> Iterator[str]:
    """How long after it was written an event arrives, at so many events a second of one run."""
    run = make_run(folder, "followed", 0)
    with studio(folder) as found, run.held():
        for rate in rates:
            delays: list[float] = []

            def heard(name: str, value: dict, delays=delays) -> None:
                if name == "run":
                    now = time.time()
                    delays += [now - event["time"] for event in value["events"] if event["event"] == "step"]

            with found.stream(heard):
                time.sleep(3)
                delays.clear()
                begin, written = time.perf_counter(), 0
                while (passed := time.perf_counter() - begin) < seconds:
                    while written < rate * passed:
                        written += 1
                        run.log("step", step=written, loss=1.0, **STEP)
                    time.sleep(0.005)
                time.sleep(2)
            ordered = sorted(delays)
            late = ordered[int(len(ordered) * 0.99)] if ordered else float("nan")
            yield (
                f"| {written / seconds:,.0f} events a second: arrived, median and 99 % delay | "
                f"{len(ordered) / written:.0%}, {statistics.median(ordered):.2f} s, {late:.2f} s |"
            )


@contextmanager
def page_of(found: Studio, path: str) -> Iterator[Page]:
    """The page in a browser on this machine."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(found.address)
        page.goto(f"{found.url}/#/{path}")
        yield page
        browser.close()


def first_view(folder: Path) -> Iterator[str]:
    """From opening the address to the first view with the machine's devices, in a browser that is already open."""
    with studio(folder) as found, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        seconds = []
        for _ in range(5):
            page = browser.new_context().new_page()
            began = time.perf_counter()
            page.goto(found.address)
            page.wait_for_selector(".devices >> text=CPU")
            seconds.append(time.perf_counter() - began)
        browser.close()
    yield f"| first view in a browser that is open, nothing cached | {statistics.median(seconds):.2f} s (median of 5) |"


def plans(folder: Path) -> Iterator[str]:
    """Plans of a 5M Llama for one RTX 4090: by the command, and as the page asks for them."""
    save_model("5M", folder / "m")
    began = time.perf_counter()
    command = [sys.executable, "-m", "tunesmith", "plan", "--model", "m", "--machine", "4090"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    yield f"| `tunesmith plan` of a 5M model | {time.perf_counter() - began:.1f} s |"
    asked = {"values": {"model": "m", "data": "d.jsonl"}, "machine": "4090"}
    (folder / "d.jsonl").write_text(json.dumps(conversations()[0]) + "\n")
    with studio(folder) as found:
        first = found.timed("/api/recipe/plan", asked)
        later = statistics.median(found.timed("/api/recipe/plan", asked) for _ in range(5))
    yield f"| the same in the page: the first; later ones | {first:.1f} s; {later:.1f} s (median of 5) |"


def watched(folder: Path, rounds: int, steps: int) -> Iterator[str]:
    """Tokens a second of a training alone, with a stream that is read, and with the run's page in a browser on this
    machine, in turns."""
    save_model("5M", folder / "m")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations()[:2000]))
    ways = {
        "alone": lambda found: nullcontext(),
        "read as a stream": lambda found: found.stream(lambda *_: None),
        "shown on a page in a browser on this machine": lambda found: page_of(found, ""),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    with studio(folder) as found:
        for _ in range(rounds):
            for name, watching in ways.items():
                with watching(found):
                    speeds[name].append(_train(folder, f"{len(speeds[name])}-{name.split()[0]}", steps))
    for name, found_speeds in speeds.items():
        ratios = [speed / alone for speed, alone in zip(found_speeds, speeds["alone"])]
        yield (
            f"| training {name}: tokens a second; over alone, turn by turn ({rounds} turns) | "
            f"{statistics.median(found_speeds):,.0f}; median {statistics.median(ratios):.3f}, {min(ratios):.3f} to "
            f"{max(ratios):.3f} |"
        )


def _train(folder: Path, name: str, steps: int) -> float:
    command = [sys.executable, "-m", "tunesmith", "train", "--model", "m", "--data", "d.jsonl", "--name", name]
    flags = ["--train.max-steps", str(steps), "--train.batch", "8", "--data.sequence-length", "256"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *flags], cwd=folder, env=environment, check=True, capture_output=True)
    measured = Run(folder / "runs" / name).events("step")[2:]
    return sum(step["tokens"] for step in measured) / sum(step["seconds"] for step in measured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer of everything, to try this script")
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    lines = [*heading("cpu"), "\n| measured | result |\n|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"TUNESMITH_STATE": f"{name}/state", "TUNESMITH_CACHE": f"{name}/cache"}
        parts = (
            start_and_memory,
            first_view,
            plans,
            lambda folder: lists_and_curves(folder, 50 if asked.quick else 500, 10**4 if asked.quick else 10**6),
            lambda folder: followed(folder, [10, 100, 1000], 3 if asked.quick else 10),
            lambda folder: watched(folder, 1 if asked.quick else 3, 6 if asked.quick else 30),
        )
        for number, part in enumerate(parts):
            folder = Path(name) / str(number)
            folder.mkdir()
            for line in part(folder):
                print(line, flush=True)
                lines.append(line)
    (asked.out or results_file("-studio")).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
