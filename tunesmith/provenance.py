"""Where a run's result comes from: data and model by hash, packages, machine, code."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tunesmith.data import read
from tunesmith.machine import Machine
from tunesmith.recipe import Recipe

PACKAGES = ("tunesmith", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pyarrow")


def collect(recipe: Recipe, base: Path, machine: Machine) -> dict:
    """What provenance.json holds."""
    sources = {f"{file}": read.content_hash(file)
               for source in (*recipe.data.train, *recipe.data.eval) for file in read.files(source)}
    weights = sorted((*base.glob("*.safetensors"), base / "config.json"))
    return {
        "data": sources,
        "base_model": {"path": str(base), "files": {f.name: read.content_hash(f) for f in weights}},
        "packages": {name: _version(name) for name in PACKAGES},
        "python": sys.version.split()[0],
        "machine": machine.as_dict(),
        "seed": recipe.seed,
        "git_commit": _git_commit(),
    }


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
