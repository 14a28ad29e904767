"""Values that a recipe may hold but that hardly anyone means: refused where they have no use, else one line."""

from collections.abc import Iterator
from typing import Any

from tunesmith.data.dataset import Dataset
from tunesmith.errors import UserError
from tunesmith.plan import Plan
from tunesmith.recipe import Data, Recipe, Train

USUAL_LEARNING_RATE = Train.model_fields["learning_rate"].default
USUAL_LENGTH = Data.model_fields["sequence_length"].default
FAR_ABOVE = 100  # times the usual learning rate: small models take ten times


def check(recipe: Recipe, plan: Plan, config: Any) -> list[str]:
    """Warnings before the data is read, for a model with this configuration of transformers. Raises UserError."""
    width = getattr(config.get_text_config(), "hidden_size", None)
    if recipe.adapter.kind == "lora" and width and recipe.adapter.rank > width:
        raise UserError(
            f"adapter.rank: {recipe.adapter.rank:,} is above the width of the model's layers, {width:,}: "
            "the adapter would have more weights than they; 8 to 64 is usual, or say adapter.kind: full"
        )
    warnings, rate, asked = [], recipe.train.learning_rate, recipe.data.sequence_length
    if rate > FAR_ABOVE * USUAL_LEARNING_RATE:
        warnings.append(
            f"train.learning_rate: {rate:g} is {rate / USUAL_LEARNING_RATE:,.0f} times the usual "
            f"{USUAL_LEARNING_RATE:g}; expect training to diverge"
        )
    if isinstance(asked, int) and plan.sequence_length < asked:
        warnings.append(
            f"data.sequence_length: {asked:,}, but the model has only {plan.sequence_length:,} positions; "
            f"a longer row counts as too long (data.too_long: {recipe.data.too_long})"
        )
    return warnings


def check_data(recipe: Recipe, plan: Plan, dataset: Dataset, positions: int | None, steps: int) -> list[str]:
    """Warnings once the rows are known, for a run of so many steps. `positions`: those that the model was trained with;
    None: its configuration does not say."""
    return [
        *_length(plan.sequence_length, dataset, positions),
        *_steps(recipe.train, steps),
        *_few_rows(recipe.train, dataset),
        *_held_out(recipe.data, dataset),
    ]


def _length(length: int, dataset: Dataset, positions: int | None) -> Iterator[str]:
    longest = max(int(store.sizes.longest.max(initial=0)) for store in (dataset.train, dataset.eval))
    if not positions:
        return
    if longest > positions:
        yield (
            f"data.sequence_length: rows have up to {longest:,} tokens, but the model was trained with "
            f"{positions:,} positions; its answers beyond them may be poor"
        )
    elif length > positions and length != USUAL_LENGTH:
        yield f"data.sequence_length: {length:,} is beyond the model's {positions:,} positions, though no row is"


def _steps(train: Train, steps: int) -> Iterator[str]:
    if train.max_steps and steps < train.max_steps:
        yield (
            f"train.max_steps: {train.max_steps:,} will not be reached, as train.epochs: {train.epochs:g} ends "
            f"after {steps:,} steps; raise train.epochs to train longer"
        )


def _few_rows(train: Train, dataset: Dataset) -> Iterator[str]:
    examples = round(dataset.train.weights.sum())
    if examples < train.batch:
        yield (
            f"train.batch: {train.batch} is more than the {examples} examples of an epoch, so each epoch is one "
            f"optimizer step; lower it, to {max(1, examples // 8)} for instance"
        )


def _held_out(data: Data, dataset: Dataset) -> Iterator[str]:
    if data.eval_share and not len(dataset.eval):
        yield (
            f"data.eval_share: {data.eval_share:g} of {len(dataset.train):,} examples holds none out, so nothing "
            "will tell whether the model got better; give data.eval, or more rows with different prompts"
        )
