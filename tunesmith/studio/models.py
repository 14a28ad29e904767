"""The models on this machine: bases in the hub's cache, in folders and in GGUF files, results of runs and exports."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from tunesmith import leases, recipe_text
from tunesmith.errors import UserError
from tunesmith.files import cache_folder, read_json
from tunesmith.jobs.deletion import Deletion, remove_stale, set_aside
from tunesmith.run import Run
from tunesmith.serve import registry
from tunesmith.serve.registry import Entry
from tunesmith.studio.catalogue import id_of
from tunesmith.studio.downloads import downloads
from tunesmith.studio.model_facts import Facts, facts_of_folder, facts_of_gguf
from tunesmith.studio.state import Studio

# The files of a model's folder. Others there are not Tunesmith's to delete.
PATTERNS = """*.safetensors *.safetensors.index.json config.json generation_config.json adapter_config.json
tokenizer* vocab.json vocab.txt merges.txt special_tokens_map.json added_tokens.json chat_template* *.jinja *.tiktoken
preprocessor_config.json processor_config.json README.md LICEN[CS]E* NOTICE* *POLICY* .gitattributes""".split()
WEIGHTS = ("*.safetensors", "*.gguf")
NAMES_SHOWN = 3

Kind = Literal["hub", "folder", "adapter", "gguf", "unpacked", "result", "export"]


class Use(BaseModel):
    """Who needs a model."""

    kind: Literal["run", "process", "server"]
    name: str
    run: str | None
    """The id of the run."""


class ServedAs(BaseModel):
    """Where a model can be asked."""

    server: str
    """The server's id."""
    model: str
    """Its name there."""


class ModelRow(BaseModel):
    """A model on this machine."""

    id: str
    name: str
    path: str
    """As recipes and commands name it."""
    kind: Kind
    """hub: in the hub's cache; unpacked: made from a GGUF file, in Tunesmith's cache; result: of a run."""
    bytes: int
    is_complete: bool
    """Whether it has weights."""
    modified: float
    """Unix seconds."""
    licence: str | None
    architecture: str | None
    context: int | None
    """Most tokens."""
    quantized: str | None
    """How its weights are stored, if they are quantised."""
    base: str | None
    """The model or run that it was made from."""
    run: str | None
    """The id of the run that made it."""
    used_by: list[Use]
    served: ServedAs | None
    """The first server that has it."""


@dataclass(frozen=True)
class Found:
    """A model, before it is described."""

    kind: Kind
    place: Path
    """The file or folder. Of the hub's cache: that of the repository."""
    name: str
    path: str
    folder: Path
    """The one with its config.json; of a GGUF file: the file."""
    run: Run | None = None

    @property
    def id(self) -> str:
        return id_of(self.place)


def rows(studio: Studio) -> list[ModelRow]:
    """All models, by kind and name."""
    uses = list(_uses(studio))
    servers = [(entry, _asked(studio, entry)) for entry in registry.entries() if entry.state == "ready"]
    return [_row(found, uses, servers) for found in sorted(_all(studio), key=lambda found: (found.kind, found.name))]


def deletion_of(studio: Studio, name: str) -> Deletion:
    """The outcome of deleting the model with this id. Raises UserError if there is none."""
    found = _find(studio, name)
    files = _files(found)
    kept = []
    if found.kind in ("folder", "adapter"):
        kept = sorted(entry.name for entry in found.place.iterdir() if entry not in files)
    return Deletion(sum(map(_bytes, files)), _needed(found, _uses(studio)), kept)


def delete(studio: Studio, name: str) -> Deletion:
    """Deletes the files of a model, and its folder if nothing else is in it. Raises UserError if something needs it,
    also if that starts meanwhile."""
    found, deletion = _find(studio, name), deletion_of(studio, name)
    is_whole = found.kind in ("hub", "unpacked", "export")  # Tunesmith or the hub's client wrote all that is there
    entries = [found.place] if is_whole else _files(found)
    try:
        _check(deletion.refusal, found)
        with set_aside(entries, folder := entries[0].parent):
            _check(_needed(found, _uses(studio)), found)
        remove_stale(folder)
        if found.kind == "unpacked":  # the folder above is named by the GGUF's content
            folder.rmdir()
        elif found.place.is_dir() and not deletion.kept and found.place not in studio.roots.folders:
            found.place.rmdir()
    except OSError as error:
        raise UserError(f"{found.name} cannot be deleted: {error.strerror}") from None
    return deletion


