"""Downloads of models. Each is a process of its own, which the studio need not outlive."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Literal

from pydantic import BaseModel

from tunesmith.errors import CHILD_DIED, UserError
from tunesmith.files import read_json, state_folder, write_json
from tunesmith.run import process_start, try_lock
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.commands import refuse_if_offline
from tunesmith.studio.download import OUTCOME
from tunesmith.studio.warm import python_path

STARTING = Lock()  # two requests for the same download start one process


class Download(BaseModel):
    """A download of a model."""

    id: str
    model: str
    """The hub id."""
    revision: str | None
    file: str | None
    """The one file of it that is wanted, if not the whole model."""
    state: Literal["running", "done", "failed", "stopped"]
    done_bytes: int
    total_bytes: int | None
    """None until the hub has said it."""
    error: str
    since: float
    """Unix seconds."""


class NewDownload(BaseModel):
    """A model of the hub to download."""

    model: str
    """org/name."""
    revision: str | None = None
    """Branch, tag or commit."""
    file: str | None = None
    """One file, such as a GGUF; None: the whole model, as training needs it."""


def downloads() -> list[Download]:
    """All that are known, the newest first."""
    found = [_described(file) for file in folder().glob("*.json")]
    return sorted(found, key=lambda one: -one.since)


def start(asked: NewDownload) -> Download:
    """Starts a download, or continues one that broke off. Raises UserError where nothing may be downloaded."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    refuse_if_offline()
    try:
        validate_repo_id(asked.model)
        if "/" not in asked.model:
            raise HFValidationError
    except HFValidationError:
        raise UserError(f"model: {asked.model!r} is not a hub id like org/name") from None
    if asked.file and not re.fullmatch(r"[\w./+-]+\.gguf", asked.file):
        raise UserError(f"file: {asked.file!r} is not the name of a .gguf file")
    file = _file(id_of(Path(f"/{asked.revision or ''}/{asked.file or ''}/{asked.model}")))
    with STARTING:
        return _started(file, asked)


def _started(file: Path, asked: NewDownload) -> Download:
    if file.exists() and (running := _described(file)).state == "running":
        return running
    file.parent.mkdir(parents=True, exist_ok=True)
    for ending in (OUTCOME, ".lock"):  # an earlier process that is about to end has the old lock
        file.with_suffix(ending).unlink(missing_ok=True)
    facts = {**asked.model_dump(), "since": time.time()}
    write_json(file, facts)
    with open(file.with_suffix(".lock"), "wb") as lock, open(file.with_suffix(".log"), "wb") as log:
        try_lock(lock, fcntl.LOCK_EX)  # the process inherits it, and it is free once that has ended
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tunesmith.studio.download", str(file)],
            env=os.environ | python_path(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )
    write_json(file, facts | {"pid": process.pid, "started": process_start(process.pid)})
    return _described(file)


def stop(name: str) -> Download:
    """Ends a download; what it has stays for the next one. Raises UserError if there is none."""
    file = _known(name)
    facts = read_json(file)
    if _is_running(file) and "pid" in facts and process_start(facts["pid"]) == facts["started"]:
        with suppress(ProcessLookupError):
            os.killpg(facts["pid"], signal.SIGKILL)
        write_json(file, facts | {"is_stopped": True})
    return _described(file)


def forget(name: str) -> None:
    """Removes a download that has ended from the list. Raises UserError if it runs, or there is none."""
    file = _known(name)
    if _described(file).state == "running":
        raise UserError("this download is under way; stop it first")
    for ending in (".json", OUTCOME, ".lock", ".log"):
        file.with_suffix(ending).unlink(missing_ok=True)


def _described(file: Path) -> Download:
    is_running = _is_running(file)  # before the outcome is read, which is written before it ends
    facts, outcome = read_json(file) or {}, read_json(file.with_suffix(OUTCOME)) or {}
    parts = outcome.get("files", [])
    total = sum(size or 0 for _, size in parts) if parts else None
    is_done = "folder" in outcome
    is_stopped = facts.get("is_stopped", False)
    return Download(
        id=file.stem,
        state="done" if is_done else "stopped" if is_stopped else "running" if is_running else "failed",
        done_bytes=total or 0 if is_done else sum(_size_here(facts["model"], blob) for blob, _ in parts),
        total_bytes=total,
        error="" if is_done or is_running or is_stopped else outcome.get("error", CHILD_DIED),
        **{name: facts[name] for name in ("model", "revision", "file", "since")},
    )


def _size_here(model: str, blob: str | None) -> int:
    """How much of a file is in the hub's cache."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "blobs"
    sizes = [0]
    for path in blobs.glob(f"{blob}*") if blob else ():
        with suppress(OSError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _is_running(file: Path) -> bool:
    lock = file.with_suffix(".lock")
    if not lock.exists():
        return False
    with lock.open("rb") as opened:
        return try_lock(opened, fcntl.LOCK_SH) is False


def _known(name: str) -> Path:
    file = next((file for file in folder().glob("*.json") if file.stem == name), None)
    if file is None:
        raise UserError(f"there is no download {name}")
    return file


def _file(name: str) -> Path:
    return folder() / f"{name}.json"


def folder() -> Path:
    """Where downloads are noted."""
    return state_folder() / "downloads"
