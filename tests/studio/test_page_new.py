"""The view that writes a recipe: as a form, as YAML, with its plan, into the queue."""

import json
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.browser import needs_browser
from tests.conftest import sums, write_rows
from tests.studio.pages import accessibility, make_run, opened, studio_in, until
from tunesmith.jobs import ask
from tunesmith.jobs.store import Store
from tunesmith.recipe import Recipe
from tunesmith.studio.catalogue import id_of

pytestmark = needs_browser
YAML = "[aria-label='The recipe as YAML']"
TEXT = """# mine
model: model
data:
  train: rows.jsonl
  sequence_length: 64  # short
train:
  max_steps: 2
"""


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    tiny.save("qwen3", folder / "model")
    write_rows(folder / "rows.jsonl", sums(24))
    ask.pause(Store(folder / ".state" / "queue"))
    with studio_in(folder) as started:
        yield started


def field(page, key: str):
    return page.locator(f"[data-key='{key}']")


def text_is(page, check) -> str:
    """Waits until the YAML is as it should be, and returns it."""
    until(lambda: check(page.input_value(YAML)))
    return page.input_value(YAML)


def test_the_form_and_the_text_are_one_recipe(browser, studio):
    with opened(browser, studio, "new") as page:
        page.wait_for_selector(".plan-pane >> text=Choose a model and data")
        field(page, "model.path").locator("text=Choose").click()
        page.click("dialog[open] button:has-text('model')")
        field(page, "data.train").locator("text=Choose or upload").click()
        page.click("dialog[open] button:has-text('rows.jsonl')")
        field(page, "adapter.rank").locator("input").fill("4")
        field(page, "adapter.kind").get_by_role("radio", name="full").check()
        field(page, "data.sequence_length").get_by_role("button", name="max").click()
        found = text_is(page, lambda text: "sequence_length: max" in text and "kind: full" in text)
        assert yaml.safe_load(found) == {
            "model": {"path": "model"},
            "data": {"train": "rows.jsonl", "sequence_length": "max"},
            "adapter": {"rank": 4, "kind": "full"},
        }
        page.fill(YAML, TEXT)
        until(lambda: field(page, "data.sequence_length").locator("input").input_value() == "64")
        assert field(page, "adapter.rank").locator("input").input_value() == ""
        field(page, "data.sequence_length").locator("input").fill("32")
        found = text_is(page, lambda text: "32" in text)
        assert found == TEXT.replace("64", "32")
        field(page, "train.max_steps").locator("text=Default").click()
        assert "max_steps" not in text_is(page, lambda text: "max_steps" not in text)


def test_every_problem_is_at_its_field_and_its_line(browser, studio):
    with opened(browser, studio, "new") as page:
        text = TEXT.replace("64", "4").replace("max_steps: 2", "weight_decay: -1\n  nonsense: 1")
        page.fill(YAML, text)
        page.wait_for_selector(".gutter .wrong")
        assert page.locator(".gutter .wrong").all_inner_texts() == ["5", "7", "8"]
        page.wait_for_selector("[data-key='data.sequence_length'] .error:has-text('at least 8')")
        page.wait_for_selector("[data-key='train.weight_decay'] .error")  # it is not essential, but wrong
        page.wait_for_selector(".draft-problems >> text=train.nonsense")
        assert page.is_disabled("text=Queue")
        page.get_by_role("radio", name="Essential").check()
        page.click(".yaml-problems button:has-text('sequence_length')")
        until(
            lambda: page.evaluate("document.activeElement.closest('[data-key]')?.dataset.key") == "data.sequence_length"
        )
        assert accessibility(page) == []
        page.fill(YAML, text + "broken: [")
        page.wait_for_selector("text=not read yet")
        assert field(page, "data.sequence_length").locator("input").input_value() == "4"


