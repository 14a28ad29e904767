"""Writes the model card: the model's description, origin and measurements."""

import json
from pathlib import Path
from typing import Any

import yaml

from tunesmith.files import read_json
from tunesmith.run import Run


def card(run: Run, to: str) -> str:
    """Returns the README.md of an export, with the front matter that the hub reads. `to` is the export form."""
    recipe, provenance = run.recipe, read_json(run.provenance_file)
    is_local = Path(recipe.model.path).expanduser().is_dir()
    front: dict[str, Any] = {} if is_local else {"base_model": recipe.model.path}  # only hub ids
    front |= {
        "library_name": "peft" if to == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["tunesmith", recipe.method.name, recipe.adapter.kind],
    }
    files = {Path(file).name: digest for file, digest in provenance["data"].items()}
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {run.name}",
            "",
            (
                f"{recipe.model.path}, fine-tuned with Tunesmith ({recipe.method.name}, {recipe.adapter.kind}). "
                "`parity.json` shows how this export compares with the trained model."
            ),
            "",
            *_measured(run),
            "## Provenance",
            "",
            *_table("base model file", provenance["base_model"]["files"]),
            *_table("data file", files),
            *_table("package", provenance["packages"]),
            f"Seed {provenance['seed']}; Tunesmith's commit {provenance['git_commit'] or 'unknown'}.",
            "",
            "## Recipe",
            "",
            "```yaml",
            recipe.dump().strip(),
            "```",
            "",
        ]
    )


def _measured(run: Run) -> list[str]:
    evaluation = read_json(run.eval_file)
    if not evaluation:
        return []
    lines = ["## Measured on held-out rows", "", f"| of {evaluation['rows']} rows | before | after |", "|---|---|---|"]
    for name in ("loss", "perplexity", "exact_match"):
        if name in evaluation["after"]:
            before, after = (_value(evaluation[side][name]) for side in ("before", "after"))
            lines.append(f"| {name.replace('_', ' ')} | {before} | {after} |")
    return [*lines, ""]


def _value(measured: dict) -> str:
    return f"{measured['mean']:.3f} ({measured['low']:.3f} to {measured['high']:.3f})"


def _table(title: str, values: dict) -> list[str]:
    rows = [f"| {name} | {value if isinstance(value, str) else json.dumps(value)} |" for name, value in values.items()]
    return [f"| {title} | |", "|---|---|", *rows, ""]
