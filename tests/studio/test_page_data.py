"""The data view: a file is uploaded or picked, and its rows are shown as a tiny model sees them."""

import json

import pytest

from tests import tiny
from tests.browser import needs_browser
from tests.conftest import write_rows
from tests.data.test_hub import hub_of
from tests.studio.pages import accessibility, opened, studio_in, until
from tunesmith.data.rows import Chat
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.methods import Method, sft

pytestmark = needs_browser
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": f"It is {number}." + " Indeed." * number},
        ]
    }
    for number in range(1, 31)
]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    tiny.save("qwen3", folder / "model")
    write_rows(folder / "rows.jsonl", ROWS)
    with (folder / "rows.jsonl").open("a") as lines:
        lines.write("{broken\n")
    (folder / "outside.bin").write_bytes(b"x")
    with studio_in(folder) as started:
        yield started


def test_a_picked_file_is_shown_as_the_model_sees_it(browser, studio):
    with opened(browser, studio, "data") as page:
        page.click(".file-list button:has-text('rows.jsonl')")
        page.wait_for_selector("#title:has-text('rows.jsonl')")
        page.wait_for_selector(".data-report >> text=broken json")
        assert page.locator(".data-report code").all_inner_texts() == ["rows.jsonl:31"]
        page.wait_for_selector(".turn-text >> text=It is 3.")
        assert page.locator(".data-rows mark").count() == 0

        page.fill("#data-model", "model")
        page.press("#data-model", "Enter")
        page.wait_for_selector(".data-rows mark")
        page.wait_for_selector(".histogram [role=img]")
        learned = page.locator(".data-row").first.locator("mark").inner_text()
        assert "It is 1. Indeed." in learned and "What is" not in learned
        decoration = "getComputedStyle(document.querySelector('.data-rows mark')).textDecorationLine"
        assert page.evaluate(decoration) == "underline"
        counts = page.locator(".histogram .count").all_inner_texts()
        assert sum(int(count) for count in counts) == len(ROWS)
        assert accessibility(page) == []

        page.get_by_role("radio", name="everything").check()
        until(lambda: "What is" in page.locator(".data-row").first.locator("mark").first.inner_text())
        assert "mask=all" in page.url and "model=model" in page.url
        with page.expect_navigation(url="**/#/new?*"):
            page.click("text=Use in a new run")
        page.wait_for_selector("[data-key='data.train'] input[value='rows.jsonl']")
        assert page.input_value("[data-key='model.path'] input") == "model"


def test_rows_are_shown_token_by_token(browser, studio):
    text = "Köln 🌊 " + "and so on " * 400
    turns = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": text}]
    write_rows(studio.folder / "long.jsonl", [{"messages": turns}])
    tokenizer = Tokenizer.load(tiny.save("llama3", studio.folder / "llama"))
    [example] = Method(sft.Settings()).encode(tokenizer, Chat(turns))[0]
    with opened(browser, studio, "data?file=long.jsonl&model=llama") as page:
        page.wait_for_selector(".tokens mark")
        page.get_by_role("radio", name="tokens").check()
        tokens = page.locator(".tokens.single > *")
        assert tokens.count() == 300
        page.hover(".tokens.single > :nth-child(5)")
        page.wait_for_selector(f".token-facts:text-is('Token 5: id {example.ids[4]}, only read')")
        first = example.supervised.index(True)
        page.mouse.move(0, 0)  # else it may be over another one after scrolling
        page.focus(".tokens.single")
        for _ in range(first - 4):
            page.keyboard.press("ArrowRight")
        page.wait_for_selector(f".token-facts:text-is('Token {first + 1}: id {example.ids[first]}, learned')")
        assert page.locator(".tokens.single > mark").count() == sum(example.supervised[:300])
        assert "▯" in page.inner_text(".tokens.single")  # the first token of 🌊
        page.click("text=Show more")
        assert tokens.count() == len(example.ids)
        shown = page.locator(".tokens.single").inner_text().replace("▯", "").replace("↵\n", "\n")
        assert shown == tokenizer.decode(example.ids)
        assert accessibility(page) == []