def _check(refusal: str, found: Found) -> None:
    if refusal:
        raise UserError(f"{found.name} is not deleted: {refusal}")


def _all(studio: Studio) -> Iterator[Found]:
    seen: set[Path] = set()
    for found in (*_of_runs(studio), *_of_hub(), *_unpacked(), *_of_roots(studio)):
        if found.place not in seen:
            seen.add(found.place)
            yield found


def _find(studio: Studio, name: str) -> Found:
    for found in _all(studio):
        if found.id == name:
            return found
    raise UserError(f"there is no model {name}; it may have been deleted")


def _of_runs(studio: Studio) -> Iterator[Found]:
    """Results, and the exports in the folders of runs."""
    for run in studio.runs:
        folder = run.folder.resolve()
        for name in ("adapter", "model"):
            if (folder / name).is_dir():
                path = studio.roots.shown(folder / name)
                yield Found("result", folder / name, run.name, path, folder / name, run)
        for record in folder.glob("*/parity.json"):
            place = record.parent
            name, path = f"{run.name} ({place.name})", studio.roots.shown(place)
            yield Found("export", place, name, path, next(place.glob("*.gguf"), place), run)


def _of_hub() -> Iterator[Found]:
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, ValueError, OSError):
        return
    for repository in repositories:
        revisions = sorted(repository.revisions, key=lambda revision: -revision.last_modified)
        if repository.repo_type == "model" and revisions:
            snapshots = [revision.snapshot_path for revision in revisions]
            folder = next((path for path in snapshots if (path / "config.json").exists()), snapshots[0])
            yield Found("hub", repository.repo_path, repository.repo_id, repository.repo_id, folder)


def _unpacked() -> Iterator[Found]:
    for config in (cache_folder() / "gguf").glob("*/*/config.json"):
        folder = config.parent.resolve()
        yield Found("unpacked", folder, folder.name, str(folder), folder)


def _of_roots(studio: Studio) -> Iterator[Found]:
    for folder in studio.roots.walk():
        if Run(folder).exists:
            continue
        shown = studio.roots.shown
        for file in folder.glob("*.gguf"):
            if file.is_file() and not file.is_symlink() and not file.name.startswith("."):
                yield Found("gguf", file, file.name, shown(file), file)
        has_weights = any(folder.glob("*.safetensors"))
        if (folder / "adapter_config.json").is_file() and has_weights:
            yield Found("adapter", folder, folder.name, shown(folder), folder)
        elif (folder / "config.json").is_file() and has_weights:
            yield Found("folder", folder, folder.name, shown(folder), folder)


def _row(found: Found, uses: Iterable[tuple[Use, set[str]]], servers: Iterable[tuple[Entry, set[str]]]) -> ModelRow:
    facts: Facts = facts_of_gguf(found.folder) if found.folder.is_file() else facts_of_folder(found.folder)
    base = found.run.name if found.kind == "export" else facts.base
    return ModelRow(
        **facts._asdict() | {"base": base},
        id=found.id,
        name=found.name,
        path=found.path,
        kind=found.kind,
        bytes=sum(map(_bytes, _files(found))),
        is_complete=found.folder.is_file() or any(any(found.folder.glob(pattern)) for pattern in WEIGHTS),
        modified=found.place.stat().st_mtime,
        run=id_of(found.run.folder) if found.run else None,
        used_by=_users(found, uses),
        served=_served(found, servers),
    )


def _asked(studio: Studio, entry: Entry) -> set[str]:
    """The paths and hub ids of what a server was asked for, with the bases of runs."""
    return {name for path in entry.paths for name in _named(studio, path)}


