"""A prepared run: the one door to its tokenizer, data and schedule."""

from functools import cached_property
from pathlib import Path

from tunesmith.data import dataset
from tunesmith.data.dataset import Dataset
from tunesmith.data.encode import Progress, Settings
from tunesmith.data.row_order import Schedule
from tunesmith.data.source import Sources
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.files import cache_folder
from tunesmith.methods import Method
from tunesmith.plan import Plan
from tunesmith.run import Run


def token_cache() -> Path:
    """Folder of encoded sources."""
    return cache_folder() / "tokens"


class Prepared:
    """A run with its plan. Each part is opened when it is first used, and kept."""

    def __init__(self, run: Run, plan: Plan, sources: Sources | None = None):
        """`sources`: those of the recipe, where they are resolved already."""
        self.run, self.plan, self.recipe, self._sources = run, plan, run.recipe, sources

    @classmethod
    def open(cls, run: Run) -> "Prepared":
        """Raises UserError if the run is not prepared."""
        return cls(run, run.plan)

    @property
    def method(self) -> Method:
        return Method(self.recipe.method)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer with the template variables of the plan. Templates that write the date write today's."""
        return Tokenizer.load(self.run.tokenizer, template_kwargs=self.plan.template_kwargs)

    @cached_property
    def sources(self) -> Sources:
        return self._sources or Sources.resolve(self.recipe.data)

    @cached_property
    def dataset(self) -> Dataset:
        """The run's tokens, which after preparation come from the cache."""
        return self.encode()

    def encode(self, ledger_file: Path | None = None, progress: Progress = lambda rows, examples: None) -> Dataset:
        """Encodes the run's data and writes the ledger to `ledger_file`. Raises UserError."""
        data, settings = self.recipe.data, self.encode_settings
        self.dataset = dataset.prepare(data, self.sources, settings, token_cache(), ledger_file, progress)
        return self.dataset

    @property
    def encode_settings(self) -> Settings:
        """Everything but the data that decides about the tokens."""
        return Settings(
            tokenizer=self.tokenizer.on(self.plan.day),
            method=self.method,
            sequence_length=self.plan.sequence_length,
            too_long=self.recipe.data.too_long,
        )

    @property
    def schedule(self) -> Schedule:
        """The rows of each step."""
        train = self.recipe.train
        return Schedule(self.dataset.train.weights, train.batch, train.epochs, self.recipe.seed, train.max_steps)
