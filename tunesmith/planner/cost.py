"""How long a training step takes, and what it costs, from the traced work of its passes and the speeds of a machine.

A device computes, and at the same time layers that it does not keep come from host memory and gradients go there. So
its part of a step takes as long as the slowest of these. All devices read host memory together. Then they exchange
gradients and update the weights, which nothing hides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.planner.rates import HostRates, Rates
from tunesmith.units import JOULES_PER_KWH

FORWARD_LAUNCHES = 1 / 3  # of `Rates.launch_seconds`, which has a recomputation and a backward pass as well


@dataclass(frozen=True)
class Work:
    """The arithmetic and the memory traffic of a device."""

    flops: int = 0
    """Floating-point operations of products of matrices; a multiplication and an addition are two."""
    moved_bytes: int = 0
    """Bytes that all other operations read and write. An operation that returns no tensor counts as none."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.moved_bytes + other.moved_bytes)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.flops - other.flops, self.moved_bytes - other.moved_bytes)

    def __mul__(self, factor: float) -> "Work":
        return Work(round(self.flops * factor), round(self.moved_bytes * factor))


@dataclass(frozen=True)
class Demand:
    """The work and the copies of a device in a step."""

    work: Work
    """One micro-batch's forward and backward pass."""
    pass_tokens: int
    """Tokens of that micro-batch."""
    layers: int
    """Decoder layers, each of which takes time to launch."""
    brought_bytes: int = 0
    """Weights that come from host memory in a step, whatever the device's tokens."""
    returned_bytes: int = 0
    """Gradients that go to host memory in a step."""
    update: Work = Work()
    """The optimizer's work, if its states are on the device."""
    update_bytes: tuple[int, int] = (0, 0)
    """Weights, gradients and moments that come from host memory and go back, if they are at home there."""


@dataclass(frozen=True)
class Lane:
    """Seconds that one device spends on each part of a step. All but the update overlap."""

    tokens: float
    compute: float
    to_device: float
    to_host: float
    update: float


@dataclass(frozen=True)
class Speed:
    """A training step's time."""

    tokens: int
    """Tokens of a step, on all devices."""
    step_seconds: float
    lanes: list[Lane]
    exchange_seconds: float
    bound: str
    """The part that takes longest: compute, launches, link or host memory."""
    watts: float | None
    """Sum of the power limits of all devices; None if one is not known."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds


@dataclass(frozen=True)
class Cost:
    """Time, energy and price of a whole run."""

    parts: dict[str, float]
    """Seconds by part: of training steps, and of what is beside them (beside_steps.py)."""
    kwh: float | None
    """At full power; None if the power of a device is not known."""
    price: float | None
    """None without a price of a kilowatt-hour."""

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def cost_of(speed: Speed, parts: dict[str, float], host_watts: float, price_per_kwh: float | None) -> Cost:
    """The cost of a run whose parts take so many seconds."""
    seconds = sum(parts.values())
    kwh = None if speed.watts is None else (speed.watts + host_watts) * seconds / JOULES_PER_KWH
    return Cost(parts, kwh, None if kwh is None or price_per_kwh is None else kwh * price_per_kwh)


def speed_of(
    demands: Sequence[Demand],
    rates: Sequence[Rates],
    host: HostRates,
    tokens: int,
    exchanged_bytes: int = 0,
    equal: bool = False,
) -> Speed | None:
    """The time of a step of so many tokens on these devices, None if the speed of one is not known.

    `exchanged_bytes`: gradients that every device sends to the others. `equal`: all devices have as many tokens, else
    as many as let them finish together.
    """
    if any(rate.flops_per_second is None or rate.memory_bytes_per_second is None for rate in rates):
        return None
    per_token = [_seconds_per_token(demand, rate) for demand, rate in zip(demands, rates)]
    copies = [_copies(demand, rate) for demand, rate in zip(demands, rates)]
    shares = [tokens / len(rates)] * len(rates) if equal else _shares(per_token, tokens)
    computing = [share * seconds for share, seconds in zip(shares, per_token)]
    in_host = sum(demand.brought_bytes + demand.returned_bytes for demand in demands) / host.memory_bytes_per_second
    updates = [_update(demand, rate) for demand, rate in zip(demands, rates)]
    updates_in_host = sum(sum(demand.update_bytes) for demand in demands) / host.memory_bytes_per_second
    exchange = _exchange(rates, host, exchanged_bytes)
    longest = max(max(computing), max(map(max, copies)), in_host)
    if longest == in_host:
        bound = "host memory"
    elif longest > max(computing):
        bound = "link"
    else:
        slowest = computing.index(longest)
        bound = "launches" if _is_launching(demands[slowest], rates[slowest]) else "compute"
    return Speed(
        tokens,
        longest + exchange + max(*updates, updates_in_host),
        [Lane(*parts) for parts in zip(shares, computing, *zip(*copies), updates)],
        exchange,
        bound,
        None if any(rate.watts is None for rate in rates) else sum(rate.watts or 0 for rate in rates),
    )


def _compute(work: Work, rate: Rates) -> float:
    """The rate of products is that of a whole layer, in which they take most of the time; else memory bounds it."""
    return max(work.flops / (rate.flops_per_second or 1), work.moved_bytes / (rate.memory_bytes_per_second or 1))


def forward_seconds(work: Work, layers: int, brought_bytes: int, rate: Rates, read_bytes: int = 0) -> float:
    """The time of a forward pass alone, for which so many bytes of weights come from host memory. `read_bytes`: of
    weights that products with a few tokens read; with many, computing takes longer."""
    memory = rate.memory_bytes_per_second or 1
    moving = work.moved_bytes / memory + read_bytes / (rate.weights_bytes_per_second or memory)
    computing = max(work.flops / (rate.flops_per_second or 1), moving)
    launches = layers * rate.launch_seconds * FORWARD_LAUNCHES
    if not rate.launches_overlap:
        return launches + computing
    return max(computing, launches, brought_bytes / rate.to_device_bytes_per_second)


def _is_launching(demand: Demand, rate: Rates) -> bool:
    """Whether a device waits for its kernels to be launched."""
    return demand.layers * rate.launch_seconds > _compute(demand.work, rate)


def _seconds_per_token(demand: Demand, rate: Rates) -> float:
    return max(_compute(demand.work, rate), demand.layers * rate.launch_seconds) / demand.pass_tokens


def _copies(demand: Demand, rate: Rates) -> tuple[float, float]:
    """Seconds of copies to the device and to the host."""
    return (
        demand.brought_bytes / rate.to_device_bytes_per_second,
        demand.returned_bytes / rate.to_host_bytes_per_second,
    )


def _update(demand: Demand, rate: Rates) -> float:
    to_device, to_host = demand.update_bytes
    copies = max(to_device / rate.to_device_bytes_per_second, to_host / rate.to_host_bytes_per_second)
    return max(copies, demand.update.moved_bytes / (rate.memory_bytes_per_second or 1))


def _shares(per_token: Sequence[float], tokens: int) -> list[float]:
    """Tokens of each device, in proportion to its speed."""
    together = sum(1 / seconds for seconds in per_token)
    return [tokens / seconds / together for seconds in per_token]


def _exchange(rates: Sequence[Rates], host: HostRates, nbytes: int) -> float:
    """Each device sends its gradients to host memory, which reads them all, and gets their sum."""
    if len(rates) < 2 or not nbytes:
        return 0.0
    there = max(nbytes / rate.to_host_bytes_per_second for rate in rates)
    back = max(nbytes / rate.to_device_bytes_per_second for rate in rates)
    return there + (len(rates) + 1) * nbytes / host.memory_bytes_per_second + back
