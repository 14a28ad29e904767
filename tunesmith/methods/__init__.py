"""Training methods: one file each, found by its name, also in other packages (entry point group tunesmith.methods).

A method's module has

    Settings    its section of the recipe: a recipe.MethodSettings with `name: Literal["…"]`
    reads       the kinds of Row that it learns from
    encode(tokenizer, row, settings) -> list[Group]

and, where it is not next-token prediction,

    loss(answers, settings) -> (total, metrics)
                the sum of the loss over the units of a micro-batch, and sums to report, by name. A formula over
                log-probabilities; without it, cross-entropy. No term may mix rows, so that the loss of a step does not
                depend on how its rows are dealt to micro-batches
    unit        "token" (by default) or "row": the loss of a step is the mean over its learned tokens or its rows
    splits      True where a sequence that is too long is cut into several, as text is; else its row is dropped
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from tunesmith.data.masking import Group
from tunesmith.data.rows import Row, RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.recipe import METHODS, MethodSettings

if TYPE_CHECKING:  # data is encoded without torch
    import torch


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of the learned tokens of a micro-batch. N learned tokens, D sequences, G groups."""

    log_probs_N: "torch.Tensor"
    """In nats, float32, with a gradient while training."""
    sequence_N: "torch.Tensor"
    """Which sequence a token belongs to."""
    groups: tuple[int, ...]
    """How many sequences each row gave; their sequences follow one another."""

    def sums_D(self) -> "torch.Tensor":
        """Log-probability of each sequence."""
        return self.log_probs_N.new_zeros(sum(self.groups)).index_add(0, self.sequence_N, self.log_probs_N)

    def counts_D(self) -> "torch.Tensor":
        """Learned tokens of each sequence."""
        return self.sequence_N.bincount(minlength=sum(self.groups))

    def means_D(self) -> "torch.Tensor":
        """Log-probability per learned token of each sequence."""
        return self.sums_D() / self.counts_D()

    def of_row(self, number: int) -> "Answers":
        """Returns the answers of one row of the micro-batch."""
        first = sum(self.groups[:number])
        belongs_N = (self.sequence_N >= first) & (self.sequence_N < first + self.groups[number])
        return Answers(self.log_probs_N[belongs_N], self.sequence_N[belongs_N] - first, (self.groups[number],))


@dataclass(frozen=True)
class Method:
    """A method with its settings."""

    settings: MethodSettings

    @property
    def _module(self) -> ModuleType:  # looked up, as modules cannot be sent to other processes
        return METHODS[self.settings.name]

    @property
    def unit(self) -> str:
        return getattr(self._module, "unit", "token")

    @property
    def splits(self) -> bool:
        return getattr(self._module, "splits", False)

    @property
    def loss(self) -> "Callable[[Answers, MethodSettings], tuple[torch.Tensor, dict[str, torch.Tensor]]] | None":
        """None for cross-entropy."""
        return getattr(self._module, "loss", None)

    def encode(self, tokenizer: Tokenizer, row: Row) -> list[Group]:
        """Groups of sequences that are learned together. Raises RowProblem."""
        if not isinstance(row, self._module.reads):
            readers = [name for name in METHODS if type(row) in METHODS[name].reads]
            hint = f"; use {' or '.join(readers)}" if readers else ""
            raise RowProblem("wrong_shape", f"method.name: {self.settings.name} does not read {row.kind}{hint}")
        groups: list[Group] = self._module.encode(tokenizer, row, self.settings)
        return groups
