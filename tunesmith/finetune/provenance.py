"""Where a run's result comes from: data and model by hash, packages, machine, code."""

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tunesmith.data.files import content_hash
from tunesmith.data.source import Sources
from tunesmith.errors import UserError
from tunesmith.files import file_text, read_json
from tunesmith.inference.gguf_base import RECORD
from tunesmith.machine import Machine
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe
from tunesmith.run import Run

PACKAGES = (
    "tunesmith",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "bitsandbytes",
)
WITHOUT_EFFECT = ("name", "output", "trackers")  # on the result


def collect(run: Run, base: Path, machine: Machine, plan: Plan, sources: Sources) -> dict:
    """The content of provenance.json; `plan` is about to be written to plan.json."""
    recipe = run.recipe
    return {
        "recipe": recipe.model_dump(mode="json"),
        "plan": {run.plan_file.name: hashlib.sha256(file_text(plan.as_dict()).encode()).hexdigest()},
        "tokenizer": _hashes(run.tokenizer.iterdir()),
        "data": _data(sources),
        "base_model": {"path": str(base), "files": _model(base), "gguf": read_json(base / RECORD)},
        "packages": packages(),
        "python": sys.version.split()[0],
        "machine": machine.as_dict(),
        "seed": recipe.seed,
        "git_commit": _git_commit(),
    }


def check_unchanged(run: Run) -> None:
    """Raises UserError if anything that determines the result is no longer what the run began with."""
    before = read_json(run.provenance_file)
    recorded = before.get("recipe")
    then = Recipe.build(recorded).model_dump(mode="json") if recorded else {}  # with the keys of this version
    if key := _changed_key(then, run.recipe.model_dump(mode="json")):
        raise UserError(
            f"{run.recipe_file}: {key} is not what it was when {run.folder} began, so it cannot continue; "
            "undo the change, or start a new run with the new recipe"
        )
    for key, now, then in (
        ("plan", _hashes([run.plan_file]), before.get("plan")),
        ("tokenizer", _hashes(run.tokenizer.iterdir()), before.get("tokenizer")),
        ("data", _data(Sources.resolve(run.recipe.data)), before["data"]),
        ("model.path", _model(run.base), before["base_model"]["files"]),
    ):
        if then is None:  # a run that an earlier version of Tunesmith began
            continue
        changed = sorted(file for file in {*now, *then} if now.get(file) != then.get(file))
        if changed:
            raise UserError(
                f"{key}: {changed[0]} is not what it was when {run.folder} began, so it cannot continue; "
                "put it back, or start a new run"
            )


def packages() -> dict[str, str | None]:
    """The versions of the packages that decide about a result; None if one is missing."""
    return {name: _version(name) for name in PACKAGES}


def changed_packages(run: Run) -> list[str]:
    """A line for each package whose version is not that with which the run began."""
    before = read_json(run.provenance_file)["packages"]
    return [
        f"{name} was {then} when the run began and is {now} now: losses may differ in their last digits"
        for name, then in before.items()
        if (now := _version(name)) != then
    ]


def _changed_key(then: dict, now: dict) -> str | None:
    """The first key whose value differs, dotted. Those that a later version of Tunesmith adds are not in `then`."""
    for key, value in then.items():
        if isinstance(value, dict) and isinstance(now.get(key), dict):
            if inner := _changed_key(value, now[key]):
                return f"{key}.{inner}"
        elif key not in WITHOUT_EFFECT and now.get(key) != value:
            return key
    return None


def _data(sources: Sources) -> dict[str, str]:
    return {file: digest for source in sources.all for file, digest in source.hashes.items()}


def _model(base: Path) -> dict[str, str]:
    return _hashes([*base.glob("*.safetensors"), *base.glob("*.json")])


def _hashes(files: Iterable[Path]) -> dict[str, str]:
    return {file.name: content_hash(file) for file in sorted(files)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Returns the commit of Tunesmith's checkout, or None if it does not run from one."""
    asked = (
        subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        if _has_git()
        else None
    )
    return asked.stdout.strip() or None if asked else None


def _has_git() -> bool:
    from shutil import which

    return which("git") is not None
