"""Files that come from the browser's machine."""

import errno
import fcntl
import os
import shutil
import unicodedata
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from tunesmith.errors import UserError, is_disk_full
from tunesmith.files import open_file
from tunesmith.run import try_lock
from tunesmith.studio.roots import Roots
from tunesmith.studio.training_rows import PREFERRED, RIGHT
from tunesmith.units import size

FOLDER = "uploads"  # of the first root
PART = ".part"  # the ending of a file that is not complete
LEFT_FREE_BYTES = 2**30  # on the disk
PIECE_BYTES = 2**22  # written at a time
MOST_NAME_BYTES = 200  # file systems allow 255, and a number may be added
DEFAULT_NAME = "upload"
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what exFAT and others say


async def receive(roots: Roots, name: str, length: int | None, body: AsyncIterator[bytes], most_bytes: int) -> Path:
    """Writes a body of `length` bytes, if that is known, to the folder of uploads, and returns its path. Nothing is
    left of one that breaks off. Raises HTTPException 413, 499 or 507, or UserError."""
    folder = roots.folders[0] / FOLDER
    if folder.is_symlink():
        raise UserError(f"{FOLDER}: a link; the studio writes no files through links")
    folder.mkdir(exist_ok=True)
    _remove_stale(folder)
    _check_room(folder, length or 0, most_bytes)
    part = folder / f".{os.urandom(8).hex()}{PART}"
    try:
        with open(part, "xb") as file:
            try_lock(file, fcntl.LOCK_EX)  # so that others see that it is under way
            written, piece = 0, bytearray()
            async for chunk in body:
                piece += chunk
                if len(piece) >= PIECE_BYTES:
                    written += len(piece)
                    _check_room(folder, 0, most_bytes, written)
                    await run_in_threadpool(file.write, bytes(piece))
                    piece.clear()
            written += len(piece)
            _check_room(folder, 0, most_bytes, written)
            await run_in_threadpool(_finish, file, bytes(piece))
            if length is not None and written != length:
                raise HTTPException(400, f"{written:,} bytes came, not the {length:,} that were announced")
            return _named(part, folder, plain_name(name))
    except ClientDisconnect:
        raise HTTPException(499, "the client went away") from None
    except OSError as error:
        if is_disk_full(error):
            raise HTTPException(507, f"no room on the disk ({size(shutil.disk_usage(folder).free)} free)") from None
        raise UserError(f"{FOLDER}: cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def plain_name(name: str) -> str:
    """A file name made of what a browser says: without folders, hidden beginnings, and characters that hurt."""
    text = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode())
    text = text.replace("\\", "/").rpartition("/")[2]
    text = "".join(c if c.isalnum() or c in " .-_+()[]," else "_" for c in text).strip(" .")
    if not text.strip("_"):
        text = DEFAULT_NAME
    stem, dot, suffix = text.rpartition(".")
    if not dot or len(suffix.encode()) > MOST_NAME_BYTES // 4:
        stem, dot, suffix = text, "", ""
    short = stem.encode()[: MOST_NAME_BYTES - len((dot + suffix).encode())].decode(errors="ignore")
    return short.strip(" .") + dot + suffix or DEFAULT_NAME


def _check_room(folder: Path, coming: int, most_bytes: int, written: int = 0) -> None:
    if max(coming, written) > most_bytes:
        raise HTTPException(413, f"the file has more than {size(most_bytes)}; --upload-limit GB allows more")
    free = shutil.disk_usage(folder).free
    if free - coming < LEFT_FREE_BYTES:
        raise HTTPException(
            507, f"no room on the disk: {size(free)} free, of which the studio leaves {size(LEFT_FREE_BYTES)}"
        )


def _finish(file: IO[bytes], rest: bytes) -> None:
    file.write(rest)
    file.flush()
    os.fsync(file.fileno())


def _named(part: Path, folder: Path, name: str) -> Path:
    """Moves a complete file to its name, or to the first with a number that is free."""
    stem, dot, suffix = name.rpartition(".")
    stem, dot, suffix = (stem, dot, suffix) if stem else (name, "", "")
    for number in range(2 if name in (RIGHT, PREFERRED) else 1, 10**6):  # those grow, and are not the user's
        place = folder / (name if number == 1 else f"{stem}-{number}{dot}{suffix}")
        with suppress(FileExistsError):
            _give_name(part, place)
            return place
    raise UserError(f"{name}: too many files of this name in {FOLDER}")


def _give_name(part: Path, place: Path) -> None:
    """Gives a file another name, at which it is whole from the first moment on. Raises FileExistsError if another file
    has that."""
    try:
        os.link(part, place)  # a rename would replace the other file
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(place, os.O_CREAT | os.O_EXCL, 0o666))  # an empty file stays if the studio is killed here
        os.replace(part, place)


def _remove_stale(folder: Path) -> None:
    """Removes the parts of uploads that ended with their server."""
    for part in folder.glob(f".*{PART}"):
        with suppress(OSError), open_file(part) as file:
            if try_lock(file, fcntl.LOCK_SH):
                part.unlink()
