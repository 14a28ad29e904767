"""Data as the page shows it, from the commands that the terminal has."""

import json

import pytest
from huggingface_hub import constants

from tests.conftest import sums, write_rows
from tests.data.test_hub import README, hub_of


def test_rows_and_report_of_a_recipe(client, studio, small):
    """With a row that is dropped, and one recipe for both."""
    write_rows(studio.folder / "d.jsonl", [*sums(3), {"messages": [{"role": "narrator", "content": "x"}]}])
    (page,) = client.post("/api/data/rows", json={"recipe": small, "limit": 4}).json()
    *good, bad = page["rows"]
    assert page["next"] == 4 and [row["kind"] for row in good] == ["chat"] * 3
    for row in good:
        learned = [segment["text"] for segment in row["examples"][0]["segments"] if segment["learned"]]
        assert len(learned) == 1 and row["turns"][1]["text"] in learned[0]
    assert bad["problem"] == "unknown role" and bad["where"] == "d.jsonl:4"
    (report,) = client.post("/api/data/check", json={"recipe": small}).json()
    assert (report["read"], report["kept"], report["dropped"]) == (4, 3, {"unknown_role": 1})
    assert report["tokens"] == sum(row["examples"][0]["tokens"] for row in good)


def test_rows_of_a_file_without_a_model(client, studio):
    write_rows(studio.folder / "-x.jsonl", [{"q": f"Frage {n}", "a": "ja"} for n in range(30)])
    source = {"path": "-x.jsonl", "columns": {"question": "q", "answer": "a"}}
    (page,) = client.post("/api/data/rows", json={"source": source, "search": "FRAGE 2", "limit": 3}).json()
    assert [row["turns"][0]["text"] for row in page["rows"]] == ["Frage 2", "Frage 20", "Frage 21"]
    assert page["next"] == 22 and page["format"] == "question_answer" and page["rows"][0]["examples"] == []


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"source": "/etc/passwd"}, "`data.train.0.path`: /etc/passwd: outside the studio's folders"),
        ({"source": "~/x.jsonl"}, "write the whole path, without ~"),
        ({"source": "d.jsonl", "model": "../m"}, "`model.path`"),
        ({"source": "hub:a/b"}, "hub:a/b: not in the hub's cache on this machine"),
        ({"source": "hub:a"}, "hub:a: not in the hub's cache"),
        ({"source": "hub:a b/c"}, "hub:a b/c: not a hub dataset; write hub:org/name"),
        ({"source": "hub:a/b", "download": True}, "HF_HUB_OFFLINE is set, so nothing is downloaded"),
        ({"source": "hub:a/b", "model": "org/none", "download": True}, "not in the hub's cache; download it first"),
        ({"source": {"path": "d", "columns": {"a": "b,c"}}}, "need a recipe"),
        ({"recipe": {"model": "m"}}, "`data.train` is missing"),
        ({"source": {"path": "d", "split": "a\0"}}, "a character that no command takes"),
        ({}, "name a file"),
        ({"source": {"paht": "d"}}, "did you mean `data.train.0.path`"),
    ],
)
def test_what_is_refused_starts_no_process(client, monkeypatch, asked, message):
    monkeypatch.setattr("asyncio.create_subprocess_exec", None)
    answer = client.post("/api/data/check", json=asked)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_one_source_of_a_recipe(client, studio, small):
    """With the mixture's weights, and its held-out source last."""
    write_rows(studio.folder / "d.jsonl", sums(5))
    write_rows(studio.folder / "e.jsonl", [{"question": "q", "answer": "a"}])
    write_rows(studio.folder / "held.jsonl", [{"text": "plain"}, *sums(2)])
    sources: list = [{"path": "d.jsonl", "weight": 2}, "e.jsonl"]
    recipe = small | {"data": {"train": sources, "eval": "held.jsonl"}}
    reports = client.post("/api/data/check", json={"recipe": recipe}).json()
    assert [(one["path"], one["read"], one["kept"]) for one in reports] == [
        ("d.jsonl", 5, 5),
        ("e.jsonl", 1, 1),
        ("held.jsonl", 3, 2),
    ]
    (page,) = client.post("/api/data/rows", json={"recipe": recipe, "number": 3}).json()
    assert page["path"] == "held.jsonl" and [row["kind"] for row in page["rows"]] == ["", "chat", "chat"]


@pytest.fixture
def hub(tmp_path, monkeypatch) -> list[str]:
    """A hub that has the dataset org/sums. Returns the paths that it was asked for."""
    rows = "".join(json.dumps(row) + "\n" for row in sums(7)).encode()
    files = {"README.md": README, "sums/part.jsonl": rows, "script.py": b"exit()"}
    with hub_of({"/datasets/org/sums": files}) as (endpoint, asked):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        yield asked


def test_a_hub_dataset_is_downloaded_only_when_asked(client, studio, hub):
    body = {"source": {"path": "hub:org/sums", "subset": "sums"}}
    refused = client.post("/api/data/check", json=body)
    assert refused.status_code == 400 and hub == []
    assert refused.json()["error"]["message"] == "hub:org/sums: not in the hub's cache on this machine"
    (report,) = client.post("/api/data/check", json=body | {"download": True}).json()
    assert (report["read"], report["kept"], report["format"]) == (7, 7, "messages")
    assert any(path.endswith("sums/part.jsonl") for path in hub) and not any("script" in path for path in hub)
    hub.clear()
    assert client.post("/api/data/check", json=body).json() == [report]
    (page,) = client.post("/api/data/rows", json=body).json()
    assert len(page["rows"]) == 7 and page["rows"][0]["where"].endswith("sums/part.jsonl:1")
    assert hub == []  # what is in the cache needs no network


@pytest.mark.parametrize("name, endpoint", [("org/none", None), ("org/sums", "http://127.0.0.1:9")])
def test_a_hub_dataset_that_cannot_be_downloaded_is_one_line(client, studio, hub, monkeypatch, name, endpoint):
    if endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)  # nobody is there
    answer = client.post("/api/data/check", json={"source": f"hub:{name}", "download": True})
    message = answer.json()["error"]["message"]
    assert answer.status_code == 400 and message.startswith(f"hub:{name}: cannot download it from the hub: ")
    assert "\n" not in message and "Traceback" not in message
