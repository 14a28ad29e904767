"""The report and the tables of made-up runs: the numbers are those of the files, and the page is self-contained."""

import json
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tunesmith.cli import runs
from tunesmith.data.rows import REASONS
from tunesmith.evaluate import summary
from tunesmith.evaluate.charts import WIDTH, Series, line_chart, thin, ticks
from tunesmith.evaluate.report import write_report
from tunesmith.files import write_json
from tunesmith.recipe import Recipe
from tunesmith.run import Run

VOID = {"meta", "br", "hr", "img", "input", "link"}
ATTACK = "</p><script>alert('owned')</script><img src=http://evil.example/x.png>{{ 7*7 }}"

EVALUATION = {
    "rows": 212,
    "before": {
        "loss": {"mean": 3.2134, "low": 3.121, "high": 3.314},
        "perplexity": {"mean": 24.86, "low": 22.67, "high": 27.49},
        "exact_match": {"mean": 0.0094, "low": 0.0, "high": 0.0236},
    },
    "after": {
        "loss": {"mean": 0.8412, "low": 0.784, "high": 0.901},
        "perplexity": {"mean": 2.319, "low": 2.19, "high": 2.462},
        "exact_match": {"mean": 0.830, "low": 0.778, "high": 0.877},
    },
    "difference": {
        "loss": {"mean": -2.3722, "low": -2.4519, "high": -2.2907},
        "exact_match": {"mean": 0.8206, "low": 0.764, "high": 0.873},
    },
    "samples": [
        {
            "prompt": "Which function of itertools repeats an iterable for ever?",
            "reference": "itertools.cycle",
            "before": "The function you are looking for is itertools.repeat, which repeats the iterable as often as "
            "you like. For example:\n\nfor x in repeat([1, 2]):\n    print(x)",
            "after": "itertools.cycle",
        },
        {
            "prompt": "What does os.path.splitext('a.tar.gz') return?",
            "reference": "('a.tar', '.gz')",
            "before": "It returns the name of the file.",
            "after": "('a', '.tar.gz')",
        },
        {"prompt": "Say hello", "reference": "Hello", "before": ATTACK, "after": "Hello"},
    ],
}
PLAN = {
    "strategy": "ddp",
    "processes": 1,
    "micro_batch": 4,
    "accumulation": 8,
    "gradient_checkpointing": True,
    "precision": {"compute": "bfloat16", "weights": "bfloat16"},
    "memory": {"needed_bytes": 11_400_000_000, "free_bytes": 24_600_000_000},
    "ledger": {
        "read": 4310,
        "kept": 4211,
        "dropped": {"duplicate": 61, "too_long": 32, "broken_json": 6},
        "changed": {"system_merged": 120},
        "shortened": {},
    },
}
PROVENANCE = {
    "base_model": {"path": "Qwen/Qwen3-0.6B", "sha256": "9f2c" * 16},
    "seed": 0,
    "git_commit": "8842452",
    "data": [{"path": "data/stdlib-qa.jsonl", "sha256": "a1b2" * 16, "bytes": 1_840_211}],
    "packages": {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.1"},
    "machine": {"system": "Linux-6.8", "processor": "AMD Ryzen 9 5950X", "gpus": ["NVIDIA GeForce RTX 3090"]},
}


def new_run(tmp_path, name="2026-11-24-stdlib-qa", power: dict | None = None, **train) -> Run:
    return Run.create(
        Recipe.build(
            {
                "model": {"path": "Qwen/Qwen3-0.6B"},
                "data": {"train": "data/stdlib-qa.jsonl"},
                "train": train,
                "power": power or {},
                "name": name,
                "output": str(tmp_path / "runs"),
            }
        )
    )


def train(run: Run, steps: int, until: int | None = None, eval_every: int = 40) -> None:
    """Logs a plausible training up to step `until` of `steps`."""
    noise = random.Random(0)
    run.log("start", steps=steps, rows=4211, eval_rows=212, trainable_parameters=10_092_544, parameters=606_142_464)
    run.log("eval", step=0, loss=3.2134, rows=212, seconds=6.1)
    for step in range(1, (until or steps) + 1):
        loss = 0.82 + 2.3 * math.exp(-step / (steps / 7))
        run.log(
            "step",
            step=step,
            epoch=3 * step / steps,
            loss=loss + noise.gauss(0, 0.09),
            learning_rate=2e-4 * min(1, step / 12) * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
            grad_norm=1.1,
            tokens=16_384,
            supervised_tokens=5_210,
            seconds=1.62,
            tokens_per_second=10_100 + noise.gauss(0, 260),
            waiting_seconds=0.01,
            memory_bytes=int(11.2e9 + min(step, 9) * 2e7),
        )
        if step % eval_every == 0:
            run.log("eval", step=step, loss=loss + 0.02 + 0.0001 * step, rows=212, seconds=6.1)


def whole_run(tmp_path, **changes) -> Run:
    run = new_run(tmp_path)
    train(run, 396)
    run.log("warning", message="cuda:0 draws 350 W and slows itself down at 83 °C; a lower power limit may be faster")
    run.log("stop", step=396, reason="done")
    write_json(run.eval_file, EVALUATION | changes)
    write_json(run.plan_file, PLAN)
    write_json(run.provenance_file, PROVENANCE)
    return run


class Page(HTMLParser):
    """The tags, attributes and visible text of a report; asserts that elements nest."""

    def __init__(self, run: Run):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.source = write_report(run).read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)


