"""Runs are deleted while others start, and deletions are killed: nothing is lost that somebody uses."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.studio.killing import is_killed
from tunesmith.errors import UserError
from tunesmith.jobs import deletion
from tunesmith.leases import held
from tunesmith.run import Run, list_runs


def at_set_aside(monkeypatch, action) -> None:
    """Does something between the check of a deletion and the moment when files are moved."""
    make = Path.mkdir

    def mkdir(path: Path, *arguments, **settings) -> None:
        if path.name.endswith(deletion.ASIDE):
            monkeypatch.setattr(Path, "mkdir", make)
            action()
        make(path, *arguments, **settings)

    monkeypatch.setattr(Path, "mkdir", mkdir)


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def made(studio, recipe) -> Run:
    """A run with a result, an export and a checkpoint."""
    run = Run.create(recipe(name="a", output=str(studio.folder / "runs")))
    run.log("start", steps=1)
    for file in ("adapter/weights", "gguf/parity.json", "gguf/a.gguf", "checkpoints/step-1/weights", "notes.txt"):
        (run.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / file).write_text(file)
    return run


def delete(studio, run: Run) -> None:
    deletion.delete(studio.store, run, lambda: list_runs(studio.folder / "runs"))


@pytest.mark.parametrize("user", ["server", "base", "job"])
def test_who_starts_meanwhile_keeps_the_run(studio, made, recipe, monkeypatch, user):
    before = contents(made.folder)
    with ExitStack() as stack:

        def start() -> None:
            if user == "server":
                stack.enter_context(held(["cpu"], "serving", folder=made.folder / "gguf"))
            elif user == "base":
                Run.create(recipe(model={"path": str(made.result)}, name="b", output=str(studio.folder / "runs")))
            else:
                studio.store.add("export", made.folder)

        at_set_aside(monkeypatch, start)
        with pytest.raises(UserError, match="is not deleted: ") as refused:
            delete(studio, made)
        assert {"server": "(serving)", "base": "base of the run b", "job": "job 1"}[user] in str(refused.value)
    assert contents(made.folder) == before and made.exists


def test_no_process_works_on_a_run_that_is_being_deleted(studio, made, monkeypatch):
    seen = []
    at_set_aside(monkeypatch, lambda: seen.append(made.is_held))
    delete(studio, made)
    assert seen == [True] and os.listdir(made.folder) == ["notes.txt"]


def test_a_deletion_that_was_killed_anywhere_can_be_done_again(studio, made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "kept")
    operations = 0
    while is_killed(lambda: delete(studio, made), made.folder, operations):
        if made.exists:
            delete(studio, made)
        left = {entry.name for entry in made.folder.iterdir()} - {"recipe.yaml", ".lock"}  # of its last moment
        assert left == {"notes.txt"}
        shutil.rmtree(made.folder)
        shutil.copytree(tmp_path / "kept", made.folder)
        operations += 1
    assert operations > 10
