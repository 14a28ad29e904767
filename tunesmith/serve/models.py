"""What is served: runs and model folders become names; names of one base share one copy of its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.inputs import tokenizer_of
from tunesmith.model.load import load, resolve
from tunesmith.recipe import Model
from tunesmith.result import require_result, trained_model
from tunesmith.run import Run, read_json


class Weights:
    """One copy of a model in memory, with any number of adapters on it."""

    def __init__(self, module):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = module.to(self.device).eval()
        self._adapters = len(getattr(module, "peft_config", ()))
        self._active = "default" if self._adapters else None

    @property
    def inner(self):
        """The model without PEFT around it; its layers still hold the adapters."""
        return self.module.get_base_model() if self._adapters else self.module

    def add(self, folder: Path) -> str:
        """Loads one more adapter; returns its name."""
        name = f"adapter{self._adapters}"
        self.module.load_adapter(str(folder), name, torch_device=str(self.device), autocast_adapter_dtype=False)
        self._adapters += 1
        return name

    def switch(self, adapter: str | None) -> None:
        """What the model computes from now on: with an adapter, or with None as its base."""
        if adapter == self._active:
            return
        if adapter is None:
            self.module.base_model.disable_adapter_layers()
        else:
            self.module.base_model.enable_adapter_layers()
            self.module.set_adapter(adapter, inference_mode=True)
        self._active = adapter


@dataclass(frozen=True)
class Served:
    """One name that requests may ask for. `kind` is tuned or base; `base` the name of its base; `defaults` are the
    model's own generation settings; `context` counts tokens, prompt and answer together."""

    name: str
    kind: str
    base: str
    weights: Weights
    adapter: str | None
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    defaults: dict
    context: int


def tuned_weights(run: Run) -> Weights:
    """A run's result. Raises UserError if there is none yet."""
    require_result(run)
    return Weights(trained_model(run))


def base_weights(run: Run, tuned: Weights) -> Weights:
    """The base model of a run: the same copy, to be switched to None, or loaded where no adapter tells them apart."""
    recipe = run.recipe
    if recipe.adapter.kind == "lora":
        return tuned
    return Weights(load(recipe.model, run.base, getattr(torch, run.plan["compute"]), None, recipe.seed))


def open_models(paths: Sequence[Path | str], context: int | None = None) -> dict[str, Served]:
    """The runs and model folders (or hub ids) as what is served, in order, each run before its base. `context` lowers
    the models' own. Raises UserError."""
    runs = [Run(path) for path in paths if Run(path).exists]
    folders = [resolve(Model(path=str(path))) for path in paths if not Run(path).exists]
    copies: dict[tuple, Served] = {}
    found: list[Served] = []
    alone = not folders and len({_copy_key(run) for run in runs}) == 1
    for run in runs:
        found += _open_run(run, copies, "base" if alone else run.base.name, context)
    for folder in folders:
        if not any(key[:2] == (folder.resolve(), "none") for key in copies):
            found.append(_open_folder(folder, context))
    names = [served.name for served in found]
    if len(set(names)) < len(names):
        raise UserError(f"two models have one name ({', '.join(names)}); rename a run's folder or serve them apart")
    return {served.name: served for served in found}


def _copy_key(run: Run) -> tuple:
    """Equal for runs whose results stand on one copy of the base's weights."""
    model, own = run.recipe.model, run.folder.resolve() if run.recipe.adapter.kind == "full" else None
    return run.base.resolve(), model.quantize, run.plan["weights"], tuple(model.new_tokens), own


def _open_run(run: Run, copies: dict[tuple, Served], base_name: str, context: int | None) -> list[Served]:
    key, tokenizer, stops = _copy_key(run), tokenizer_of(run), frozenset(run.plan["stop_ids"])
    if key in copies:
        weights = copies[key].weights
        adapter, base_name, new = weights.add(run.result), copies[key].name, []
    else:
        weights = tuned_weights(run)
        base = base_weights(run, weights)
        adapter = "default" if base is weights else None
        copies[key] = _served(base_name, "base", base_name, base, None, tokenizer, stops, run.base, context)
        new = [copies[key]]
    return [_served(run.name, "tuned", base_name, weights, adapter, tokenizer, stops, run.result, context), *new]


def _open_folder(folder: Path, context: int | None) -> Served:
    weights = Weights(load(Model(path=str(folder)), folder, "auto", None, 0))
    tokenizer = Tokenizer.load(folder)
    own = (read_json(folder / "generation_config.json") or {}).get("eos_token_id") or []
    stops = frozenset(own if isinstance(own, list) else [own]) | ({tokenizer.eos_id} - {None})
    return _served(folder.name, "base", folder.name, weights, None, tokenizer, stops, folder, context)


def _served(name, kind, base, weights, adapter, tokenizer, stops, folder: Path, context: int | None) -> Served:
    own = getattr(weights.inner.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (own, context) if limit]
    if not limits:
        raise UserError(f"{name}: its config has no max_position_embeddings; say --context")
    defaults = read_json(folder / "generation_config.json") or {}
    return Served(name, kind, base, weights, adapter, tokenizer, stops, defaults, min(limits))
