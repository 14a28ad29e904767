"""Writes the description of the studio's API, from which the page's types are made."""

import json
import sys
import tempfile
from pathlib import Path

from tunesmith.jobs.store import Store
from tunesmith.studio.app import make_app
from tunesmith.studio.catalogue import Catalogue
from tunesmith.studio.commands import Commands
from tunesmith.studio.roots import Roots
from tunesmith.studio.state import Studio


def description() -> str:
    """The API in the format of OpenAPI."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder / "queue")
        app = make_app(Studio(folder, store, Roots([folder]), Catalogue([], store), Commands(folder)))
        return json.dumps(app.openapi(), indent=1, sort_keys=True)


if __name__ == "__main__":
    sys.stdout.write(description())
