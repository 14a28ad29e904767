"""The planner's prediction of a run: the plan, the memory of each device by part, the time of a step."""

from dataclasses import asdict, dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from tunesmith.leases import CPU
from tunesmith.machine import Machine
from tunesmith.plan import Plan
from tunesmith.planner.beside_steps import ANSWERING, EVALUATING, BesideSpeed
from tunesmith.planner.cost import Cost, Speed
from tunesmith.planner.disk import Disk
from tunesmith.planner.fit import Measured
from tunesmith.planner.kept_layers import USED_SHARE
from tunesmith.planner.rows import Training
from tunesmith.units import percent, size

if TYPE_CHECKING:
    from tunesmith.planner.trace import Traced

# Bytes of a process beside tensors: of CUDA and its libraries on a GPU, an estimate; of Python, torch and the heap in
# host memory, where bench/plan.py measured 0.8 to 1.0 GB.
BESIDE_BYTES = {"cuda": 600 * 2**20, "cpu": 900 * 10**6}
BESIDE = "beside tensors"
DOING = {EVALUATING: "evaluating held-out rows", ANSWERING: "answering held-out prompts"}


@dataclass(frozen=True)
class Place:
    """Memory that one process has: that of a GPU, or its part of the host's."""

    name: str
    free_bytes: int
    kind: str
    """cuda or cpu."""
    capability: tuple[int, int] | None = None
    """Compute capability of the GPU."""
    device: str = CPU
    """The GPU's UUID, or leases.CPU."""

    @property
    def room(self) -> int:
        """Bytes for tensors."""
        return int(self.free_bytes * USED_SHARE) - BESIDE_BYTES[self.kind]


