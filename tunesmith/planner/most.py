"""The most that fits on a machine: the longest examples, the largest rank, and the fewest GPUs.

Every try is a recipe with the least memory that its settings allow: one example in a forward pass, and all activations
recomputed. Each step is traced once, whatever the machine.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.errors import UserError
from tunesmith.machine import Machine
from tunesmith.model.check import check_config
from tunesmith.model.positions import trained_positions
from tunesmith.planner.layouts import Layout, Layouts
from tunesmith.planner.predict import untraceable, without_memory
from tunesmith.planner.prediction import Prediction
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from tunesmith.planner.layouts import TracedSteps

FINE_STEP, FINE_UNTIL, COARSE_STEP = 512, 8192, 4096  # tokens
T = TypeVar("T")
MOST_TOKENS = 2**20  # of an example, for a model without a limit
RANKS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Fit:
    """A value with which the step fits, and the fastest layout with it."""

    value: int
    needed_bytes: int
    """On the GPU with the least room to spare."""
    free_bytes: int
    """On that GPU."""
    tokens_per_second: float | None
    kept_layers: list[int] | None
    """Decoder layers that stay on each GPU, while the others come from host memory; None: all stay."""
    gpus: list[str]


@dataclass(frozen=True)
class Largest:
    """The largest values that fit."""

    resident: Fit | None
    """With all layers on the GPU."""
    streaming: Fit | None
    """With layers in host memory, if a larger value fits then."""

    @property
    def most(self) -> Fit | None:
        return self.streaming or self.resident


@dataclass(frozen=True)
class Most:
    """The most that fits of a recipe."""

    not_predicted: str = ""
    """Why nothing is known."""
    sequence_length: Largest | None = None
    """In tokens."""
    positions: int | None = None
    """The most that the model takes; None: any number."""
    rank: Largest | None = None
    """The rank of LoRA; None for full fine-tuning."""
    rank_length: int | None = None
    """Length of the examples, in tokens, with which the rank and the GPUs were tried."""
    gpus: list[list[str]] = field(default_factory=list)
    """The smallest sets of GPUs on which the recipe fits; any one will do."""
    refusal: str = ""
    """If not even the shortest examples fit: why."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def most(recipe: Recipe, machine: Machine, config: Any, base: Path) -> Most:
    """Searches for the most that fits. Raises UserError for a recipe that this machine or model cannot have."""
    check_config(recipe.model, recipe.adapter, base, config)
    tries = Tries(recipe, machine, config, base)
    try:
        return _most(recipe, tries)
    except UserError:
        raise
    except Exception as error:  # whatever a model or kernel without a fake form raises
        return Most(untraceable(error))


def _most(recipe: Recipe, tries: "Tries") -> Most:
    longest, asked = tries.longest(), recipe.data.sequence_length
    if not longest.most:
        return Most(refusal=tries.refusal, sequence_length=longest, positions=tries.positions)
    length = longest.most.value if asked == "max" else asked
    with_length = {"data.sequence_length": length}
    rank = tries.largest("adapter.rank", RANKS, with_length) if recipe.adapter.kind == "lora" else None
    return Most(
        sequence_length=longest,
        positions=tries.positions,
        rank=rank,
        rank_length=length,
        gpus=[*tries.fewest_gpus(with_length)],
    )


class Tries:
    """Tries changes of a recipe on a machine."""

    def __init__(self, recipe: Recipe, machine: Machine, config: Any, base: Path, traced: "TracedSteps | None" = None):
        """`traced`: where tries on several machines keep the traced steps of one model."""
        train = recipe.train
        least: dict[str, Any] = {} if isinstance(train.micro_batch, int) else {"train.micro_batch": 1}
        if train.gradient_checkpointing == "auto":
            least["train.gradient_checkpointing"] = "on"
        if recipe.data.sequence_length == "max":
            least["data.sequence_length"] = FINE_STEP
        self.recipe = recipe.changed(least)
        self.positions = trained_positions(config)
        self.refusal = ""
        """Why the last try that did not fit did not."""
        self._machine, self._config, self._base = machine, config, base
        self._traced: TracedSteps = {} if traced is None else traced

    def longest(self) -> Largest:
        """The longest examples."""
        return self.largest("data.sequence_length", lengths(self.positions), {})

    def largest(self, key: str, values: Sequence[int], others: dict[str, Any]) -> Largest:
        """The largest of ascending values for a key of the recipe, with `others` changed too."""
        resident = self.last_fit(key, values, others | {"train.kept_layers": "all"})
        if self.recipe.train.kept_layers == "all" or (resident and resident.value == values[-1]):
            return Largest(resident, None)
        longer = [value for value in values if not resident or value > resident.value]
        return Largest(resident, self.last_fit(key, longer, others))

    def fewest_gpus(self, change: dict[str, Any]) -> Iterator[list[str]]:
        """The smallest sets of the machine's GPUs on which the recipe fits."""
        gpus, asked = self._machine.gpus, self.recipe.train.processes
        for count in [asked] if asked else range(1, len(gpus) + 1):
            sets = {tuple(gpu.name for gpu in some): some for some in combinations(gpus, count)}
            fitting = [
                names for names, some in sets.items() if self._fits(change, replace(self._machine, gpus=[*some]))
            ]
            if fitting:
                yield from map(list, fitting)
                return

    def last_fit(self, key: str, values: Sequence[int], others: dict[str, Any]) -> Fit | None:
        """The last of ascending values that fits."""
        found = last_that(values, lambda value: self._fits(others | {key: value}, self._machine))
        return found and _fit(*found)

    def _fits(self, change: dict[str, Any], machine: Machine) -> Layout | None:
        """The fastest layout of the recipe with a change, None if it does not fit."""
        try:
            recipe = self.recipe.changed(change)
            plan = without_memory(recipe, machine, self._config)
            layouts = Layouts(recipe, machine, self._config, self._base, plan, traced=self._traced)
            best = layouts.best()
        except UserError as problem:
            self.refusal = str(problem)
            return None
        if best and all(need.fits for need in best.needs):
            return best
        smallest = layouts.smallest()
        too_large = Prediction(smallest.plan, smallest.needs).refusal
        self.refusal = str(layouts.problems[0]) if layouts.problems else too_large  # that of the fastest GPU alone
        return None


def _fit(value: int, layout: Layout) -> Fit:
    tightest = max(layout.needs, key=lambda need: need.nbytes / max(1, need.place.free_bytes))
    return Fit(
        value,
        tightest.nbytes,
        tightest.place.free_bytes,
        layout.rate or None,
        layout.plan.kept_layers,
        [gpu.name for gpu in layout.machine.gpus],
    )


def lengths(positions: int | None) -> list[int]:
    """The lengths of examples that are tried, ascending, in tokens."""
    most = positions or MOST_TOKENS
    fine = range(FINE_STEP, FINE_UNTIL, FINE_STEP)
    coarse = range(FINE_UNTIL, most, COARSE_STEP)
    return [*(length for length in (*fine, *coarse) if length < most), most]


def last_that(values: Sequence[int], fits: Callable[[int], T | None]) -> tuple[int, T] | None:
    """The last of ascending values that fits, with what `fits` returns for it. If one does not fit, no later one may.
    Small values are tried first, in steps that double, because large ones take long."""
    found: tuple[int, T] | None = None
    low, high, step = 0, len(values), 1  # all before `low` fit, none from `high` on does
    while low < high:
        tried = min(low + step - 1, (low + high) // 2)
        if (answer := fits(values[tried])) is None:
            high = tried
        else:
            low, step, found = tried + 1, 2 * step, (values[tried], answer)
    return found
