"""Chooses how the devices of a machine compute a step: of all layouts that fit in memory, the fastest.

A layout is the GPUs that take part, the recomputation, the tokens of a forward pass and the layers that each GPU keeps.
What the recipe asks for is never changed. Memory and work are those of the traced step (trace.py), time is that of
cost.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import UserError
from tunesmith.machine import Machine
from tunesmith.plan import Plan
from tunesmith.planner.cost import Demand, Speed, speed_of
from tunesmith.planner.decide import layers_for
from tunesmith.planner.kept_layers import CONTEXT_BYTES, SLOTS, Sizes, sizes, with_kept_layers
from tunesmith.planner.prediction import BESIDE_BYTES, Need, Place, places_of
from tunesmith.planner.rates import host_rates, rates_of
from tunesmith.recipe import Recipe

if TYPE_CHECKING:
    from tunesmith.planner.trace import Step

RECOMPUTATION = ("off", "selective", "on")  # ever less memory and ever more work
WORTH = 1.02  # how much faster a step must be for one more GPU to take part


@dataclass(frozen=True)
class Layout:
    """A plan for these GPUs (or the CPU), with its memory and time."""

    plan: Plan
    machine: Machine
    needs: list[Need]
    speed: Speed | None
    host_bytes: int = 0
    """Host memory for layers that do not stay on a GPU, with their gradients and moments if they train."""

    @property
    def rate(self) -> float:
        """Tokens per second; 0 if that is not predicted."""
        return self.speed.tokens_per_second if self.speed else 0.0


class Layouts:
    """All layouts of a recipe on a machine. Each step is traced once."""

    def __init__(self, recipe: Recipe, machine: Machine, config: Any, base: Path, plan: Plan):
        """`plan`: what does not depend on memory."""
        self.recipe, self.machine, self.config, self.base, self.plan = recipe, machine, config, base, plan
        self.seen: list[Layout] = []
        """All that fit."""
        self.problems: list[UserError] = []
        """Why layers cannot stay in host memory."""
        self._layers = config.get_text_config().num_hidden_layers
        self._rates, self._host = rates_of(machine, plan.compute), host_rates(machine)
        self._traced: dict[tuple, Step] = {}

    def best(self) -> Layout | None:
        """The fastest layout that fits; without known speeds the first, of which none recomputes less. None if
        nothing fits."""
        chosen: Layout | None = None
        for machine in self._machines():
            fitting = [*self._fitting(machine)]
            self.seen += fitting
            found = max(fitting, key=lambda layout: layout.rate, default=None)
            if found and (not chosen or found.rate > WORTH * chosen.rate):
                chosen = found
        return chosen

    def smallest(self) -> Layout:
        """The layout that needs the least memory, whether it fits or not, with all layers on each device."""
        return self._layout(self.machine, self._recomputation[-1], self._tokens[-1])

    def _machines(self) -> Iterator[Machine]:
        """The machine with its fastest GPU, with the two fastest and so on; or all of it."""
        asked = self.recipe.train.processes
        if asked or len(self.machine.gpus) < 2:
            yield replace(self.machine, gpus=self.machine.gpus[: self.plan.processes])
            return
        order = sorted(range(len(self.machine.gpus)), key=lambda n: -(self._rates[n].flops_per_second or 0.0))
        if any(rate.flops_per_second is None for rate in self._rates):
            yield self.machine
            return
        for count in range(1, len(order) + 1):
            yield replace(self.machine, gpus=[self.machine.gpus[n] for n in sorted(order[:count])])

    @cached_property
    def _recomputation(self) -> Sequence[str | float]:
        asked = self.recipe.train.gradient_checkpointing
        if asked != "auto":
            return (asked,)
        if self.plan.activation_offload:
            return ("on",)
        return [how for how in RECOMPUTATION if how != "selective" or not self.plan.compile]

    @cached_property
    def _tokens(self) -> list[int]:
        """Tokens of a forward pass, ever fewer."""
        most, length = self.plan.micro_batch_tokens, self.plan.sequence_length
        rows = max(1, min(most // length, -(-self.recipe.train.batch // self.plan.processes)))
        if self.recipe.train.micro_batch is not None:
            return [rows * length]
        return [rows * length] + [2**n * length for n in reversed(range(rows.bit_length())) if 2**n < rows]

    def _fitting(self, machine: Machine) -> Iterator[Layout]:
        """Layouts that fit on all devices of a machine."""
        places = places_of(machine, len(machine.gpus) or self.plan.processes)
        asked = self.recipe.train.kept_layers
        may_walk = bool(machine.gpus) and asked == "auto" and self.recipe.model.quantize != "int8"
        if isinstance(asked, int):
            yield from self._walking(machine, self._tokens)
            return
        tried: set[int] = set()
        for how in self._recomputation:
            most = {place: self._largest(how, place) for place in places}
            for tokens in sorted({*most.values()} - {0}, reverse=True):
                if all(found >= tokens for found in most.values()):
                    yield self._layout(machine, how, tokens)
                tried.add(tokens)
            if min(most.values()) == self._tokens[0]:
                return  # to recompute more cannot be faster
        if may_walk and min(most.values()) < self._tokens[0]:
            yield from self._walking(machine, sorted({*tried, self._tokens[-1]}))

    def _largest(self, how: str | float, place: Place) -> int:
        """The most tokens of a forward pass that fit with all layers; 0 if none do."""
        least = 0.0  # bytes that the next smaller passes need at least
        fixed = most = 0
        for tokens in self._tokens:
            if most:
                least = fixed + (peak - fixed) * tokens / most  # no part shrinks faster than in proportion
            if least > place.room:
                continue
            step = self._whole(how, tokens, place.capability)
            peak, most = step.peak_bytes, tokens
            fixed = step.peak["weights"] + step.peak["optimizer"]
            if peak <= place.room:
                return tokens
        return 0

    def _planned(self, how: str | float, tokens: int) -> Plan:
        layers, _ = layers_for(self.recipe.train, self.plan.sequence_length, tokens)
        return replace(self.plan, **layers | {"gradient_checkpointing": how}, micro_batch_tokens=tokens)

    def _whole(self, how: str | float, tokens: int, capability: tuple[int, int] | None) -> "Step":
        """The step of a process that keeps all layers."""
        from tunesmith.planner.trace import trace_step

        key = how, tokens, capability
        if key not in self._traced:
            lengths = [self.plan.sequence_length] * (tokens // self.plan.sequence_length)
            self._traced[key] = trace_step(self.recipe, self._planned(how, tokens), self.config, lengths, capability)
        return self._traced[key]

    def _layout(self, machine: Machine, how: str | float, tokens: int) -> Layout:
        """The layout with all layers on each device."""
        plan = self._for(machine, self._planned(how, tokens))
        return Layout(
            plan,
            machine,
            [self._need(place, how, tokens) for place in places_of(machine, plan.processes)],
            self._speed(plan, machine, None),
        )

    def _for(self, machine: Machine, plan: Plan) -> Plan:
        return replace(plan, processes=len(machine.gpus) or plan.processes)

    def _need(self, place: Place, how: str | float, tokens: int) -> Need:
        step = self._whole(how, tokens, place.capability)
        return Need(place, None, step.peak | {"beside tensors": BESIDE_BYTES[place.kind]}, step.stage[0])

    def _walking(self, machine: Machine, all_tokens: Sequence[int]) -> Iterator[Layout]:
        """Layouts of which a GPU does not keep all layers."""
        for tokens in all_tokens:
            plan = self._for(machine, self._planned("on", tokens))
            try:
                plan = with_kept_layers(plan, self.recipe, self.config, self.base, machine)
            except UserError as problem:
                self.problems.append(problem)
                continue
            if plan.kept_layers is None:
                continue  # by their sizes all fit, and the trace says that they do not
            found = sizes(plan, self.recipe, self.config, self.base)
            needs = [
                self._need(place, "on", tokens) if kept == self._layers else _estimate(place, kept, found)
                for place, kept in zip(places_of(machine, plan.processes), plan.kept_layers)
            ]
            host = found.at_home * max(self._layers - kept for kept in plan.kept_layers)
            yield Layout(plan, machine, needs, self._speed(plan, machine, found), host)

    def _speed(self, plan: Plan, machine: Machine, found: Sizes | None) -> Speed | None:
        """`found`: sizes, if layers stay in host memory."""
        rates = [rate for gpu, rate in zip(self.machine.gpus, self._rates) if gpu in machine.gpus] or self._rates
        capabilities = [gpu.capability for gpu in machine.gpus] or [None]
        kept = plan.kept_layers or [self._layers] * len(rates)
        demands = [
            self._demand(plan, count, capability, found, len(rates)) for count, capability in zip(kept, capabilities)
        ]
        first = self._whole(plan.gradient_checkpointing, plan.micro_batch_tokens, capabilities[0])
        exchanged = 0 if self._is_at_home(found) else first.stages["update", 0]["gradients"]
        tokens = self.recipe.train.batch * plan.sequence_length
        return speed_of(demands, rates, self._host, tokens, exchanged, equal=plan.shares == "equal")

    def _is_at_home(self, found: Sizes | None) -> bool:
        """Whether weights that train, gradients and moments are in host memory."""
        return found is not None and self.recipe.adapter.kind == "full"

    def _demand(
        self, plan: Plan, kept: int, capability: tuple[int, int] | None, found: Sizes | None, devices: int
    ) -> Demand:
        away, at_home = self._layers - kept, self._is_at_home(found)
        how = "on" if away or at_home else plan.gradient_checkpointing
        step = self._whole(how, plan.micro_batch_tokens, capability)
        if not found:
            return Demand(step.pass_work, plan.micro_batch_tokens, self._layers, update=step.update_work)
        walks = ceil(found.tokens / plan.walk_tokens) if plan.walk_tokens else 1
        if not at_home:
            brought = 2 * away * found.layer * walks
            return Demand(step.pass_work, plan.micro_batch_tokens, self._layers, brought, update=step.update_work)
        states = (self._layers * found.at_home + found.rest_at_home) // devices
        return Demand(
            step.pass_work,
            plan.micro_batch_tokens,
            self._layers,
            brought_bytes=(2 * away + kept) * found.layer,
            returned_bytes=self._layers * found.layer,
            update_bytes=(states, states),
        )


def _estimate(place: Place, kept: int, found: Sizes) -> Need:
    """The memory of a GPU that does not keep all layers, by the sizes of its weights."""
    parts = {
        "weights": found.rest + kept * found.layer,
        "layers on their way": SLOTS * found.layer,
        "activations": found.working - CONTEXT_BYTES,
        "beside tensors": BESIDE_BYTES[place.kind],
    }
    return Need(place, kept, parts, "")
