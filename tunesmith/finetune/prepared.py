"""What a prepared run's folder gives to those who work on it: its plan, tokenizer and data."""

from pathlib import Path

from tunesmith.data.dataset import Dataset, prepare
from tunesmith.data.encode import Progress, Settings
from tunesmith.data.row_order import Schedule
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.files import cache_folder
from tunesmith.methods import METHODS
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe
from tunesmith.run import Run


def plan_of(run: Run) -> Plan:
    """The plan, from plan.json."""
    fields = Plan.__dataclass_fields__
    return Plan(**{k: v for k, v in run.plan.items() if k in fields})


def tokenizer_of(run: Run) -> Tokenizer:
    """The tokenizer as the plan uses it."""
    return Tokenizer.load(run.tokenizer, template_kwargs=run.plan["template_kwargs"])


def dataset_of(
    run: Run,
    tokenizer: Tokenizer,
    sequence_length: int,
    ledger_file: Path | None = None,
    progress: Progress = lambda rows, examples: None,
    day: str | None = None,
) -> Dataset:
    """The run's tokens; after `prepare` they come from the cache. `day` as the plan has it or will have it, for
    templates that write the date."""
    recipe = run.recipe
    chosen = METHODS[recipe.method.name]
    settings = Settings(
        tokenizer=tokenizer.on(day or run.plan.get("day")),
        encode=chosen.encode,
        method=recipe.method,
        splits=chosen.splits,
        sequence_length=sequence_length,
        too_long=recipe.data.too_long,
        candidate_share=0.0,
    )
    return prepare(recipe.data, settings, cache_folder() / "tokens", ledger_file, progress)


def schedule_of(recipe: Recipe, dataset: Dataset) -> Schedule:
    """Which rows each step learns from."""
    train = recipe.train
    return Schedule(dataset.train.weights, train.batch, train.epochs, recipe.seed, train.max_steps)