def _served(found: Found, servers: Iterable[tuple[Entry, set[str]]]) -> ServedAs | None:
    """Where a model can be asked, under the name that `serve/open_models.py` gives it."""
    wanted, names = {str(found.folder), found.path}, {found.folder.name, found.folder.stem, "base"}
    if found.run:
        is_result = found.kind == "result"
        wanted = {str(found.run.folder.resolve())} if is_result else {str(found.place), str(found.folder)}
        names = {found.run.name if is_result else f"{found.run.name}-{found.place.name}"}
    for entry, asked in servers:
        for model in entry.models if asked & wanted else ():
            if model.name in names:
                return ServedAs(server=entry.id, model=model.name)
    return None


def _files(found: Found) -> list[Path]:
    """The files that are the model's."""
    place = found.place
    if place.is_file():
        return [place]
    if found.kind in ("hub", "unpacked", "export"):
        return [file for file in place.rglob("*") if file.is_symlink() or file.is_file()]
    return sorted({file for pattern in PATTERNS for file in place.glob(pattern) if not file.is_dir()})


def _bytes(file: Path) -> int:
    with suppress(OSError):
        return file.lstat().st_size
    return 0


def _uses(studio: Studio) -> Iterator[tuple[Use, set[str]]]:
    """Everything that needs models, with the paths and hub ids that it names."""
    for run in studio.runs:
        yield Use(kind="run", name=run.name, run=id_of(run.folder)), _bases(studio, run)
    for holder in leases.holders():
        if holder.folder:
            yield Use(kind="process", name=f"{holder.use} ({holder.pid})", run=None), _named(studio, holder.folder)
    for server in registry.entries():
        named = {name for path in server.paths for name in _named(studio, path)}
        bases = {name for model in server.models for name in _named(studio, model.base)}
        yield Use(kind="server", name=f"the server at {server.url}", run=None), named | bases


def _named(studio: Studio, path: str) -> set[str]:
    """The names that a path of a process stands for: itself, and the base of the run that it is."""
    run = Run(path)
    return {path, _resolved(studio, path)} | (_bases(studio, run) if run.exists else set())


def _bases(studio: Studio, run: Run) -> set[str]:
    """The bases that the plan and the recipe of a run name, as paths and hub ids."""
    stamps = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in (run.recipe_file, run.plan_file))
    named = _named_bases(run.folder, stamps)
    return {*named, *(_resolved(studio, name) for name in named)}


@lru_cache(4096)
def _named_bases(folder: Path, stamps: tuple) -> tuple[str, ...]:
    """They may be of another version, so that only these keys are read."""
    run = Run(folder)
    found: list[Any] = []
    with suppress(UserError, KeyError, TypeError, OSError):
        found.append(recipe_text.read(run.recipe_file)["model"]["path"])
    with suppress(UserError, KeyError, TypeError, OSError):
        found.append(read_json(run.plan_file)["base"])
    return tuple(filter(None, map(str, found)))


def _resolved(studio: Studio, path: str) -> str:
    with suppress(OSError, RuntimeError, ValueError):
        return str((studio.folder / Path(path).expanduser()).resolve())
    return path


def _users(found: Found, uses: Iterable[tuple[Use, set[str]]]) -> list[Use]:
    own = {found.path} if found.kind == "hub" else set()
    return [use for use, names in uses if any(name in own or Path(name).is_relative_to(found.place) for name in names)]


def _needed(found: Found, uses: Iterable[tuple[Use, set[str]]]) -> str:
    """Why a model cannot be deleted; empty if it can."""
    if found.kind == "result":
        return f"it is the result of the run {found.name}; delete the run"
    if found.run and found.run.is_held:
        return f"a process works on the run {found.run.name}; stop that first"
    if found.kind == "hub" and any(one.model == found.name and one.state == "running" for one in downloads()):
        return "it is being downloaded; stop that first"
    users = _users(found, uses)
    if processes := [use.name for use in users if use.kind != "run"]:
        return f"{processes[0]} uses it; stop that first"
    runs = [use.name for use in users]
    further = f" and {len(runs) - NAMES_SHOWN} more" if len(runs) > NAMES_SHOWN else ""
    return f"it is the base of {', '.join(runs[:NAMES_SHOWN])}{further}; delete these runs first" if runs else ""
