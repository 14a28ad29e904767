"""The main job on real data, offline: a small model learns facts about Python's standard library."""

from pathlib import Path

from tunesmith.demo import questions
from tunesmith.demo.starter import cached_starter
from tunesmith.recipe import Recipe


def prepare(cache: Path) -> tuple[Path, Path, Path]:
    """(starter model's folder, train.jsonl, eval.jsonl), made under `cache` where they are not there yet."""
    model = cached_starter(cache)
    data = cache / "demo"
    data.mkdir(parents=True, exist_ok=True)
    return model, *questions.write(data)


def recipe(model: str | Path, train_file: Path, eval_file: Path, output: Path = Path("runs")) -> Recipe:
    """The demo's fine-tuning job, as `tunesmith train` would read it; its settings are those of the starter."""
    return Recipe.build({
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(train_file), "eval": str(eval_file), "sequence_length": 256},
        "adapter": {"kind": "full"},
        "train": {"epochs": 3, "batch": 8, "learning_rate": 1e-3, "eval_every": 200},
        "evaluate": {"exact_match": True, "max_new_tokens": 24},
        "output": str(output),
    }, "demo")
