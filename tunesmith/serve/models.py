"""What is served: runs and model folders become names; names of one base share one copy of its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.inputs import tokenizer_of
from tunesmith.model.load import eos_ids, load, resolve
from tunesmith.recipe import Model
from tunesmith.result import base_model, require_result, trained_model
from tunesmith.run import Run, read_json


class Weights:
    """One copy of a model in memory, with any number of adapters on it. `inner` is the model without PEFT around it;
    its layers still hold the adapters. `module` is what to call `generate` of."""

    def __init__(self, model):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.inner = self.module = model.to(self.device).eval()
        self._adapters = 0
        self._active: str | None = None

    def add(self, folder: Path) -> str:
        """Loads one more adapter; returns its name."""
        from peft import PeftModel

        name = f"adapter{self._adapters}"  # PEFT takes no dots, which names of runs may have
        if not self._adapters:
            self.module = PeftModel.from_pretrained(self.inner, folder, name, autocast_adapter_dtype=False)
            self.module.to(self.device).eval()
            self._active = name
        else:
            self.module.load_adapter(folder, name, torch_device=str(self.device), autocast_adapter_dtype=False)
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


def open_result(run: Run, base: Weights | None = None) -> tuple[Weights, str | None]:
    """A run's result as weights and the adapter to switch them to: an adapter stands on `base`, or on a copy loaded
    for it; a full fine-tune needs none. Raises UserError if there is no result yet."""
    require_result(run)
    if run.recipe.adapter.kind == "full":
        return Weights(trained_model(run)), None
    base = base or Weights(base_model(run))
    return base, base.add(run.result)


def open_models(paths: Sequence[Path | str], context: int | None = None) -> dict[str, Served]:
    """The runs and model folders (or hub ids) as what is served, in order, each run before its base. `context` lowers
    the models' own. Raises UserError."""
    runs = [Run(path) for path in paths if Run(path).exists]
    folders = [resolve(Model(path=str(path))) for path in paths if not Run(path).exists]
    bases: dict[tuple, Served] = {}
    found: list[Served] = []
    alone = not folders and len(set(map(_base_key, runs))) == 1
    for run in runs:
        found += _open_run(run, bases, "base" if alone else run.base.name, context)
    for folder in folders:
        if not any(key[:2] == (folder.resolve(), "none") for key in bases):
            found.append(_open_folder(folder, context))
    names = [served.name for served in found]
    if len(set(names)) < len(names):
        raise UserError(f"two models have one name ({', '.join(names)}); rename a run's folder or serve them apart")
    return {served.name: served for served in found}


def _base_key(run: Run) -> tuple:
    """Equal for runs whose base is one copy."""
    model = run.recipe.model
    precision = run.plan["weights" if run.recipe.adapter.kind == "lora" else "compute"]
    return run.base.resolve(), model.quantize, precision, tuple(model.new_tokens), model.initialize


def _open_run(run: Run, bases: dict[tuple, Served], base_name: str, context: int | None) -> list[Served]:
    key, tokenizer, stops = _base_key(run), tokenizer_of(run), frozenset(run.plan["stop_ids"])
    new = []
    if key not in bases:
        weights = Weights(base_model(run))
        bases[key] = _served(base_name, "base", base_name, weights, None, tokenizer, stops, run.base, context)
        new = [bases[key]]
    base = bases[key]
    weights, adapter = open_result(run, base.weights)
    return [_served(run.name, "tuned", base.name, weights, adapter, tokenizer, stops, run.result, context), *new]


def _open_folder(folder: Path, context: int | None) -> Served:
    weights = Weights(load(Model(path=str(folder)), folder, "auto", None, 0))
    tokenizer = Tokenizer.load(folder)
    stops = frozenset({tokenizer.eos_id, *eos_ids(folder)} - {None})
    return _served(folder.name, "base", folder.name, weights, None, tokenizer, stops, folder, context)


def _served(name, kind, base, weights, adapter, tokenizer, stops, folder: Path, context: int | None) -> Served:
    own = getattr(weights.inner.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (own, context) if limit]
    if not limits:
        raise UserError(f"{name}: its config has no max_position_embeddings; say --context")
    defaults = read_json(folder / "generation_config.json") or {}
    return Served(name, kind, base, weights, adapter, tokenizer, stops, defaults, min(limits))
