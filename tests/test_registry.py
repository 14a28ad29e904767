"""Registries find the files of a folder and the modules of installed packages alike."""

import pytest

from tunesmith.errors import UserError
from tunesmith.registry import Registry

FOLDERS = [
    ("tunesmith.data.formats", "tunesmith.formats", "alpaca"),
    ("tunesmith.methods", "tunesmith.methods", "sft"),
    ("tunesmith.export.forms", "tunesmith.export", "merged"),
]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Makes a package that adds a module under a name."""

    def install(group: str, name: str) -> None:
        (tmp_path / "stranger.py").write_text("HERE = True\n")
        facts = tmp_path / "stranger-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[{group}]\n{name} = stranger\n")
        monkeypatch.syspath_prepend(tmp_path)

    return install


@pytest.mark.parametrize(("package", "group", "own"), FOLDERS)
def test_a_package_adds_to_a_folder(installed, package, group, own):
    installed(group, "strange")
    registry = Registry(package, group)
    assert registry["strange"].HERE and own in registry and "strange" in list(registry)
    assert not [name for name in registry if name.startswith("_")] and "unheard" not in registry


@pytest.mark.parametrize(("package", "group", "own"), FOLDERS)
def test_a_name_that_exists_already_is_refused(installed, package, group, own):
    installed(group, own)
    with pytest.raises(UserError, match=f"the installed package stranger adds {own}, which is built in"):
        Registry(package, group)["anything"]
