"""The bytes that a run takes on the disk of its folder: checkpoints, of which the last and the best stay, and the
result."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.machine import Machine
from tunesmith.model.tokenizer_files import is_of_tokenizer
from tunesmith.plan import Plan
from tunesmith.planner.beside_steps import occasions
from tunesmith.planner.kept_layers import PRECISION_BYTES, STATE_BYTES, sizes
from tunesmith.recipe import Recipe
from tunesmith.units import size

ADAPTER_BYTES = PRECISION_BYTES["float32"]  # a trained weight of an adapter
TOKEN_BYTES = 5  # an encoded token: its number, and whether it is learned


@dataclass(frozen=True)
class Disk:
    """The bytes that a run takes on the disk of its folder."""

    checkpoint_bytes: int
    checkpoints: int
    """The most that stay."""
    writes_more: bool
    """Whether more are written. One more is then there until an old one is removed."""
    result_bytes: int
    """With the tokenizer, which the run's folder has too."""
    free_bytes: int | None
    """None if the disk is another machine's."""

    @property
    def left_bytes(self) -> int:
        """Bytes that a finished run leaves."""
        return self.checkpoints * self.checkpoint_bytes + self.result_bytes

    @property
    def needed_bytes(self) -> int:
        """The most that it takes at a time."""
        more = self.checkpoint_bytes if self.writes_more else 0
        return self.checkpoints * self.checkpoint_bytes + max(more, self.result_bytes)

    @property
    def fits(self) -> bool | None:
        """None if free bytes are not known."""
        return None if self.free_bytes is None else self.needed_bytes <= self.free_bytes

    def refusal(self, recipe: Recipe) -> str:
        """Why the run does not fit on the disk, and what would."""
        assert self.free_bytes is not None
        fewer = "; lower train.keep_checkpoints" * (recipe.train.keep_checkpoints > 1)
        return (
            f"output: {recipe.output}: checkpoints of {size(self.checkpoint_bytes)} and the result need "
            f"{size(self.needed_bytes)} of disk, and {size(self.free_bytes)} are free{fewer}; or name a folder on "
            "another disk"
        )

    def of_run(self, recipe: Recipe, written: int, has_best: bool) -> "Disk":
        """The same for a run that writes so many checkpoints. `has_best`: whether the best one is known, which stays
        too."""
        most = recipe.train.keep_checkpoints + has_best
        return replace(self, checkpoints=min(written, most), writes_more=written > most)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"left_bytes": self.left_bytes, "needed_bytes": self.needed_bytes, "fits": self.fits}


def disk_of(recipe: Recipe, machine: Machine, base: Path, checkpoint_bytes: int, result_bytes: int) -> Disk:
    """The disk of a run, whose amount is not known."""
    has_best = bool(recipe.data.eval or recipe.data.eval_share)
    tokenizer = sum(file.stat().st_size for file in base.iterdir() if file.is_file() and is_of_tokenizer(file.name))
    disk = Disk(checkpoint_bytes, 0, True, result_bytes + 2 * tokenizer, machine.free_disk_bytes)
    steps = recipe.train.max_steps
    written = occasions(recipe, steps, steps, has_best).checkpoints if steps else recipe.train.keep_checkpoints + 2
    return disk.of_run(recipe, written, has_best)


def disk_by_sizes(recipe: Recipe, plan: Plan, config: Any, base: Path, machine: Machine) -> Disk:
    """The disk of a run that is not traced, by the sizes of weights: an estimate."""
    from tunesmith.model.load import saved_dtype

    trained, whole = sizes(plan, recipe, config, base).trained, recipe.adapter.kind == "full"
    weight = PRECISION_BYTES[plan.weights] if whole else ADAPTER_BYTES
    saved = saved_dtype(recipe.model, config).itemsize if whole else ADAPTER_BYTES
    state = STATE_BYTES[recipe.train.optimizer]
    return disk_of(recipe, machine, base, int(trained * (weight + state)), trained * saved)
