"""The main job on real data, offline: a small model learns facts about Python's standard library."""

from pathlib import Path

from tunesmith.demo import questions
from tunesmith.demo.starter import cached_starter
from tunesmith.recipe import Recipe


def prepare(cache: Path) -> tuple[Path, Path, Path]:
    """(model folder, train.jsonl, eval.jsonl), made under `cache` where they are not there yet."""
    model = cached_starter(cache)
    data = cache / "demo"
    data.mkdir(exist_ok=True)
    return model, *questions.write(data)


def recipe(model: str | Path, train_file: Path, eval_file: Path, output: Path = Path("runs")) -> Recipe:
    """The fine-tuning job of the demo, as `tunesmith train` would read it."""
    return Recipe.build({
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(train_file), "eval": str(eval_file), "sequence_length": 128},
        "adapter": {"kind": "full"},
        "train": {"epochs": 8, "batch": 8, "learning_rate": 1e-3},
        "evaluate": {"exact_match": True, "max_new_tokens": 24},
        "output": str(output),
    }, "demo")
