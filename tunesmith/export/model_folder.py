"""Writes the files of a model folder other than its weights, so that other programs render the same prompts."""

import json
import shutil
from pathlib import Path

from tunesmith.model.tokenizer_files import change_templates, spell_for_both
from tunesmith.run import Run

OF_WEIGHTS = ("adapter_*", "README.md", "*.safetensors", "*.safetensors.index.json")


def copy_settings(run: Run, folder: Path, without: tuple[str, ...] = OF_WEIGHTS, fixed: bool = False) -> None:
    """Copies tokenizer, generation settings and chat templates of the run's result into the existing `folder`.

    If training rendered with template variables, such as `enable_thinking`, the templates set them as defaults, because
    users of the model do not know them. With `fixed`, a caller cannot change them.
    """
    shutil.copytree(run.result, folder, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)
    spell_for_both(folder)
    if first := beginning(run.plan.template_kwargs, fixed):
        change_templates(folder, lambda template: first + template)


def beginning(variables: dict, fixed: bool) -> str:
    """Returns Jinja that sets variables; unless `fixed`, only those that the caller does not set."""
    settings = {name: f"{{%- set {name} = {_literal(value)} -%}}" for name, value in variables.items()}
    if fixed:
        return "".join(settings.values())
    return "".join(f"{{%- if {name} is not defined -%}}{text}{{%- endif -%}}" for name, text in settings.items())


def _literal(value) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else json.dumps(value)