def test_all_sources_of_a_recipe_are_looked_at(browser, studio):
    write_rows(studio.folder / "more.jsonl", [{"question": f"q{number}", "answer": "a"} for number in range(3)])
    write_rows(studio.folder / "held.jsonl", ROWS[:2])
    data = {"train": ["rows.jsonl", {"path": "more.jsonl", "weight": 2}], "eval": "held.jsonl"}
    (studio.folder / "mixed.yaml").write_text(f"model: model\ndata: {json.dumps(data)}\n")
    with opened(browser, studio, "new") as page:
        page.click("button:text-is('Open')")
        page.click("dialog[open] >> text=mixed")
        page.click("[aria-label='Look at more.jsonl']")
        page.wait_for_selector(".data-rows .tokens:has-text('q2')")
        lines = page.locator("table[aria-label='Sources of the recipe'] tbody tr").all_inner_texts()
        cells = [line.split("\t") for line in lines]
        assert [cell[:4] for cell in cells] == [
            ["rows.jsonl", "training", "messages", "1"],
            ["more.jsonl", "training", "question_answer", "2"],
            ["Together", "training", "", ""],
            ["held.jsonl", "held out", "messages", ""],
        ]
        assert [cell[4:6] for cell in cells] == [["30", "1"], ["3", "0"], ["33", "1"], ["2", "0"]]
        counts = [int(cell[6].replace(",", "")) for cell in cells]
        assert counts[0] + counts[1] == counts[2]
        assert accessibility(page) == []
        page.click("text=held.jsonl")
        page.wait_for_selector(".data-rows .tokens:has-text('It is 2.')")
        assert page.locator(".data-row").count() == 2
        page.reload()
        page.wait_for_selector("[aria-current]:text-is('held.jsonl')")


def test_a_hub_dataset_is_read_only_when_asked(browser, studio, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with hub_of({"/datasets/org/sums": {"rows.jsonl": (studio.folder / "rows.jsonl").read_bytes()}}) as (url, asked):
        monkeypatch.setenv("HF_ENDPOINT", url)
        read_from_hub(browser, tmp_path, asked)


def read_from_hub(browser, folder, asked):
    with studio_in(folder) as online, opened(browser, online, "data") as page:
        page.fill("[aria-label=Path]", "hub:org/sums")
        page.press("[aria-label=Path]", "Enter")
        page.wait_for_selector("[role=alert]:has-text('hub:org/sums: not in the hub')")
        assert asked == [] and accessibility(page) == []
        page.click("text=Read from the hub")
        page.wait_for_selector(".turn-text >> text=What is 3?")
        assert "/datasets/org/sums/resolve/main/rows.jsonl" in asked
        asked.clear()
        page.reload()
        page.wait_for_selector(".turn-text >> text=What is 3?")
        assert asked == []


def test_rows_are_paged_and_searched(browser, studio):
    with opened(browser, studio, "data?file=rows.jsonl") as page:
        page.wait_for_selector(".turn-text >> text=What is 20?")
        page.click("text=Next")
        page.wait_for_selector(".turn-text >> text=What is 21?")
        page.wait_for_selector(".data-row.dropped")
        page.click(".pages >> text=Back")
        page.wait_for_selector(".turn-text >> text=What is 1?")
        page.fill("[aria-label='Search rows']", "what is 27")
        page.press("[aria-label='Search rows']", "Enter")
        until(lambda: page.locator(".data-row").count() == 1)
        assert page.locator(".data-row code").inner_text() == "rows.jsonl:27"
        page.reload()
        page.wait_for_selector(".turn-text >> text=What is 27?")
        assert page.locator(".data-row").count() == 1


def test_an_uploaded_file_is_opened(browser, studio):
    name = "../my rows.jsonl"
    content = "".join(json.dumps(row) + "\n" for row in ROWS[:3]).encode()
    with opened(browser, studio, "data") as page:
        page.set_input_files("input[type=file]", {"name": name, "mimeType": "text/plain", "buffer": content})
        page.wait_for_selector(".turn-text >> text=What is 3?")
        (place,) = (studio.folder / "uploads").glob("*my*rows*")
        assert place.read_bytes() == content
        assert page.inner_text("#title") == place.name


def test_a_dropped_file_is_uploaded(browser, studio):
    with opened(browser, studio, "data") as page:
        page.wait_for_selector(".drop")
        dropped = page.evaluate_handle(
            """(text) => {
            const data = new DataTransfer();
            data.items.add(new File([text], "dropped.jsonl"));
            return data;
        }""",
            json.dumps(ROWS[0]) + "\n",
        )
        page.dispatch_event(".drop", "dragover", {"dataTransfer": dropped})
        page.wait_for_selector(".drop.over")
        page.dispatch_event(".drop", "drop", {"dataTransfer": dropped})
        page.wait_for_selector("#title:has-text('dropped.jsonl')")
        assert json.loads((studio.folder / "uploads" / "dropped.jsonl").read_text()) == ROWS[0]


def test_a_refused_upload_says_why(browser, studio):
    with opened(browser, studio, "data") as page:
        page.wait_for_selector(".drop")
        message = "no room on the disk (1 MB free)"
        answer = json.dumps({"error": {"message": message}})
        page.route("**/api/uploads?*", lambda route: route.fulfill(status=507, body=answer))
        page.set_input_files("input[type=file]", {"name": "a.jsonl", "mimeType": "text/plain", "buffer": b"x"})
        page.wait_for_selector(f".drop [role=alert]:has-text('{message}')")
        assert accessibility(page) == []


def test_a_file_that_is_not_there_says_so(browser, studio):
    with opened(browser, studio, "data?file=none.jsonl") as page:
        page.wait_for_selector("[role=alert]:has-text('none.jsonl')")
