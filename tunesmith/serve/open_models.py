"""Opens runs, model folders and GGUF files for serving. Models with the same base share one copy of its weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.files import read_json
from tunesmith.finetune.prepared import Prepared
from tunesmith.finetune.result import base_model, require_result, trained_model
from tunesmith.inference.gguf_tokenizer import GgufTokenizer
from tunesmith.inference.interface import Served
from tunesmith.inference.llama_model import LlamaWeights, is_adapter
from tunesmith.inference.transformers_model import TorchWeights
from tunesmith.model.load import eos_ids, load, resolve
from tunesmith.model.spread import needs_host
from tunesmith.recipe import Model
from tunesmith.run import Run


def open_base(prepared: Prepared, name: str, context: int | None = None) -> Served:
    """Opens a run's base. Raises UserError."""
    run = prepared.run
    weights = TorchWeights.opened(base_model(run))
    return Served(
        name,
        "base",
        name,
        prepared.tokenizer,
        frozenset(run.plan.stop_ids),
        defaults_of(run.base),
        context_of(name, weights.context, context),
        weights,
    )


def open_tuned(prepared: Prepared, base: Served | None, context: int | None = None) -> Served:
    """Opens a run's result. An adapter is added to the weights of `base`; a full fine-tune has weights of its own, and
    needs no base. Raises UserError if the run has no result yet."""
    run = prepared.run
    require_result(run)
    if run.recipe.adapter.kind == "full":
        weights, adapter = TorchWeights.opened(trained_model(run)), None
    else:
        weights = base.weights
        adapter = weights.add(run.result)
    return Served(
        run.name,
        "tuned",
        base.name if base else run.base.name,
        prepared.tokenizer,
        frozenset(run.plan.stop_ids),
        defaults_of(run.result),
        context_of(run.name, weights.context, context),
        weights,
        adapter,
    )


def open_models(paths: Sequence[Path | str], context: int | None = None) -> dict[str, Served]:
    """Opens runs, model folders (or hub ids) and GGUF files. Returns {name: model} in order, tuned models before their
    base. A GGUF adapter belongs to the GGUF before it. `context` (tokens) lowers the models' own limits. Raises
    UserError."""
    files = [Path(path) for path in paths if Path(path).suffix == ".gguf"]
    runs = [Run(path) for path in paths if Run(path).exists]
    folders = [resolve(Model(path=str(path))) for path in paths if Path(path) not in files and not Run(path).exists]
    bases: dict[tuple, Served] = {}
    served: list[Served] = []
    alone = not folders and not files and len(set(map(_base_key, runs))) == 1
    for run in runs:
        served += _open_run(run, bases, "base" if alone else run.base.name, context)
    for folder in folders:
        if not any(key[:2] == (folder.resolve(), "none") for key in bases):
            served.append(_open_folder(folder, context))
    served += _open_files(files, context)
    return by_name(served)


def by_name(served: Sequence[Served]) -> dict[str, Served]:
    """Returns {name: model}. Raises UserError if two models have the same name."""
    names = [one.name for one in served]
    if len(set(names)) < len(names):
        raise UserError(
            f"two models have the same name ({', '.join(names)}); rename a run's folder or serve them separately"
        )
    return {one.name: one for one in served}


def _base_key(run: Run) -> tuple:
    """Returns a key that is equal for runs that can share one copy of the base."""
    model = run.recipe.model
    precision = run.plan.weights if run.recipe.adapter.kind == "lora" else run.plan.compute
    return run.base.resolve(), model.quantize, precision, tuple(model.new_tokens), model.initialize


def _open_run(run: Run, bases: dict[tuple, Served], base_name: str, context: int | None) -> list[Served]:
    require_result(run)  # before minutes of loading
    key, prepared, new = _base_key(run), Prepared.open(run), []
    if key not in bases:
        bases[key] = open_base(prepared, base_name, context)
        new = [bases[key]]
    return [open_tuned(prepared, bases[key], context), *new]


def _open_folder(folder: Path, context: int | None) -> Served:
    model = Model(path=str(folder))
    weights = TorchWeights.opened(load(model, folder, "auto", None, 0, needs_host(model, folder, "auto")))
    return replace(describe_folder(folder, weights.context, context), weights=weights)


def describe_folder(folder: Path, own: int | None, context: int | None) -> Served:
    """Describes a model folder without loading its weights. `own` is the model's context in tokens."""
    tokenizer = Tokenizer.load(folder)
    stops = frozenset({tokenizer.eos_id, *eos_ids(folder)} - {None})
    name, kind, base = _identity(folder)
    return Served(name, kind, base, tokenizer, stops, defaults_of(folder), context_of(name, own, context))


def _open_files(files: Sequence[Path], context: int | None) -> list[Served]:
    served: list[Served] = []
    base = None
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file")
        if not is_adapter(file):
            weights = LlamaWeights(file)
            (name, kind, base_name), stops = _identity(file), frozenset(weights.model.stop_ids)
            base = Served(
                name,
                kind,
                base_name,
                GgufTokenizer(weights.model),
                stops,
                {},
                context_of(name, weights.context, context),
                weights,
            )
            served.append(base)
        elif base is None:
            raise UserError(f"{file}: is an adapter; name the GGUF of its base before it")
        else:
            adapter = base.weights.add(file)
            tuned = replace(base, name=_identity(file)[0], kind="tuned", base=base.name, adapter=adapter)
            served.insert(served.index(base), tuned)
    return served


def _identity(path: Path) -> tuple[str, str, str]:
    """Returns (name, kind, base) of a model folder or file. The name of an export is made of its run's name and its
    form, because the exports of all runs have the same file names."""
    form = path.resolve() if path.is_dir() else path.resolve().parent
    run = Run(form.parent)
    if run.exists:
        return f"{run.name}-{form.name}", "tuned", run.base.name
    name = path.name if path.is_dir() else path.stem
    return name, "base", name


def context_of(name: str, own: int | None, requested: int | None) -> int:
    """Returns the context in tokens: the smaller of the model's own and the requested one. Raises UserError if both are
    unknown."""
    limits = [limit for limit in (own, requested) if limit]
    if not limits:
        raise UserError(f"{name}: its config has no max_position_embeddings; give --context")
    return min(limits)


def defaults_of(folder: Path) -> dict:
    """Returns the model's generation_config.json, or {}."""
    return read_json(folder / "generation_config.json") or {}
