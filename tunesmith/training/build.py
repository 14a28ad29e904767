"""From a plan to a model that is ready to train: load, adapt, place, inspect, transform."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.files import cache_folder
from tunesmith.model import adapt, experts_lora, load
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.training import distributed, layer_transforms, packed_attention
from tunesmith.training.expert_routing import Routing
from tunesmith.training.home import Home, TrainedHome, load_once
from tunesmith.training.host_optimizer import HostOptimizer
from tunesmith.training.loss import Head, autocast, find_head
from tunesmith.training.offload import Offload
from tunesmith.training.optimizer import Optimizer, build_optimizer
from tunesmith.training.planned_device import move
from tunesmith.training.walk import Walk

LEFT_TO_PEFT = (
    "PEFT computes the adapters of the experts, because this model's experts are not grouped matrix products: each "
    "forward pass adds their update to all experts' weights, which takes memory"
)


@dataclass(frozen=True)
class Facts:
    """Properties of a model that its configuration does not tell."""

    not_packed: str | None
    """Why examples cannot be packed; None if they can, or if the plan does not pack."""
    head: Head | None
    """The output layer; None if the model's forward does anything unknown with it."""


@dataclass
class Trainable:
    """A model ready to train on its device."""

    model: torch.nn.Module
    head: Head | None
    routing: Routing
    optimizer: Optimizer
    plan: Plan  # as it suits this model
    walk: Walk | None = None  # if layers stay in host memory


def build(run: Run, plan: Plan, base: Path, device: torch.device, log: Callable) -> Trainable:
    """The recipe's model, ready to train. Raises UserError for a setting that does not suit the model."""

    def load_and_adapt() -> torch.nn.Module:
        return adapt_model(run, load_model(run, plan, base))

    trains_whole = run.recipe.adapter.kind == "full"
    model = load_and_adapt() if plan.kept_layers is None else load_once(load_and_adapt, trains_whole)
    home = place(model, plan, device, log, trains_whole)
    return transform(model, run.recipe, plan, inspect(model, plan, log), log, home)


def load_model(run: Run, plan: Plan, base: Path):
    """The base model on the CPU in the plan's precision, quantised as the recipe says."""
    recipe = run.recipe
    attention = packed_attention.choose(load.config_of(base), plan.packing)
    on_host = plan.kept_layers is not None
    as_stored = on_host and recipe.adapter.kind == "full" and plan.weights == "float32"  # home.py converts it
    as_stored &= recipe.model.initialize == "pretrained" and not recipe.model.new_tokens
    dtype = "auto" if as_stored else getattr(torch, plan.weights)
    return load.load(recipe.model, base, dtype, attention, recipe.seed, on_host)


def adapt_model(run: Run, model):
    """The model with the recipe's trainable parameters."""
    recipe, tokenizer = run.recipe, Tokenizer.load(run.tokenizer)
    new_ids = adapt.new_token_ids(tokenizer, recipe.model.new_tokens)
    torch.manual_seed(recipe.seed)
    return adapt.adapt(model, recipe.adapter, new_ids, tokenizer.vocab_size if new_ids else 0)


def place(model, plan: Plan, device: torch.device, log: Callable, trains_whole: bool = False) -> Home | None:
    """Moves the model to the device, except for layers that stay in host memory. Returns the home of these, or None if
    this process keeps all layers."""
    if plan.kept_layers is None:
        move(model, device)
        return None
    kept, processes = plan.kept_layers, distributed.world()
    if len(kept) != processes:  # another number than planned, after a GPU was lost or added
        kept = [min(kept)] * processes
    layers = layer_transforms.decoder_layers(model)
    if trains_whole:
        weights, compute = getattr(torch, plan.weights), getattr(torch, plan.compute)
        home: Home = TrainedHome(model, layers, kept, device, weights, compute)
    else:
        home = Home(layers, kept, device)
    home.place(model)
    if not home.pinned:
        log(
            "warning",
            message="the system refuses to pin host memory, so layers come to the GPU at about half the speed; "
            "on WSL2, raise its memory in .wslconfig",
        )
    return home if home.nbytes else None


def inspect(model, plan: Plan, log: Callable) -> Facts:
    """Finds the facts by comparing real numbers, once, before anything is changed. Raises UserError for a model that is
    not causal."""
    if problem := packed_attention.use_flash_attention_3(model.device):
        log("warning", message=problem)
    with autocast(plan):
        not_packed = packed_attention.why_not_packed(model, plan.kept_layers is None) if plan.packing else None
        packed_attention.check_causal(model)
    packing = plan.packing and not not_packed
    # Modules trained whole are in float32 among weights in 16 bits. Over float32 weights the head is found exactly.
    is_rounded = plan.weights != "float32" or plan.kept_layers is not None
    rounding = autocast(plan) if is_rounded else nullcontext()
    with rounding, nullcontext() if packing else packed_attention.default_attention(model):
        head = find_head(model, packing)
    if not_packed:
        log("warning", message=f"{not_packed}: examples are padded instead")
    if not head:
        log("warning", message="this model's output layer is not seen from outside: its logits are computed whole")
    if experts_lora.left_to_peft(model):
        log("warning", message=LEFT_TO_PEFT)
    return Facts(not_packed, head)


def transform(model, recipe: Recipe, plan: Plan, facts: Facts, log: Callable, home: Home | None = None) -> Trainable:
    """Changes a model on its device into one that trains, in one visible order. Tracing without real numbers calls this
    with given facts. Raises UserError for a setting that does not suit the model."""
    settings, problems = recipe.train, {}
    if facts.not_packed:
        plan = replace(plan, packing=False)
        packed_attention.use_default(model)
    if plan.tiled_mlp:
        problems["tiled_mlp"] = layer_transforms.tile_mlps(model)
    if plan.compile:
        problems["compile"] = layer_transforms.compile_layers(model, cache_folder() / "inductor")
    walk = None
    if home:  # a walk recomputes all layers by itself
        walk = Walk(model, home, partial(autocast, plan), plan.packing, _offload(model, plan), plan.walk_tokens)
    elif plan.gradient_checkpointing != "off":
        layer_transforms.checkpoint_layers(model, plan.gradient_checkpointing, _offload(model, plan))
    routing = Routing(model, recipe.method.router_loss)  # after the walk's trial, whose tokens no loss may count
    for name, problem in problems.items():
        if problem and getattr(settings, name) == "on":
            raise UserError(f"train.{name}: {problem}; set train.{name}: off")
        if problem:
            log("warning", message=f"train.{name} is off: {problem}")
    at_home = isinstance(home, TrainedHome)
    optimizer = HostOptimizer(model, home, settings) if at_home else build_optimizer(model, settings)
    return Trainable(model, facts.head, routing, optimizer, plan, walk)


def _offload(model, plan: Plan) -> Offload | None:
    return Offload(next(model.parameters()).device) if plan.activation_offload else None