def places_of(machine: Machine, processes: int) -> list[Place]:
    """The memory of each process of a run."""
    if machine.gpus:
        return [Place(gpu.name, gpu.free_bytes, "cuda", gpu.capability, gpu.uuid) for gpu in machine.gpus[:processes]]
    return [Place("CPU", machine.free_memory_bytes // processes, "cpu")] * processes


@dataclass(frozen=True)
class Need:
    """The peak of one process's memory, in a training step or beside the steps."""

    place: Place
    kept_layers: int | None
    """Decoder layers that stay on the GPU; None: all."""
    parts: dict[str, int]
    """Bytes at the peak: of tensors by part, and beside them."""
    stage: str
    """When the peak is."""
    resting: dict[str, int] = field(default_factory=dict)
    """Bytes by part that stay between two steps."""

    @property
    def nbytes(self) -> int:
        return sum(self.parts.values())

    @property
    def limit_bytes(self) -> float:
        """The most that the process may take."""
        return USED_SHARE * self.place.free_bytes

    @property
    def fits(self) -> bool:
        return self.nbytes <= self.limit_bytes

    def with_stages(self, stages: dict[str, dict[str, int]]) -> "Need":
        """The need of a process that has these stages too, with bytes by part beside those that stay."""
        beside = {BESIDE: self.parts[BESIDE]}
        others = [replace(self, parts=self.resting | parts | beside, stage=stage) for stage, parts in stages.items()]
        return max(self, *others, key=lambda need: need.nbytes)


def resting(step: "Traced") -> dict[str, int]:
    """Bytes by part that stay between two steps."""
    return {part: step.stages["before the layers", 0][part] for part in ("weights", "optimizer")}


@dataclass(frozen=True)
class Alternative:
    """Another plan, or another recipe, and what it would mean."""

    change: str
    """How it differs."""
    tokens_per_second: float | None
    needed_bytes: int | None = None
    """On the GPU with the least room to spare; None if the plan differs in more than that."""
    quality: str = ""
    """The price in quality; empty: none."""


@dataclass(frozen=True)
class Prediction:
    """A plan and what it needs."""

    plan: Plan
    needs: list[Need] | None
    """One for each process; None if this kind of run is not traced."""
    not_predicted: str = ""
    """Why the memory is not predicted."""
    host_bytes: int = 0
    """Host memory for layers that do not stay on a GPU, with their gradients and moments if they train."""
    speed: Speed | None = None
    """None if the speed of a device is not known."""
    rates_from: str = ""
    """Where the speed comes from: "estimated" from published rates, "measured" rates, or "an earlier run"."""
    kind: str = ""
    """The runs whose speeds are like this one's (planner/correction.py)."""
    correction: float = 1.0
    """The factor by which an earlier run of this kind was faster than predicted, which the speed has."""
    training: Training | None = None
    """The amount of the whole training."""
    no_training: str = ""
    """Why that is not known."""
    beside: BesideSpeed | None = None
    """None if that is not known."""
    not_beside: str = ""
    """Why evaluation, answers and checkpoints are not predicted."""
    disk: Disk | None = None
    """None if that is not known."""
    cost: Cost | None = None
    traced: dict[str, Measured] = field(default_factory=dict)
    """Passes by `fit.layers_key`, of a run that measures what fits."""
    left_out: dict[str, str] = field(default_factory=dict)
    """GPUs that do not take part, and why."""
    alternatives: list[Alternative] = field(default_factory=list)
    """Slower plans for the same recipe."""
    remedies: list[Alternative] = field(default_factory=list)
    """If the step does not fit: changes of the recipe with which it does."""

    @property
    def fits(self) -> bool | None:
        """Whether the run fits in the memory of every process; None if that is not predicted."""
        return None if self.needs is None else all(need.fits for need in self.needs)

    @property
    def needed_bytes(self) -> dict[str, int]:
        """The bytes that must be free for the run, by device (leases.CPU: in the host); none if that is not
        predicted."""
        needed: dict[str, int] = {CPU: self.host_bytes} if self.host_bytes else {}
        for need in self.needs or ():
            asked, device = ceil(need.nbytes / USED_SHARE), need.place.device
            needed[device] = needed.get(device, 0) + asked  # the processes of a CPU share its memory
        return needed

    @property
    def tightest(self) -> Need | None:
        """The process that has the least room to spare."""
        return max(self.needs, key=lambda need: need.nbytes / max(1, need.place.free_bytes)) if self.needs else None

    @property
    def refusal(self) -> str:
        """Why the run does not fit in memory, and what would."""
        assert self.tightest
        need, place = self.tightest, self.tightest.place
        others = "; or ".join(
            f"{other.change} ({size(other.needed_bytes)})" if other.needed_bytes else other.change
            for other in self.remedies
        )
        fits = f"it fits with {others}" if others else "use a smaller model"
        return (
            f"{place.name}: {DOING.get(need.stage, 'a training step')} needs {size(need.nbytes)}, and it may take "
            f"{percent(USED_SHARE)} of {size(place.free_bytes)} that are free; {fits}"
        )

    def summary(self) -> dict[str, Any]:
        """The values that plan.json keeps."""
        return {
            "needs": [
                {
                    "name": need.place.name,
                    "bytes": need.nbytes,
                    "free_bytes": need.place.free_bytes,
                    "parts": need.parts,
                }
                for need in self.needs or ()
            ],
            "host_bytes": self.host_bytes,
            "needed_bytes": self.needed_bytes,
            "tokens_per_second": self.speed and self.speed.tokens_per_second,
            "step_seconds": self.speed and self.speed.step_seconds,
            "bound": self.speed and self.speed.bound,
            "lanes": [asdict(lane) for lane in self.speed.lanes] if self.speed else [],
            "rates_from": self.rates_from,
            "kind": self.kind,
            "correction": self.correction,
            "seconds": self.cost and self.cost.seconds,
            "seconds_by_part": self.cost.parts if self.cost else {},
            "disk": self.disk and self.disk.as_dict(),
            "kwh": self.cost and self.cost.kwh,
            "price": self.cost and self.cost.price,
            "left_out": self.left_out,
        }

    def as_dict(self) -> dict[str, Any]:
        values = asdict(replace(self, traced={}))
        del values["traced"]
        for need, found in zip(self.needs or (), values["needs"] or ()):
            found |= {"needed_bytes": need.nbytes, "limit_bytes": need.limit_bytes, "fits": need.fits}
        if self.speed:
            values["speed"]["tokens_per_second"] = self.speed.tokens_per_second
        if self.cost:
            values["cost"]["seconds"] = self.cost.seconds
        if self.disk:
            values["disk"] = self.disk.as_dict()
        return values | {"fits": self.fits, "refusal": self.refusal if self.fits is False else ""}
