"""The parts that the studio's routes share. Everything that lasts is on the disk, as the studio may be killed at any
time."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.jobs.store import Store
from tunesmith.studio.catalogue import Catalogue
from tunesmith.studio.commands import Commands
from tunesmith.studio.gpus import Gpus
from tunesmith.studio.reports import Reports
from tunesmith.studio.roots import Roots


@dataclass(frozen=True)
class Studio:
    """The folders, the queue and the runs of one studio server."""

    folder: Path
    """Where it was started. Relative paths of recipes are meant from here."""
    store: Store
    """The queue."""
    roots: Roots
    """The folders whose files the page may see and use."""
    runs: Catalogue
    commands: Commands
    upload_bytes: int = 20 * 10**9
    """The most that one uploaded file may have."""
    gpus: Gpus = field(default_factory=Gpus)
    reports: Reports = field(default_factory=Reports)
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the server ends, so that open streams end too."""
