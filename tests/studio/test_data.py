"""Data as the page shows it, from the commands that the terminal has."""

import pytest

from tests.conftest import sums, write_rows


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
        ({"source": {"path": "hub:a/b"}, "model": "org/none"}, "not in the hub's cache; download it first"),
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
