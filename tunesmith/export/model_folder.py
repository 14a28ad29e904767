"""What a model folder holds beside its weights, such that others make the same prompts as training did."""

import json
import shutil
from pathlib import Path

from tunesmith.model.tokenizer_files import change_templates, spell_for_both
from tunesmith.run import Run

OF_WEIGHTS = ("adapter_*", "README.md", "*.safetensors", "*.safetensors.index.json")


def copy_settings(run: Run, folder: Path, without: tuple[str, ...] = OF_WEIGHTS, fixed: bool = False) -> None:
    """Copies tokenizer, generation settings and chat templates of the run's result into `folder`, which exists.

    Where training rendered with variables of its own, such as `enable_thinking`, the templates get them as defaults, or
    `fixed`, whatever the caller says: those who use the model do not know them.
    """
    shutil.copytree(run.result, folder, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)
    spell_for_both(folder)
    if first := beginning(run.plan.template_kwargs, fixed):
        change_templates(folder, lambda template: first + template)


def beginning(variables: dict, fixed: bool) -> str:
    """Jinja that gives variables their values, unless `fixed` only where the caller does not."""
    found = {name: f"{{%- set {name} = {_literal(value)} -%}}" for name, value in variables.items()}
    if fixed:
        return "".join(found.values())
    return "".join(f"{{%- if {name} is not defined -%}}{text}{{%- endif -%}}" for name, text in found.items())


def _literal(value) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else json.dumps(value)
