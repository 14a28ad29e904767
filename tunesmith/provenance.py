"""Where a run's result comes from: data and model by hash, packages, machine, code."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tunesmith.data.files import content_hash, files
from tunesmith.errors import UserError
from tunesmith.machine import Machine
from tunesmith.recipe import Recipe
from tunesmith.run import Run, read_json

PACKAGES = ("tunesmith", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pyarrow",
            "bitsandbytes")


def collect(recipe: Recipe, base: Path, machine: Machine) -> dict:
    """What provenance.json holds."""
    return {
        "data": _data(recipe),
        "base_model": {"path": str(base), "files": _model(base)},
        "packages": {name: _version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "machine": machine.as_dict(),
        "seed": recipe.seed,
        "git_commit": _git_commit(),
    }


def check_unchanged(run: Run) -> None:
    """Raises UserError if data or base model are no longer what the run began with."""
    before = read_json(run.provenance_file)
    for key, now, then in (("data", _data(run.recipe), before["data"]),
                           ("model.path", _model(run.base), before["base_model"]["files"])):
        changed = sorted(file for file in {*now, *then} if now.get(file) != then.get(file))
        if changed:
            raise UserError(f"{key}: {changed[0]} is not what it was when {run.folder} began, so it cannot go on; "
                            "put it back, or train anew")


def _data(recipe: Recipe) -> dict[str, str]:
    return {str(file): content_hash(file)
            for source in (*recipe.data.train, *recipe.data.eval) for file in files(source)}


def _model(base: Path) -> dict[str, str]:
    parts = sorted((*base.glob("*.safetensors"), base / "config.json", base / "tokenizer.json"))
    return {file.name: content_hash(file) for file in parts if file.exists()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Of Tunesmith's own checkout, if it runs from one."""
    asked = subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True,
                           text=True, check=False) if _has_git() else None
    return asked.stdout.strip() or None if asked else None


def _has_git() -> bool:
    from shutil import which

    return which("git") is not None
