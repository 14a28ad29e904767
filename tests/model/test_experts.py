"""MoE models: adapters reach the experts and not the routers, open in PEFT and merge; routing is recorded."""

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests import tiny
from tests.conftest import slow_but
from tests.model.test_result import QUICK, logits, trained_logits
from tests.training.test_reference import losses
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.export.export import export
from tunesmith.model.experts import routers
from tunesmith.training.batch import collate
from tunesmith.training.build import adapt_model, load_model
from tunesmith.training.expert_routing import Routing
from tunesmith.training.layer_transforms import checkpoint_layers

IDS = torch.arange(5, 29)[None]


def trained_names(run) -> set[str]:
    model = adapt_model(run, load_model(run, run.plan, run.base))
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("name", "kind"),
    slow_but(
        [("mixtral", "none"), ("gpt_oss", "nf4")],
        [(name, kind) for name in tiny.MOE_FAMILIES for kind in ("none", "nf4")],
    ),
)
def test_adapters_of_experts_open_and_merge(recipe, tmp_path, name, kind):
    run = train(recipe(name, model={"quantize": kind}, train=QUICK))
    opened = logits(AutoPeftModelForCausalLM.from_pretrained(run.result), IDS)
    if kind == "none":
        assert torch.allclose(opened, trained_logits(run, IDS), atol=1e-5)
    export(run, "merged", tmp_path / "merged")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), IDS), opened, atol=1e-4)
    assert (opened - logits(AutoModelForCausalLM.from_pretrained(run.base), IDS)).abs().max() > 0.1


@pytest.mark.parametrize("name", tiny.MOE_FAMILIES)
@pytest.mark.parametrize(
    ("adapter", "experts", "router"),
    [
        ({}, True, False),
        ({"experts": False}, False, False),
        ({"router": True}, True, True),
        ({"targets": ["q_proj", "v_proj"]}, False, False),
    ],
)
def test_what_all_linear_reaches(recipe, name, adapter, experts, router):
    run = train(recipe(name, adapter=adapter, train={"max_steps": 1}))
    names = trained_names(run)
    assert any("q_proj" in n for n in names)
    assert any("experts" in n for n in names) == experts
    assert any("gate.lora" in n or "router.lora" in n for n in names) == router
    ranks = {
        p.shape[0]
        for n, p in adapt_model(run, load_model(run, run.plan, run.base)).named_parameters()
        if "experts" in n and "lora_A" in n
    }
    assert ranks == ({4 * 4} if experts else set())  # of 4 experts, the same in both matrices


def test_activation_checkpointing_changes_no_loss(recipe):
    runs = [
        train(recipe("qwen3_moe", mode, model={"quantize": "nf4"}, train=QUICK | {"gradient_checkpointing": mode}))
        for mode in ("on", "off")
    ]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-6)


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_recomputing_keeps_nothing_of_the_routers(family, coefficient):
    """The graph of a router's output would keep all activations before it in the layer."""
    model = AutoModelForCausalLM.from_pretrained(family("qwen3_moe")).train()
    checkpoint_layers(model, "on")
    routing = Routing(model, coefficient)
    ids = torch.arange(40)[None]
    batch = collate([(ids[0].numpy(), np.ones(40, bool))], np.arange(1), True)
    seen = []
    for module, _ in routers(model).values():
        module.register_forward_hook(lambda module, inputs, out: seen.append(torch._C._current_graph_task_id()))
    loss = model(input_ids=ids, labels=ids).loss
    (loss + routing.loss(batch, 40)).backward()
    assert max(seen) >= 0 and not routing._logits  # they were recomputed
    assert len(routing.load()["expert_load"]) == len(routers(model))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"dora": True}}, "adapter.dora: PEFT supports it for linear modules"),
        ({"adapter": {"dropout": 0.1}}, "adapter.dropout: PEFT supports it for linear modules"),
        ({"model": {"quantize": "int8"}}, "model.quantize: int8 does not apply to experts"),
    ],
)
def test_impossible_settings_are_refused(recipe, changes, said):
    with pytest.raises(UserError, match=said):
        train(recipe("qwen3_moe", train=QUICK, **changes))


@pytest.mark.parametrize("name", tiny.MOE_FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
def test_router_loss_is_that_of_transformers_layer_by_layer(family, name, packed):
    model = AutoModelForCausalLM.from_pretrained(family(name)).train()
    seen = {}
    for key, (module, index) in routers(model).items():
        module.register_forward_hook(lambda m, i, out, key=key, index=index: seen.update({key: out[index]}))
    routing = Routing(model, 0.5)
    ids = torch.randint(5, 300, (1, 16) if packed else (2, 8), generator=torch.Generator().manual_seed(0))
    lengths = [10, 6] if packed else [8, 5]
    model(input_ids=ids)
    mask = None if packed else torch.arange(8) < torch.tensor(lengths)[:, None]
    expected = torch.stack([load_balancing_loss_func((layer,), 4, 2, mask) for layer in seen.values()]).mean()
    pieces = ids[0].split(lengths) if packed else [row[:length] for row, length in zip(ids, lengths)]
    batch = collate([(piece.numpy(), np.ones(len(piece), bool)) for piece in pieces], np.arange(2), packed)
    found = routing.loss(batch, step_tokens=2 * sum(lengths))
    assert len(seen) == 2 and torch.allclose(found, 0.5 * expected / 2)
    found.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.startswith("model.layers.0.self_attn.q"))
    [load] = routing.load().values()
    assert len(load) == 2 and all(1 <= value <= 4 for value in load) and not routing.load()


def test_routers_that_give_probabilities_have_the_loss_of_their_logits(recipe, family):
    model = AutoModelForCausalLM.from_pretrained(family("gemma4_moe")).train()
    logits = []
    for layer in model.model.layers:
        layer.router.proj.register_forward_hook(lambda module, inputs, output: logits.append(output))
    routing = Routing(model, 0.5)
    ids = torch.randint(5, 300, (1, 16), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids)
    expected = torch.stack([load_balancing_loss_func((layer,), 4, 2) for layer in logits]).mean()
    found = routing.loss(collate([(ids[0].numpy(), np.ones(16, bool))], np.arange(1), True), step_tokens=16)
    assert len(logits) == 2 and torch.allclose(found, 0.5 * expected)
    run = train(recipe("gemma4_moe", train=QUICK))
    assert all(1 <= load <= 4 for event in run.events("step") for load in event["expert_load"])


def test_router_loss_needs_routers(family):
    model = AutoModelForCausalLM.from_pretrained(family("llama3"))
    with pytest.raises(UserError, match="method.router_loss: this model has no experts"):
        Routing(model, 0.1)
    assert Routing(model, 0.0).loss(None, 1) == 0.0
