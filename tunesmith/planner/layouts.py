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
from tunesmith.planner.cost import Demand, Speed, Work, speed_of
from tunesmith.planner.decide import layers_for
from tunesmith.planner.kept_layers import Sizes, input_bytes, sizes, with_counts
from tunesmith.planner.prediction import BESIDE, BESIDE_BYTES, Need, Place, places_of, resting
from tunesmith.planner.rates import Rates, host_rates, rates_of
from tunesmith.recipe import Recipe
from tunesmith.units import size

if TYPE_CHECKING:
    from tunesmith.planner.trace import Traced

    TracedSteps = dict[tuple, dict[int, Traced]]  # by settings, and by the number of micro-batches

RECOMPUTATION = ("off", "selective", "on")  # ever less memory and ever more work
ALMOST = 0.9  # of the longest rows: attention then takes about as long
LAST_KERNELS = (8, 0)  # from this compute capability on, all GPUs run the same kernels (training/packed_attention.py)
COPYING = ("link", "host memory")  # bounds of a step that waits for layers
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

    def __init__(
        self,
        recipe: Recipe,
        machine: Machine,
        config: Any,
        base: Path,
        plan: Plan,
        row_tokens: float | None = None,
        traced: "TracedSteps | None" = None,
    ):
        """`plan`: what does not depend on memory. `row_tokens`: the mean length of an example, if it is known; else all
        are as long as they may be. `traced`: where layouts of one model keep their steps, to trace none twice."""
        self.recipe, self.machine, self.config, self.base, self.plan = recipe, machine, config, base, plan
        self._row_tokens = row_tokens or plan.sequence_length
        self.seen: list[Layout] = []
        """All that fit."""
        self.problems: list[UserError] = []
        """Why layers cannot stay in host memory."""
        self._layers = config.get_text_config().num_hidden_layers
        self._rates, self._host = rates_of(machine, plan.compute), host_rates(machine)
        self._traced: TracedSteps = {} if traced is None else traced
        settings = recipe.model_dump_json(
            include={"model": True, "adapter": True, "method": True, "train": True},
            exclude={"train": {"kept_layers", "processes"}},
        )
        self._resident: dict[tuple[int, int] | None, int] = {}
        """Bytes of all weights, by compute capability."""
        self._kind = settings, plan.compute, plan.weights, plan.packing

    @property
    def rates_from(self) -> str:
        """Where the speeds of the devices come from."""
        sources = {rate.source for rate in self._rates}
        return "measured" if sources == {"measured"} else "estimated"

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
        return chosen and self._with_rows(chosen)

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
        for how in self._recomputation:
            most = {place: self._largest(how, place) for place in places}
            for tokens in sorted({*most.values()} - {0}, reverse=True):
                if all(found >= tokens for found in most.values()):
                    yield self._layout(machine, how, tokens)
            if min(most.values()) == self._tokens[0]:
                return  # to recompute more cannot be faster
        if may_walk and not min(most.values()):
            # As many tokens as GPUs that keep all layers have room for; without such, few leave room for layers.
            yield from self._walking(machine, [max(most.values()) or self._tokens[-1]])

    def _largest(self, how: str | float, place: Place) -> int:
        """The most tokens of a forward pass that fit with all layers; 0 if none do."""
        step, before = None, self._resident.get(place.capability, 0)
        if before > place.room:
            return 0  # recomputation changes nothing about it
        for tokens in self._tokens:
            if step:
                fixed = step.peak["weights"] + step.peak["optimizer"]
                # No part of the others shrinks faster than in proportion.
                if fixed + (step.peak_bytes - fixed) * tokens / step.tokens > place.room:
                    continue
            step = self._whole(how, tokens, place.capability)
            self._resident[place.capability] = step.peak["weights"]
            if step.peak_bytes <= place.room:
                return tokens
        return 0

    def _planned(self, how: str | float, tokens: int) -> Plan:
        layers, _ = layers_for(self.recipe.train, self.plan.sequence_length, tokens)
        return replace(self.plan, **layers | {"gradient_checkpointing": how}, micro_batch_tokens=tokens)

    def _whole(
        self, how: str | float, tokens: int, capability: tuple[int, int] | None, row_tokens: int | None = None
    ) -> "Traced":
        """The step of a process that keeps all layers, for a micro-batch of so many tokens in rows of so many; by
        default in rows as long as they may be, which need the most memory."""
        from tunesmith.planner.depths import trace_step

        row_tokens = row_tokens or self.plan.sequence_length
        capability = _decisive(capability)
        key = self._kind, how, tokens, capability, row_tokens
        if key not in self._traced:
            lengths = [row_tokens] * max(1, tokens // row_tokens)
            step = trace_step(self.recipe, self._planned(how, tokens), self.config, lengths, capability)
            self._traced[key] = {1: step}
        return self._traced[key][1]

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
        return Need(place, None, step.peak | {BESIDE: BESIDE_BYTES[place.kind]}, step.stage[0], resting(step))

    def _walking(self, machine: Machine, all_tokens: Sequence[int]) -> Iterator[Layout]:
        """Layouts of which a GPU does not keep all layers."""
        for tokens in all_tokens:
            plan = self._for(machine, self._planned("on", tokens))
            found = self._or_problem(plan, machine)
            if found:
                yield found
            is_bound_by_copies = not found or (found.speed and found.speed.bound in COPYING)
            has_offload = (found.plan if found else plan).activation_offload
            if not is_bound_by_copies or has_offload or isinstance(self.recipe.train.kept_layers, int):
                continue
            # Layers' inputs in host memory leave room for more layers on the GPU, of which fewer bytes come then.
            if other := self._or_problem(replace(plan, activation_offload=True), machine):
                yield other

    def _or_problem(self, plan: Plan, machine: Machine) -> Layout | None:
        """As `_with_layers_at_home`; None for a problem too, which is kept."""
        try:
            return self._with_layers_at_home(plan, machine)
        except UserError as problem:
            self.problems.append(problem)
            return None

    def _with_layers_at_home(self, plan: Plan, machine: Machine) -> Layout | None:
        """The layout in which each GPU keeps as many layers as fit. None if a GPU has no room for the slots of those
        that it does not keep. Raises UserError if the host is too small."""
        found, places = sizes(plan, self.recipe, self.config, self.base), places_of(machine, plan.processes)
        asked, why = self.recipe.train.kept_layers, "train.kept_layers"
        counts = [asked if isinstance(asked, int) else found.kept(place.free_bytes) for place in places]
        counts = [min(max(0, count), self._layers) for count in counts]
        plan = with_counts(plan, self.recipe, found, counts, why, machine)  # by sizes, to know the walks
        walks = [self._walk(plan, place, len(places), part) for place, part in zip(places, self._parts(machine))]
        if not isinstance(asked, int):
            most = [self._most_kept(walked, place, plan.micro_batch_tokens) for walked, place in zip(walks, places)]
            if None in most:
                return None
            counts, why = [count for count in most if count is not None], "as many as fit"
            if counts == [self._layers] * len(places) and not self._is_whole:
                return None  # the layouts with all layers are those of `_layout`
            plan = with_counts(plan, self.recipe, found, counts, why, machine)
        needs = [
            self._need(place, "on", plan.micro_batch_tokens)
            if count == self._layers and not self._is_whole
            else self._walking_need(place, count, self._kept(walked, count))
            for place, count, walked in zip(places, counts, walks)
        ]
        host = self._host_bytes(walks, counts)
        if host > machine.free_memory_bytes:
            raise UserError(
                f"model.path: layers that do not fit on a GPU, and the inputs of layers, need {size(host)} of host "
                f"memory; {size(machine.free_memory_bytes)} are free; lower train.batch or data.sequence_length"
            )
        return Layout(plan, machine, needs, self._speed(plan, machine, found), host)

    @property
    def _is_whole(self) -> bool:
        """Whether all weights train."""
        return self.recipe.adapter.kind == "full"

    def _parts(self, machine: Machine) -> list[float]:
        """Each GPU's part of a step's tokens."""
        rates = [rate.flops_per_second for rate in self._rates_on(machine)]
        if self.plan.shares == "equal" or None in rates:
            return [1 / len(rates)] * len(rates)
        return [rate / sum(rates) for rate in rates]

    def _rates_on(self, machine: Machine) -> list[Rates]:
        return [rate for gpu, rate in zip(self.machine.gpus, self._rates) if gpu in machine.gpus] or self._rates

    def _walk(self, plan: Plan, place: Place, processes: int, part: float) -> "Traced":
        """The step of a process that keeps no layer and has this part of a step's rows."""
        from tunesmith.planner.depths import at_batches, numbers_to_trace, trace_walks

        rows = plan.micro_batch_tokens // plan.sequence_length
        most = ceil(self.recipe.train.batch * part) * plan.sequence_length
        batches = max(1, ceil(most / plan.micro_batch_tokens))
        if plan.walk_tokens:
            batches = min(batches, max(1, plan.walk_tokens // plan.micro_batch_tokens))
        numbers = numbers_to_trace(batches, plan)
        capability = _decisive(place.capability)
        key = (
            self._kind,
            "walk",
            plan.sequence_length,
            plan.micro_batch_tokens,
            plan.activation_offload,
            numbers,
            self._is_whole and processes > 1,  # else gradients do not leave the device
            capability,
        )
        if key not in self._traced:
            lengths = [plan.sequence_length] * rows
            self._traced[key] = trace_walks(self.recipe, plan, self.config, lengths, numbers, capability)
        return at_batches(self._traced[key], batches)

    def _kept(self, walked: "Traced", count: int) -> "Traced":
        from tunesmith.planner.depths import with_kept

        return with_kept(walked, count, self._layers, self._is_whole)

    def _most_kept(self, walked: "Traced", place: Place, tokens: int) -> int | None:
        """The most layers that a GPU can keep; None if it cannot even walk."""
        if not self._is_whole and self._whole("on", tokens, place.capability).peak_bytes <= place.room:
            return self._layers  # and does not walk
        most = self._layers if self._is_whole else self._layers - 1
        counts = range(most, -1, -1)
        return next((count for count in counts if self._kept(walked, count).peak_bytes <= place.room), None)

    def _host_bytes(self, walks: list["Traced"], counts: list[int]) -> int:
        from tunesmith.planner.depths import host_bytes

        return host_bytes(self.recipe, walks, counts, self._layers)

    def _walking_need(self, place: Place, count: int, walked: "Traced") -> Need:
        return Need(place, count, walked.peak | {BESIDE: BESIDE_BYTES[place.kind]}, walked.stage[0], resting(walked))

    def _speed(self, plan: Plan, machine: Machine, found: Sizes | None, row_tokens: int | None = None) -> Speed | None:
        """`found`: sizes, if layers stay in host memory. `row_tokens`: of each row; by default as many as may be."""
        rates = self._rates_on(machine)
        capabilities = [gpu.capability for gpu in machine.gpus] or [None]
        kept = plan.kept_layers or [self._layers] * len(rates)
        length = row_tokens or plan.sequence_length
        tokens = self.recipe.train.batch * length
        in_pass = plan.micro_batch_tokens
        if row_tokens:  # of a few short rows, a pass may have fewer than it could
            in_pass = max(length, min(in_pass, tokens // len(rates)))
        demands = [
            self._demand(plan, count, found, tokens, len(rates), self._whole(how, in_pass, capability, length))
            for count, capability in zip(kept, capabilities)
            for how in ["on" if count < self._layers or self._is_at_home(found) else plan.gradient_checkpointing]
        ]
        step = self._whole(plan.gradient_checkpointing, in_pass, capabilities[0], length)
        exchanged = 0 if self._is_at_home(found) else step.stages["update", 0]["gradients"]
        return speed_of(demands, rates, self._host, tokens, exchanged, equal=plan.shares == "equal")

    def _with_rows(self, layout: Layout) -> Layout:
        """The layout with the time of a step of rows as long as they are."""
        if self._row_tokens > ALMOST * layout.plan.sequence_length:
            return layout
        found = sizes(layout.plan, self.recipe, self.config, self.base) if layout.plan.kept_layers else None
        return replace(layout, speed=self._speed(layout.plan, layout.machine, found, max(1, round(self._row_tokens))))

    def _is_at_home(self, found: Sizes | None) -> bool:
        """Whether weights that train, gradients and moments are in host memory."""
        return found is not None and self._is_whole

    def _demand(self, plan: Plan, kept: int, found: Sizes | None, tokens: int, devices: int, step: "Traced") -> Demand:
        """The demand on a device that keeps so many layers and has its part of so many tokens; `step` is its traced
        step."""
        tokens = ceil(tokens / devices)
        inputs = tokens * input_bytes(plan, self.config) if plan.activation_offload else 0
        computing = Demand(step.pass_work, step.tokens, self._layers, inputs, inputs, step.update_work)
        if not found:
            return computing
        away = self._layers - kept
        if not self._is_at_home(found):
            walks = ceil(tokens / plan.walk_tokens) if plan.walk_tokens else 1
            return replace(computing, brought_bytes=inputs + 2 * away * found.layer * walks)
        states = (self._layers * found.at_home + found.rest_at_home) // devices
        return replace(
            computing,
            brought_bytes=inputs + (2 * away + kept) * found.layer,
            returned_bytes=inputs + self._layers * found.layer,
            update=Work(),
            update_bytes=(states, states),
        )


def _decisive(capability: tuple[int, int] | None) -> tuple[int, int] | None:
    """The compute capability as far as it decides about kernels, so that most GPUs have the same step."""
    return capability and min(capability, LAST_KERNELS)
