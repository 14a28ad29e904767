"""Corrects predicted speeds by those that earlier runs reached.

A run keeps the ratio of its measured and its predicted speed in `speeds.json` in the cache folder, by the devices, the
precision, the method and the shape of the model. The next plan of the same kind is multiplied by it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.files import cache_folder, read_json, write_json
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe
from tunesmith.run import settled_speed

LEAST, MOST = 0.05, 20.0  # ratios beyond are of a machine that did other work, or of a damaged file


def speeds_file() -> Path:
    return cache_folder() / "speeds.json"


def kind_of_run(recipe: Recipe, plan: Plan, devices: Sequence[str], config: Any) -> str:
    """The runs whose speeds are like this one's."""
    text = config.get_text_config()
    shape = f"{text.model_type} {text.hidden_size} wide, {text.num_hidden_layers} layers"
    method = f"{recipe.adapter.kind} over {recipe.model.quantize}" if recipe.adapter.kind == "lora" else "full"
    kept = "streaming" if plan.kept_layers else "kept"
    return " | ".join([" + ".join(devices), plan.compute, method, kept, shape])


def ratio_of(kind: str) -> float | None:
    """Measured by predicted speed of the last run of this kind; None if there is none."""
    kept = read_json(speeds_file())
    found = kept.get(kind) if isinstance(kept, dict) else None
    return found if isinstance(found, float) and LEAST < found < MOST else None


def keep(plan: Plan, steps: Sequence[dict[str, Any]]) -> None:
    """Keeps the ratio that a run with this plan reached."""
    kind, predicted = plan.predicted.get("kind"), plan.predicted.get("tokens_per_second")
    measured = settled_speed(steps)
    if not kind or not predicted or not measured:
        return
    ratio = measured / predicted * plan.predicted.get("correction", 1.0)
    kept = read_json(speeds_file())
    speeds_file().parent.mkdir(parents=True, exist_ok=True)
    write_json(speeds_file(), (kept if isinstance(kept, dict) else {}) | {kind: ratio})