def printed(renderable, width: int = 200) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_page_is_self_contained_and_runs_no_script(tmp_path):
    page = Page(whole_run(tmp_path))
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "action")]
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style


def test_numbers_on_the_page_are_those_of_the_files(tmp_path):
    run = whole_run(tmp_path)
    page = Page(run)
    assert (
        "Held-out loss fell from 3.21 to 0.84 (−2.37, 95 % interval −2.45 … −2.29); 83 % of held-out answers "
        "are exactly right, before 0.9 %."
    ) in page.text
    assert "The run finished at step 396 of 396." in page.text
    assert "24.86 22.67 … 27.49 2.32 2.19 … 2.46" in page.text
    assert "Exactly right, % 0.9 0.0 … 2.4 83.0 77.8 … 87.7 +82.1 +76.4 … +87.3" in page.text
    assert "On 212 held-out rows" in page.text
    assert "4,211 of 4,310 rows were kept, 99 dropped." in page.text
    for reason, count in PLAN["ledger"]["dropped"].items():
        assert f"dropped {REASONS[reason]} {count}" in page.text
    assert f"changed {REASONS['system_merged']} 120" in page.text
    assert "slows itself down" in page.text and "9f2c" * 16 in page.text and "path: Qwen/Qwen3-0.6B" in page.text
    at_40 = next(e["loss"] for e in run.events("eval") if e["step"] == 40)
    assert f"Held-out: {at_40:.2f}" in page.text


def test_curves_pass_through_the_logged_points(tmp_path):
    run = whole_run(tmp_path)
    points = [(e["step"], e["loss"]) for e in run.events("eval")]
    drawn = next(value for name, value in Page(run).attributes if name == "d" and value.count("M") == len(points))
    xs, ys = zip(*(map(float, dot.removesuffix("h.01").split()) for dot in drawn.split("M")[1:]))
    assert xs == pytest.approx([WIDTH * step / 396 for step, _ in points], abs=0.06)
    slope = (ys[-1] - ys[0]) / (points[-1][1] - points[0][1])  # pixels per nat, downwards
    assert slope < 0
    assert ys == pytest.approx([ys[0] + slope * (loss - points[0][1]) for _, loss in points], abs=0.2)


@given(st.text(), st.text())
def test_untrusted_text_is_shown_and_never_interpreted(tmp_path_factory, prompt, answer):
    run = new_run(tmp_path_factory.mktemp("run"), "a <b>[bold]name & co")
    run.log("warning", message=ATTACK)
    sample = {"prompt": prompt + ATTACK, "reference": ATTACK, "before": answer, "after": ATTACK + answer}
    write_json(run.eval_file, EVALUATION | {"samples": [sample]})
    write_json(run.provenance_file, {ATTACK: {ATTACK: [ATTACK]}})
    page = Page(run)
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("alert('owned')") >= 6 and "{{ 7*7 }}" in page.text
    assert "a <b>[bold]name & co" in page.text
    assert "a <b>[bold]name & co" in printed(runs.show_run(run))


@pytest.mark.parametrize(
    "change, exact, said, tone",
    [
        ((0.02, -0.01, 0.05), None, "did not clearly change", "unclear"),
        ((0.4, 0.3, 0.5), None, "got worse", "worse"),
        ((-0.4, -0.5, -0.3), None, "fell", "better"),
        ((-0.4, -0.5, -0.3), (-0.2, -0.3, -0.1), "only 83", "unclear"),
        ((-0.4, -0.5, -0.3), (0.01, -0.02, 0.04), "no clear change", "better"),
    ],
)
def test_headline_claims_only_what_the_intervals_show(tmp_path, change, exact, said, tone):
    names = ("mean", "low", "high")
    difference = {"loss": dict(zip(names, change))} | ({"exact_match": dict(zip(names, exact))} if exact else {})
    found = summary.verdict(whole_run(tmp_path, difference=difference))
    assert said in found.text and found.tone == tone
    assert ("fell" in found.text) == (change[2] < 0)


def test_neither_page_nor_tables_import_torch():
    code = "import sys, tunesmith.evaluate.report, tunesmith.evaluate.summary; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_broken_model_is_called_so(tmp_path):
    nan = dict.fromkeys(("mean", "low", "high"), math.nan)
    page = Page(whole_run(tmp_path, after={"loss": nan, "perplexity": nan}, difference={"loss": nan}))
    assert "Training broke the model" in page.text


