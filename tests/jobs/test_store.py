"""The queue's file: order, wishes, several processes at once, versions."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.jobs.store import MIGRATIONS, Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "queue")


def order(store: Store) -> list[int]:
    return [job.id for job in store.jobs()]


def test_jobs_come_back_as_they_were_added(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = store.add("export", Path("run"), ["--to", "gguf"], priority="low", after=None, held=True, notify="say done")
    assert Store(store.folder).jobs() == [job]
    assert (job.folder, job.directory, job.arguments) == (str(tmp_path / "run"), str(tmp_path), ["--to", "gguf"])
    assert job.held is True and job.is_due is True and job.cancelled is False and job.notify == "say done"


def test_jobs_move(store):
    for _ in range(4):
        store.add("train", Path("run"))
    store.move(4, before=2)
    assert order(store) == [1, 4, 2, 3]
    store.move(3, before=1)
    assert order(store) == [3, 1, 4, 2]
    store.move(3, before=None)
    assert order(store) == [1, 4, 2, 3]
    for _ in range(60):  # ever closer to one another
        store.move(3, before=2)
        store.move(4, before=3)
    assert order(store) == [1, 4, 3, 2]
    store.change(2, priority="high")
    assert order(store) == [2, 1, 4, 3]


def test_a_removed_job_keeps_nobody_waiting_and_its_number_is_not_used_again(store):
    store.add("train", Path("run"))
    store.add("train", Path("run"), after=1)
    store.remove(1)
    assert store.job(2).after is None
    store.remove(2)
    assert store.add("train", Path("run")).id == 3


def test_wrong_numbers_are_mistakes_of_the_user(store):
    for ask in (lambda: store.job(7), lambda: store.move(7, None)):
        with pytest.raises(UserError, match="queue: there is no job 7"):
            ask()


def test_processes_add_jobs_at_once_and_none_is_lost(store):
    code = (
        "import sys; from pathlib import Path; from tunesmith.jobs.store import Store\n"
        "for n in range(25): Store(Path(sys.argv[1])).add('train', Path(f'{sys.argv[2]}-{n}'))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(store.folder), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    jobs = store.jobs()
    assert len({job.position for job in jobs}) == len({job.folder for job in jobs}) == 50


def test_a_newer_file_and_a_damaged_one_are_refused_and_left_alone(tmp_path):
    file = tmp_path / "queue.db"
    with sqlite3.connect(file) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(UserError, match="written by a newer Tunesmith"):
        Store(tmp_path)
    file.write_bytes(b"no database" * 100)
    with pytest.raises(UserError, match="move the file away"):
        Store(tmp_path)
    assert file.read_bytes() == b"no database" * 100


def test_a_file_of_every_earlier_version_is_brought_up_to_date(tmp_path):
    """An upgraded file has the tables of a new one."""

    def tables(folder: Path) -> set:
        with sqlite3.connect(folder / "queue.db") as connection:
            return {*connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")}

    Store(tmp_path / "new")
    for version in range(len(MIGRATIONS)):
        folder = tmp_path / str(version)
        folder.mkdir()
        with sqlite3.connect(folder / "queue.db") as connection:
            for statements in MIGRATIONS[:version]:
                connection.executescript(statements)
            connection.execute(f"PRAGMA user_version = {version}")
        Store(folder)
        assert tables(folder) == tables(tmp_path / "new")
