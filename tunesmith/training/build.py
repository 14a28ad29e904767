"""From a plan to a model that is ready to train, in one visible order."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tunesmith.data.tokenizer import Tokenizer
from tunesmith.files import cache_folder
from tunesmith.model import adapt, load
from tunesmith.plan import Plan
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.training import layer_transforms, packed_attention
from tunesmith.training.expert_routing import Routing
from tunesmith.training.loss import Head, autocast, find_head
from tunesmith.training.optimizer import build_optimizer


@dataclass
class Trainable:
    """A model ready to train on its device, and what was found out about it."""

    model: torch.nn.Module
    head: Head | None
    routing: Routing
    optimizer: torch.optim.Optimizer
    plan: Plan  # as it suits this model


def build(run: Run, plan: Plan, base: Path, device: torch.device, log) -> Trainable:
    """The recipe's model, ready to train. Raises UserError for what does not suit it."""
    return ready(trainable_model(run, plan, base).to(device), run.recipe, plan, log)


def ready(model, recipe: Recipe, plan: Plan, log) -> Trainable:
    """What a model on its device needs to train, in one visible order. Raises UserError for what does not suit it."""
    if problem := packed_attention.use_flash_attention_3(model.device):
        log("warning", message=problem)
    with autocast(plan):
        mixed = packed_attention.why_not_packed(model) if plan.packing else None
    if mixed:
        plan = replace(plan, packing=False)
        packed_attention.use_default(model)
        log("warning", message=f"{mixed}: examples are padded instead")
    with autocast(plan):
        packed_attention.check_causal(model)
    # Modules trained whole are in float32 among weights in bfloat16. Over float32 weights the head is shown exactly.
    with torch.autocast(plan.device, torch.bfloat16, enabled=plan.weights == "bfloat16"):
        head = find_head(model, plan.packing)
    if not head:
        log("warning", message="this model's output layer is not seen from outside: its logits are computed whole")
    routing = Routing(model, recipe.method.router_loss)
    for skipped in layer_transforms.apply(model, plan, recipe.train, cache_folder() / "inductor"):
        log("warning", message=skipped)
    return Trainable(model, head, routing, build_optimizer(model, recipe.train), plan)


def trainable_model(run: Run, plan: Plan, base: Path):
    """The base model as the recipe trains it, on the CPU."""
    recipe = run.recipe
    config = load.config_of(base)
    how = packed_attention.choose(config, plan.packing)
    model = load.load(recipe.model, base, getattr(torch, plan.weights), how, recipe.seed)
    tokenizer = Tokenizer.load(run.tokenizer)
    new_ids = adapt.new_token_ids(tokenizer, recipe.model.new_tokens)
    torch.manual_seed(recipe.seed)
    return adapt.adapt(model, recipe.adapter, new_ids, tokenizer.vocab_size if new_ids else 0)
