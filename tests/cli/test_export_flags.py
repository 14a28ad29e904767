"""The flags of `tunesmith export` follow from the settings of the forms, those of installed packages included."""

import json
import os
import re
import subprocess
import sys

import pytest

from tunesmith import train
from tunesmith.export.forms import FORMS
from tunesmith.export.settings import OF_FORMS

FORM = '''
"""A merged model with a text beside it."""
from typing import Annotated, Literal
from pydantic import Field
from tunesmith.recipe import Section

class Settings(Section):
    words: Annotated[int, Field(gt=0)] = 2
    """How many words."""
    loud: bool = False
    """Write them large."""
    greeting: list[str] = []
    """What to write."""
    precision: Literal["rough", "bf16"] = "rough"
    """How carefully."""

def write(run, folder, settings):
    from tunesmith.export.forms import merged
    merged.write(run, folder, merged.Settings())
    text = " ".join((settings.greeting * settings.words)[: settings.words])
    (folder / "greeting.txt").write_text(text.upper() if settings.loud else text)

def opened(run, folder, settings):
    from tunesmith.export.forms import merged
    return merged.opened(run, folder, merged.Settings())

def precision(run, settings):
    return "f32"
'''


def tunesmith(folder, *arguments) -> subprocess.CompletedProcess:
    """In a process that finds the packages installed in the folder."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "tunesmith", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )


def help_of(folder) -> dict[str, str]:
    """{flag: its help}, also of a flag's negative."""
    shown = tunesmith(folder, "export", "--help")
    assert shown.returncode == 0, shown.stderr
    lines = [line.strip("│ *") for line in shown.stdout.splitlines() if re.match(r"│[ *]*--", line)]
    return {line.split()[0]: line for line in lines}


def test_the_flags_take_values_to_a_strangers_form(installed, recipe, tmp_path):
    run = train(recipe("qwen3", train={"max_steps": 1})).folder
    installed("tunesmith.export", "greeted-model", FORM)
    flags = ("--words", "3", "--loud", "--greeting", "good", "--greeting", "day", "--precision", "rough")
    done = tunesmith(tmp_path, "export", run, "--to", "greeted-model", *flags, "--output", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"]
    assert found["settings"] == {"words": 3, "loud": True, "greeting": ["good", "day"], "precision": "rough"}
    assert (tmp_path / "out/greeting.txt").read_text() == "GOOD DAY GOOD"
    for arguments, said in (
        (("--to", "greeted-model", "--words", "many"), "`words` must be a whole number"),
        (
            ("--to", "merged", "--words", "3"),
            "--words: --to merged does not take it; forms that do: greeted-model",
        ),
    ):
        done = tunesmith(tmp_path, "export", run, *arguments)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_help_says_which_forms_take_a_flag(installed, tmp_path):
    shown = help_of(tmp_path)
    assert (
        "gguf, merged, ollama: " in shown["--into"]
        and "[choices: full, dequantised] [default: full]" in shown["--into"]
    )
    assert "gguf, ollama: " in shown["--precision"] and "q4_k_m" in shown["--precision"]
    assert "[default: bf16]" in shown["--precision"] and "[default: false]" in shown["--importance"]
    installed("tunesmith.export", "greeted-model", FORM)
    shown = help_of(tmp_path)
    assert "greeted-model: How many words." in shown["--words"] and "[default: 2]" in shown["--words"]
    assert "default" not in shown["--greeting"]
    for text in (
        "gguf, ollama: ",
        "(default: bf16)",
        "greeted-model: How carefully. (default: rough)",
        "rough",
        "q2_k",
    ):
        assert text in shown["--precision"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import absent_module", "strange of the installed package stranger does not load"),
        (FORM.replace("loud: bool", "into: bool"), "--into: the export forms gguf, merged, ollama, strange differ"),
        (FORM.replace("words:", "push:"), "the export form strange has a setting push"),
    ],
)
def test_a_strangers_form_that_does_not_fit_is_named(installed, tmp_path, source, said):
    installed("tunesmith.export", "strange", source)
    done = tunesmith(tmp_path, "export", "run", "--to", "gguf")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_our_own_forms_have_the_settings_that_help_shows():
    assert {name: FORMS[name].Settings for name in OF_FORMS} == OF_FORMS