def test_levels_search_and_the_fields_of_a_method(browser, studio):
    with opened(browser, studio, "new") as page:
        page.wait_for_selector("[data-key='train.epochs']")
        assert field(page, "train.beta1").count() == 0 and field(page, "method.mask").count() == 0
        page.get_by_role("radio", name="All").check()
        shown = [one.get_attribute("data-key") for one in page.locator("[data-key]").all()]
        assert len(shown) == len(set(shown)) > 50 and {"train.beta1", "method.mask", "seed"} <= set(shown)
        assert accessibility(page) == []
        field(page, "method.name").get_by_role("radio", name="cpt").check()
        until(lambda: field(page, "method.mask").count() == 0)
        page.fill("[aria-label='Search fields']", "kwh")
        until(lambda: [one.get_attribute("data-key") for one in page.locator("[data-key]").all()])
        assert page.locator("[data-key]").count() == 1
        field(page, "power.price_per_kwh").locator("input").fill("0.3")
        found = text_is(page, lambda text: "price_per_kwh" in text)
        assert yaml.safe_load(found) == {"method": {"name": "cpt"}, "power": {"price_per_kwh": 0.3}}


def test_unsaved_edits_survive_a_reload(browser, studio):
    with opened(browser, studio, "new") as page:
        page.fill(YAML, TEXT)
        page.wait_for_selector("text=Unsaved edits are kept in this browser")
        page.reload()
        page.wait_for_selector("text=Your unsaved edits are back")
        assert page.input_value(YAML) == TEXT
        until(lambda: field(page, "data.sequence_length").locator("input").input_value() == "64")
        page.click("text=Start afresh")
        text_is(page, lambda text: "mine" not in text)
        assert page.locator(".draft-state >> text=edits").count() == 0


def test_a_run_fills_the_recipe(browser, studio):
    run = make_run(studio.folder, "before")
    with opened(browser, studio, f"new?from={id_of(run.folder)}") as page:
        found = text_is(page, lambda text: "model" in text)
        again = Recipe.build(yaml.safe_load(found))
        assert again.model_dump() == Recipe.load(run.recipe_file).model_dump() | {"name": None}
        assert field(page, "model.path").locator("input").input_value() == "model"


@pytest.mark.slow
def test_a_recipe_is_planned_saved_and_queued(browser, studio):
    with opened(browser, studio, "new") as page:
        page.context.set_default_timeout(120_000)
        page.fill(YAML, TEXT)
        page.wait_for_selector("text=planning…")
        page.wait_for_selector(".plan-pane .badge.good:has-text('fits')")
        page.wait_for_selector(".memory-line[role=img]")
        assert "CPU" in page.inner_text("[aria-label=Memory]")
        assert accessibility(page) == []

        page.click("button:text-is('Save')")
        page.fill("dialog[open] input[type=text], dialog[open] .field input", "mine")
        page.click("dialog[open] button:text-is('Save')")
        page.wait_for_selector(".toast >> text=recipes/mine.yaml")
        assert (studio.folder / "recipes" / "mine.yaml").read_text() == TEXT
        (studio.folder / "recipes" / "mine.yaml").write_text(TEXT + "# another tab\n")
        page.click("button:text-is('Save')")
        page.click("dialog[open] button:text-is('Save')")
        page.wait_for_selector("dialog[open] >> text=is there already")
        page.click("dialog[open] button:text-is('Save over it')")
        page.wait_for_function("!document.querySelector('dialog[open]')")
        assert (studio.folder / "recipes" / "mine.yaml").read_text() == TEXT
        page.reload()
        text_is(page, lambda text: "mine" not in text)
        page.click("button:text-is('Open')")
        page.click("dialog[open] button:has-text('mine.yaml')")
        text_is(page, lambda text: text == TEXT)

        page.click("button:text-is('Queue')")
        page.get_by_role("radio", name="High").check()
        page.click("text=Try several values of a field")
        page.fill("[aria-label='Values of field 1']", "1e-4, 2e-4")
        page.wait_for_selector("text=2 runs, one for each combination")
        page.check("text=Hold it until it is released")
        assert accessibility(page) == []
        page.click("dialog[open] button:has-text('Queue and hold')")
        page.wait_for_selector(".toast >> text=Queued as jobs")
        page.wait_for_selector("#title:has-text('Home')")
    jobs = Store(studio.folder / ".state" / "queue").jobs()
    assert [(job.priority, job.held) for job in jobs] == [("high", True)] * 2
    rates = [Recipe.load(Path(job.folder) / "recipe.yaml").train.learning_rate for job in jobs]
    assert rates == [1e-4, 2e-4]


