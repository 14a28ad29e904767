"""Files and folders are written atomically."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tunesmith.files import replaced, write_atomic


@pytest.mark.parametrize("is_folder", [False, True])
def test_readers_see_the_old_or_the_new_one(tmp_path, is_folder):
    target = tmp_path / "target"

    def write(at, text):
        if is_folder:
            at.mkdir()
        (at / "file" if is_folder else at).write_text(text)

    def text() -> str:
        return (target / "file" if is_folder else target).read_text()

    with replaced(target) as draft:
        write(draft, "old")
        assert not target.exists()
    assert text() == "old"

    def fail():
        with replaced(target) as draft:
            write(draft, "half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert text() == "old" and list(tmp_path.iterdir()) == [target]
    with replaced(target) as draft:
        write(draft, "new")
        assert text() == "old"
    assert text() == "new" and list(tmp_path.iterdir()) == [target]


def test_a_draft_may_be_moved_elsewhere(tmp_path):
    with replaced(tmp_path / "target") as draft:
        draft.mkdir()
        draft.rename(tmp_path / "failed")
    assert [path.name for path in tmp_path.iterdir()] == ["failed"]


def test_text_is_written_whole(tmp_path):
    write_atomic(tmp_path / "a.txt", "ä")
    assert (tmp_path / "a.txt").read_bytes() == "ä".encode()


def test_threads_that_write_one_file_do_not_mix(tmp_path):
    with replaced(tmp_path / "file") as draft, ThreadPoolExecutor(1) as pool:
        draft.write_text("half")
        pool.submit(write_atomic, tmp_path / "file", "of another").result()
        assert draft.read_text() == "half" and (tmp_path / "file").read_text() == "of another"
