"""Registries find the files of a folder and the modules of installed packages alike."""

import pytest

from tunesmith.errors import UserError
from tunesmith.registry import Registry

FOLDERS = [
    ("tunesmith.data.formats", "tunesmith.formats", "alpaca"),
    ("tunesmith.methods", "tunesmith.methods", "sft"),
    ("tunesmith.export.forms", "tunesmith.export", "merged"),
    ("tunesmith.trackers", "tunesmith.trackers", "wandb"),
    ("tunesmith.answer_formats.formats", "tunesmith.answer_formats", "harmony"),
    ("tunesmith.answer_formats.markups", "tunesmith.tool_markups", "json_calls"),
]


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


def test_a_package_that_does_not_load_is_named(installed):
    installed("tunesmith.export", "strange", "import nothing_of_that_name\n")
    with pytest.raises(
        UserError, match="strange of the installed package stranger does not load .*nothing_of_that_name"
    ):
        Registry("tunesmith.export.forms", "tunesmith.export")["strange"]
