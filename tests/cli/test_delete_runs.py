"""`tunesmith runs delete`: says what it frees, asks, and deletes only what nothing needs."""

import io
import sys

import pytest

from tunesmith.cli.main import app
from tunesmith.errors import UserError
from tunesmith.run import Run


@pytest.fixture
def run(tmp_path, recipe, monkeypatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESMITH_STATE", str(tmp_path / "state"))
    made = Run.create(recipe(name="a", output=str(tmp_path / "runs")))
    (made.folder / "notes.txt").write_text("mine")
    return made


def delete(*flags: str) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["runs", "delete", "a", *flags])
    assert ended.value.code == 0


def test_it_deletes_after_a_yes_and_keeps_what_others_wrote(run, monkeypatch, capsys):
    for answer, is_there in (("no", True), ("", True), ("y", False)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer + "\n"))
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        delete()
        assert run.exists is is_there
        assert "stays, as Tunesmith did not write it: notes.txt" in capsys.readouterr().out
    assert [entry.name for entry in run.folder.iterdir()] == ["notes.txt"]


def test_no_question_is_asked_with_yes(run):
    delete("--yes")
    assert not run.exists


def test_without_a_terminal_or_where_the_run_is_needed_it_refuses(run):
    with pytest.raises(UserError, match="pass --yes"):
        app(["runs", "delete", "a"])
    with run.held(), pytest.raises(UserError, match="a process works on it"):
        app(["runs", "delete", "a", "--yes"])
    assert run.exists
