"""How many tokens a recipe trains on and evaluates, from the first rows of its data: they are encoded, the others are
counted."""

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tunesmith.data.dataset import most_set_aside
from tunesmith.data.encode import Encoder, Settings
from tunesmith.data.read import read_lines
from tunesmith.data.source import ResolvedSource, Sources, tokenizer_for
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.methods import Method
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe

ENCODING_SECONDS, COUNTING_SECONDS = 2.0, 3.0  # of each source; more takes too long for a plan
CHUNK_ROWS = 100
NO_DATA = ""  # the path of a source that is not named


@dataclass(frozen=True)
class Training:
    """The amount of a whole training run."""

    steps: int
    tokens: float
    """On average that many of all steps together."""
    row_tokens: float
    """Mean length of an example."""
    is_estimate: bool
    """Whether rows were not all encoded."""
    held_out_rows: float = 0
    """The number that is evaluated."""
    held_out_row_tokens: float = 0
    """Mean length of one."""
    no_held_out: str = ""
    """Why held-out rows are not known."""
    data_tokens: float = 0
    """Tokens that must be encoded; 0 if all are."""


def training(recipe: Recipe, plan: Plan, base: Path) -> Training:
    """Raises UserError for data or a tokenizer that is not there; planning downloads nothing."""
    if not all(source.path for source in recipe.data.train):
        raise UserError("no data; name it with --data")
    if hub := next((source.path for source in recipe.data.train if source.path.startswith("hub:")), None):
        raise UserError(f"data.train: {hub} is on the hub, and planning downloads nothing")
    eval_hub = next((source.path for source in recipe.data.eval if source.path.startswith("hub:")), None)
    sources = Sources.resolve(recipe.data.model_copy(update={"eval": []}) if eval_hub else recipe.data)
    tokenizer = tokenizer_for(base, [], recipe.model.chat_template_kwargs, recipe.model.chat_template)
    found = [_rows(source, recipe, plan, tokenizer) for source in sources.train]
    to_evaluate = [_rows(source, recipe, plan, tokenizer) for source in sources.eval]
    rows = sum(count for count, _, _ in found)
    set_aside = 0 if recipe.data.eval else most_set_aside(recipe.data, round(rows))
    learned = 1 - set_aside / max(1, rows)
    examples = sum(count * source.weight * learned for (count, _, _), source in zip(found, recipe.data.train))
    if not examples:
        raise UserError(f"data.train: no usable row; `tunesmith data check {sources.train[0].path}` says why")
    weighed = sum(count * source.weight * mean for (count, mean, _), source in zip(found, recipe.data.train))
    mean = weighed * learned / examples
    steps = max(1, -(-round(examples * recipe.train.epochs) // recipe.train.batch))
    trained = examples * recipe.train.epochs
    if recipe.train.max_steps and recipe.train.max_steps < steps:
        steps, trained = recipe.train.max_steps, recipe.train.max_steps * recipe.train.batch
    tokens = min(trained * mean, recipe.train.max_tokens or float("inf"))
    tokens_of_all, held_out = _tokens(found), sum(count for count, _, _ in to_evaluate)
    return Training(
        steps,
        tokens,
        mean,
        any(estimate for _, _, estimate in found + to_evaluate),
        min(recipe.data.eval_limit, held_out) if recipe.data.eval else set_aside,
        _tokens(to_evaluate) / held_out if held_out else tokens_of_all / rows,
        f"data.eval: {eval_hub} is on the hub, and planning downloads nothing" if eval_hub else "",
        tokens_of_all + _tokens(to_evaluate),
    )


def _tokens(found: list[tuple[float, float, bool]]) -> float:
    """Sums up what `_rows` returned of sources."""
    return sum(count * mean for count, mean, _ in found)


def _rows(source: ResolvedSource, recipe: Recipe, plan: Plan, tokenizer: Tokenizer) -> tuple[float, float, bool]:
    """Examples of a source, their mean length, and whether these are estimates."""
    settings = Settings(tokenizer, Method(recipe.method), plan.sequence_length, recipe.data.too_long)
    encoder = Encoder(settings, source.formats, source.source.columns)
    lines, began = read_lines(source.files), time.monotonic()
    rows = examples = tokens = 0
    while time.monotonic() - began < ENCODING_SECONDS and (some := [*islice(lines, CHUNK_ROWS)]):
        chunk = encoder.chunk(some)
        rows += len(some)
        examples += len(chunk.ids)
        tokens += sum(map(len, chunk.ids))
    others, began = 0, time.monotonic()
    while time.monotonic() - began < COUNTING_SECONDS and (some := [*islice(lines, CHUNK_ROWS)]):
        others += len(some)
    count = examples * (1 + others / max(1, rows))
    return count, tokens / max(1, examples), bool(others)
