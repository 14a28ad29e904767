"""The model card: what a model is, where it comes from and what was measured."""

import json
from pathlib import Path
from typing import Any

import yaml

from tunesmith.files import read_json
from tunesmith.run import Run


def card(run: Run, to: str) -> str:
    """README.md of an export, with the front matter that the hub reads."""
    recipe, provenance = run.recipe, read_json(run.provenance_file)
    is_local = Path(recipe.model.path).expanduser().is_dir()
    front: dict[str, Any] = {} if is_local else {"base_model": recipe.model.path}  # hub ids alone
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
                "`parity.json` holds how this export was compared with the trained model."
            ),
            "",
            *_measured(run),
            "## Where it comes from",
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
    found = read_json(run.eval_file)
    if not found:
        return []
    lines = ["## Measured on held-out rows", "", f"| of {found['rows']} rows | before | after |", "|---|---|---|"]
    for name in ("loss", "perplexity", "exact_match"):
        if name in found["after"]:
            before, after = (_value(found[when][name]) for when in ("before", "after"))
            lines.append(f"| {name.replace('_', ' ')} | {before} | {after} |")
    return [*lines, ""]


def _value(found: dict) -> str:
    return f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _table(title: str, values: dict) -> list[str]:
    rows = [f"| {name} | {value if isinstance(value, str) else json.dumps(value)} |" for name, value in values.items()]
    return [f"| {title} | |", "|---|---|", *rows, ""]
