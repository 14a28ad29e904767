"""Deletes a run: only files that Tunesmith wrote, and never a run that something still needs."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith import leases, recipe_text
from tunesmith.errors import UserError
from tunesmith.jobs.state import ENDED, status_of
from tunesmith.jobs.store import Store
from tunesmith.run import Run

ASIDE = ".deleting"  # the ending of a hidden folder of what is being deleted
STALE_SECONDS = 600.0  # a folder of that kind is left by a process that was killed


@dataclass(frozen=True)
class Deletion:
    """The outcome of deleting a run, before or after it."""

    bytes: int
    """The disk space that it frees."""
    refusal: str = ""
    """Why it is not done; empty if it may be."""
    kept: list[str] = field(default_factory=list)
    """Files and folders in the run's folder that Tunesmith did not write. They stay."""


def deletion_of(store: Store, run: Run, runs: Callable[[], Iterable[Run]]) -> Deletion:
    """Looks what deleting a run would do. `runs`: returns all that are known, any of which may need this one."""
    own = set(_own(run))
    kept = sorted(entry.name for entry in run.folder.iterdir() if entry not in own)
    in_use = "a process works on it; stop that first" if run.is_held else ""
    return Deletion(sum(map(_bytes, own)), in_use or _needed(store, run, runs), kept)


def delete(store: Store, run: Run, runs: Callable[[], Iterable[Run]]) -> Deletion:
    """Deletes a run's files, and its folder if nothing else is in it. Raises UserError if something needs it, also if
    that starts meanwhile."""
    found = deletion_of(store, run, runs)
    if found.refusal:
        raise UserError(f"{run.folder} is not deleted: {found.refusal}")
    # These make a folder a run, and go last: after a deletion that was killed, the rest can be deleted.
    last = (run.checkpoints, run.recipe_file, run.lock_file)
    with run.held():
        own = list(_own(run))
        with set_aside((entry for entry in own if entry not in last), run.folder):
            if refusal := _needed(store, run, runs):
                raise UserError(f"{run.folder} is not deleted: {refusal}")
        for entry in sorted(set(last) & set(own), key=last.index):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    if not found.kept:
        run.folder.rmdir()
    for job in store.jobs():
        if job.folder == str(run.folder.absolute()):
            store.remove(job.id)
    return found


@contextmanager
def set_aside(entries: Iterable[Path], folder: Path) -> Iterator[None]:
    """Moves files and folders to a hidden place in a folder of their disk, where no process that starts now finds them.
    They are deleted when the block ends, and moved back if it raises. So the block finds all that use them."""
    place = folder / f".{os.urandom(8).hex()}{ASIDE}"
    place.mkdir()
    moved: list[tuple[Path, Path]] = []
    try:
        for number, entry in enumerate(entries):
            entry.rename(place / str(number))
            moved.append((entry, place / str(number)))
        yield
    except BaseException:
        for entry, new in reversed(moved):
            if not os.path.lexists(entry):  # else another process has made a new one meanwhile
                new.rename(entry)
        shutil.rmtree(place)
        raise
    shutil.rmtree(place)


def remove_stale(folder: Path) -> None:
    """Removes what deletions left in a folder whose processes were killed."""
    for place in folder.glob(f".*{ASIDE}"):
        if time.time() - place.stat().st_ctime > STALE_SECONDS:
            shutil.rmtree(place)


def _own(run: Run) -> Iterator[Path]:
    """The files and folders in a run's folder that Tunesmith wrote."""
    written = {value for value in vars(run).values() if isinstance(value, Path)} - {run.folder}
    for entry in run.folder.iterdir():
        is_export = entry.is_dir() and (entry / "parity.json").exists()
        is_known = entry.name in ("adapter", "model", "trackers", ".result.tmp") or entry.name.endswith(ASIDE)
        if entry in written or is_export or is_known:
            yield entry


def _needed(store: Store, run: Run, runs: Callable[[], Iterable[Run]]) -> str:
    """Who needs a run; empty if it can be deleted."""
    folder = run.folder.resolve()
    for job in store.jobs():
        if Path(job.folder).resolve() == folder and status_of(store, job).state not in ENDED:
            return f"job {job.id} of the queue needs it; cancel that first"
    for holder in leases.holders():
        if holder.folder and Path(holder.folder).resolve().is_relative_to(folder):
            return f"process {holder.pid} uses it ({holder.use}); stop that first"
    for other in runs():
        if other.folder.resolve() != folder and _base(other).is_relative_to(folder):
            return f"it is the base of the run {other.name}"
    return ""


def _base(run: Run) -> Path:
    """The base model's folder of a run. Its recipe may be of another version, so only this key is read."""
    try:
        return Path(recipe_text.read(run.recipe_file)["model"]["path"]).resolve()
    except (UserError, KeyError, TypeError):
        return Path("/")


def _bytes(entry: Path) -> int:
    if entry.is_symlink() or not entry.is_dir():
        return entry.lstat().st_size
    return sum(file.lstat().st_size for file in entry.rglob("*") if not file.is_dir())