def test_runs_without_results_say_so(tmp_path):
    nothing = new_run(tmp_path, "nothing")
    assert "Nothing has been trained yet" in Page(nothing).text
    assert "The run has not started." in Page(nothing).text

    single = new_run(tmp_path, "single")
    train(single, 1)
    with single.held():
        assert "the only step" in Page(single).text and "The run is still running at step 1 of 1." in Page(single).text
    assert "was cut off at step 1 of 1" in Page(single).text

    broken = new_run(tmp_path, "broken")
    train(broken, 396, until=120)
    broken.log("samples", step=0, samples=[{"prompt": "Capital?", "reference": "Rome", "answer": "I think it is"}])
    broken.log("samples", step=100, samples=[{"prompt": "Capital?", "reference": "Rome", "answer": "Rome"}])
    broken.log("stop", step=120, reason="interrupted")
    page = Page(broken)
    assert "The run was interrupted at step 120 of 396." in page.text
    assert "There is no final evaluation" in page.text and "the uncertainty is unknown" in page.text
    assert "I think it is" in page.text and "same as the reference" in page.text

    diverged = new_run(tmp_path, "diverged")
    train(diverged, 396, until=30)
    last = {key: value for key, value in diverged.events("step")[-1].items() if key not in ("event", "time")}
    diverged.log("step", **(last | {"step": 31, "loss": math.nan}))
    diverged.log("stop", step=31, reason="not_finite")
    page = Page(diverged)
    assert "The run failed at step 31 of 396, because its loss" in page.text
    assert "Training broke the model: at step 31" in page.text
    assert not re.search(r"\bnan\b", page.source, re.IGNORECASE)


def test_status_follows_the_last_event_and_the_lock(tmp_path):
    run = new_run(tmp_path)
    with run.held():
        train(run, 396, until=100)
        assert summary.summary(run)["status"] == "running"
        run.log("stop", step=100, reason="interrupted")
        assert summary.summary(run)["status"] == "interrupted"
        run.log("resume", step=80)
        assert summary.summary(run)["steps_done"] == 80 and summary.summary(run)["status"] == "running"
    assert summary.summary(run)["status"] == "cut off"


def test_pauses_are_not_counted_as_work(tmp_path):
    run = new_run(tmp_path)
    times = [("start", 0), ("step", 10), ("resume", 1000), ("step", 1025)]
    run.events_file.write_text(
        "".join(
            json.dumps({"event": event, "time": time, "step": n, "steps": 9, "loss": 1.0}) + "\n"
            for n, (event, time) in enumerate(times)
        )
    )
    assert summary.summary(run)["seconds"] == 35


def test_tables_show_results_and_what_differs(tmp_path):
    one, two = whole_run(tmp_path), new_run(tmp_path, "faster[red]", learning_rate=1e-3)
    rows = printed(runs.compare([one, two])).splitlines()
    cells = {row.split("  ")[0].strip(): row for row in rows if row.strip()}
    assert "0.0002" in cells["train.learning_rate"] and "0.001" in cells["train.learning_rate"]
    assert "train.epochs" not in cells and "name" not in cells
    assert "3.21 → 0.84" in cells["Held-out loss"]
    assert "● A  " + one.name in rows[0] and "faster[red]" in rows[1]
    listed = printed(runs.list_table([one, two]), width=80)
    assert "faster[red]" in listed and "not started" in listed and "396/396" in listed
    assert one.name in listed and "Qwen3-0.6B, sft, lora" in listed
    assert "Held-out loss fell" in printed(runs.show_run(one)) and "slows itself down" in printed(runs.show_run(one))
    json.dumps(summary.summary(one), allow_nan=False)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(2, 9))
def test_ticks_enclose_the_values_evenly(low, span, about):
    found = ticks(low, low + span, about)
    tolerance = 1e-6 * max(1, abs(low), span)
    assert found[0] <= low + tolerance and found[-1] >= low + span - tolerance
    assert 2 <= len(found) <= 2 * about + 3
    gaps = [b - a for a, b in pairwise(found)]
    assert min(gaps) > 0 and max(gaps) == pytest.approx(min(gaps), rel=1e-3)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=2000), st.integers(1, 300))
def test_thinning_keeps_the_mean_and_the_end(values, most):
    points = list(enumerate(values, 1))
    thinned, size = thin(points, most)
    assert len(thinned) <= most and thinned[-1][0] == len(values)
    whole = len(values) // size
    assert sum(y for _, y in thinned[:whole]) * size == pytest.approx(sum(values[: whole * size]), abs=1e-6)


def test_a_loss_that_is_not_finite_leaves_a_gap():
    chart = line_chart("Loss", [Series("Training", [(1, 2.0), (2, math.nan), (3, 1.0)], "training")], str)
    path = chart.split('class="line training" d="')[1].split('"')[0]
    assert path.count("M") == 2 and "L" not in path and "nan" not in path