def test_what_does_not_fit_is_refused_with_what_would(browser, studio):
    plan = {
        "plan": {"device": "cuda", "processes": 2, "reasons": {}},
        "needs": [need("GPU A", 9_000_000_000, fits=True), need("GPU B", 30_000_000_000, fits=False)],
        "host_bytes": 0,
        "fits": False,
        "refusal": "GPU B: a training step needs 30.0 GB",
        "remedies": [
            {"change": "model.quantize: nf4", "tokens_per_second": 800.4, "needed_bytes": 8e9, "quality": "0.1 %"}
        ],
        **dict.fromkeys(("speed", "training", "disk", "cost")),
        "alternatives": [],
        "left_out": {"GPU C": "too slow"},
    }
    answer = json.dumps({"plan": plan, "problem": None})
    with opened(browser, studio, "new?machine=a") as page:
        page.route("**/api/recipe/plan", lambda route: route.fulfill(body=answer, content_type="application/json"))
        page.fill(YAML, TEXT)
        page.wait_for_selector(".plan-pane .badge.bad:has-text('does not fit')")
        assert page.inner_text(".refusal") == plan["refusal"]
        limits = page.locator(".memory-line .limit").all()
        used = page.locator(".memory-line .used").all()
        ends = [sum(part.bounding_box()["width"] for part in one.locator("i").all()) for one in used]
        starts = [one.bounding_box()["x"] - box.bounding_box()["x"] for one, box in zip(limits, used)]
        assert ends[0] < starts[0] and ends[1] > starts[1]
        page.wait_for_selector("text=GPU C is left out: too slow")
        assert accessibility(page) == []
        page.click("[aria-label='Use model.quantize: nf4']")
        found = text_is(page, lambda text: "nf4" in text)
        assert yaml.safe_load(found) == yaml.safe_load(TEXT) | {"model": {"path": "model", "quantize": "nf4"}}
        assert found.startswith("# mine")


def test_only_the_newest_recipe_is_planned(browser, studio):
    with opened(browser, studio, "new?machine=a") as page:
        asked, ended = [], []
        page.on("requestfailed", lambda request: ended.append(request.url))
        page.route("**/api/recipe/plan", lambda route: asked.append(route.request.post_data_json))
        page.fill(YAML, TEXT)
        until(lambda: page.evaluate("1") and len(asked) == 1)
        page.wait_for_selector("text=planning…")
        page.fill(YAML, TEXT.replace("64", "32"))
        until(lambda: page.evaluate("1") and len(asked) == 2)
        assert [one["values"]["data"]["sequence_length"] for one in asked] == [64, 32]
        assert [url for url in ended if url.endswith("/api/recipe/plan")] != []
        page.unroute_all(behavior="ignoreErrors")


def need(name: str, needed: int, fits: bool) -> dict:
    """The memory of a process as `tunesmith plan --json` says it."""
    place = {"name": name, "free_bytes": 24_000_000_000, "kind": "cuda"}
    parts = {"weights": needed // 2, "activations": needed // 2}
    return {
        "place": place,
        "parts": parts,
        "stage": "loss",
        "needed_bytes": needed,
        "limit_bytes": 21_600_000_000,
        "fits": fits,
    }
