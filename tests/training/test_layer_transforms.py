"""What is done to decoder layers changes memory and speed, and nothing that is learned."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests import tiny
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.machine import Gpu, Machine
from tunesmith.model import adapt
from tunesmith.model.load import load
from tunesmith.planner.decide import choose
from tunesmith.recipe import Adapter, Model, Recipe
from tunesmith.training import attention_kernels, packed_attention
from tunesmith.training.batch import collate
from tunesmith.training.build import Facts, transform
from tunesmith.training.layer_transforms import checkpoint_layers, compile_layers, decoder_layers, tile_mlps
from tunesmith.training.loss import find_head, total_loss
from tunesmith.training.offload import Offload

BOUND = 1e-5
DENSE = [name for name in tiny.FAMILIES if name not in tiny.MOE_FAMILIES]
CPU = torch.device("cpu")
GPU = Gpu(0, "a GPU", 2**34, 2**34, (8, 6))


@pytest.fixture
def build(family):
    """Gives a model that trains."""

    def make(name: str, **adapter):
        model = load(Model(path="m"), family(name), torch.float32, packed_attention.NAME, 0)
        torch.manual_seed(0)
        return adapt.adapt(model, Adapter(**{"rank": 4, "alpha": 8} | adapter), [], 0).train()

    return make


def batches(count: int) -> list:
    """Packed examples, another number of tokens each time."""
    random = np.random.default_rng(0)
    rows = [(random.integers(5, 300, n), np.arange(n) > 3) for n in random.integers(20, 60, 4 * count)]
    return [collate(rows, np.arange(4 * i, 4 * i + 4), packed=True) for i in range(count)]


def mean_loss(model, batch) -> torch.Tensor:
    return total_loss(model, batch, find_head(model, batch.packed)) / batch.supervised_tokens


def gradients(model, batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mean_loss(model, batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", DENSE)
def test_tiles_give_the_same_gradients(build, name):
    [batch] = batches(1)
    plain, tiled = (build(name, kind="full").double() for _ in range(2))
    assert tile_mlps(tiled) is None
    assert batch.input_ids_BT.shape[1] > 2 * tiled.config.hidden_size  # three tiles
    expected, found = gradients(plain, batch), gradients(tiled, batch)
    assert expected.keys() == found.keys()
    for parameter in expected:
        assert (expected[parameter] - found[parameter]).abs().max() < 1e-12, parameter


@pytest.mark.parametrize("how", ["on", "selective", 0.5])
@pytest.mark.parametrize("offload", [None, Offload(CPU)])
def test_recomputing_draws_the_same_dropout(build, how, offload):
    [batch] = batches(1)
    plain, changed = build("llama3", dropout=0.3), build("llama3", dropout=0.3)
    checkpoint_layers(changed, how, offload)
    expected, found = gradients(plain, batch), gradients(changed, batch)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_selective_computes_no_scores_again_but_in_the_gradient(build, monkeypatch):
    [batch] = batches(1)
    monkeypatch.setattr(attention_kernels, "KEPT_LENGTH", 0)
    probabilities, calls = attention_kernels._probabilities, []
    monkeypatch.setattr(attention_kernels, "_probabilities", lambda *args: calls.append(1) or probabilities(*args))
    found, counts = [], []
    for how in ("off", "selective"):
        model = build("gemma2")
        checkpoint_layers(model, how)
        found.append(gradients(model, batch))
        counts.append(len(calls))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert counts[1] == 2 * counts[0]


def test_offload_sends_the_hidden_states_alone(build):
    [batch] = batches(1)
    model, offload = build("llama3"), Offload(CPU)
    checkpoint_layers(model, "on", offload)
    gradients(model, batch)
    tokens, width = batch.input_ids_BT.shape[1], model.config.hidden_size
    assert offload.sent_bytes == 4 * tokens * width * len(decoder_layers(model))


def test_offload_in_pieces_gives_the_same_gradients(build, monkeypatch):
    monkeypatch.setattr("tunesmith.training.offload.PIECE_BYTES", 1000)  # no whole number of rows
    [batch] = batches(1)
    plain, changed = build("llama3"), build("llama3")
    checkpoint_layers(plain, "on")
    checkpoint_layers(changed, "on", Offload(CPU))
    expected, found = gradients(plain, batch), gradients(changed, batch)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offload_on_a_gpu_gives_the_same_gradients(build):
    gpu = torch.device("cuda")
    [batch] = [b.to(gpu) for b in batches(1)]
    plain, changed = build("llama3").to(gpu), build("llama3").to(gpu)
    checkpoint_layers(plain, "on")
    checkpoint_layers(changed, "on", Offload(next(changed.parameters()).device))
    expected, found = gradients(plain, batch), gradients(changed, batch)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def kept_bytes(model, batch) -> list[int]:
    """What each decoder layer keeps for the backward pass, outside of what it recomputes."""
    kept, current = [0] * len(decoder_layers(model)), [None]

    def pack(tensor):
        if current[0] is not None and not isinstance(tensor, torch.nn.Parameter):
            kept[current[0]] += tensor.nbytes
        return tensor

    for i, layer in enumerate(decoder_layers(model)):
        layer.register_forward_pre_hook(lambda *_, i=i: current.__setitem__(0, i))
        layer.register_forward_hook(lambda *_: current.__setitem__(0, None))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mean_loss(model, batch)
    return kept


@pytest.mark.parametrize("how", ["off", "on", "selective"])
def test_layers_below_what_trains_keep_nothing(build, how):
    [batch] = batches(1)
    model = build("llama3", targets=r".*\.layers\.1\..*_proj")
    checkpoint_layers(model, how)
    lower, upper = kept_bytes(model, batch)
    assert lower == 0 < upper


def test_checkpointing_may_be_changed_in_the_middle(build):
    [batch] = batches(1)
    model = build("llama3")
    off = kept_bytes(model, batch)
    checkpoint_layers(model, "on")
    on = kept_bytes(model, batch)
    checkpoint_layers(model, 0.5)
    half = kept_bytes(model, batch)
    checkpoint_layers(model, "off")
    assert kept_bytes(model, batch) == off
    assert sum(on) < sum(off) / 10 and half == [off[0], on[1]]


@pytest.mark.parametrize("name", tiny.MOE_FAMILIES)
def test_experts_are_refused_by_name(build, name, tmp_path):
    model, warnings = build(name), []
    plan = SimpleNamespace(tiled_mlp=True, compile=False, gradient_checkpointing="off")

    def transformed(**train):
        recipe = Recipe.build({"model": "m", "data": "d", "train": train})
        transform(model, recipe, plan, Facts(None, None), lambda event, message: warnings.append(message))

    with pytest.raises(UserError, match="train.tiled_mlp: [A-Za-z0-9]+ForCausalLM has layers"):
        transformed(tiled_mlp="on")
    transformed()
    assert len(warnings) == 1 and "train.tiled_mlp is off" in warnings[0]
    assert "experts" in compile_layers(model, tmp_path)


def planned(compiles_cpp: bool = True, gpus: tuple = (), **asked):
    machine = Machine("", "", 2, 2**34, 2**34, 2**34, False, compiles_cpp=compiles_cpp, gpus=list(gpus))
    return choose(Recipe.build({"model": {"path": "m"}, "data": {"train": "d"}, "train": asked}), machine)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("without a GPU", {"activation_offload": True}),
        ("what checkpointing keeps", {"activation_offload": True, "gradient_checkpointing": "off", "gpus": (GPU,)}),
        ("C\\+\\+ compiler", {"compile": "on", "compiles_cpp": False}),
        ("selective would keep", {"compile": "on", "gradient_checkpointing": "selective"}),
        ("number of tiles", {"compile": "on", "tiled_mlp": "on"}),
    ],
)
def test_what_has_no_use_or_does_not_go_together_is_refused(said, asked):
    with pytest.raises(UserError, match=said):
        planned(**asked)


def test_offload_brings_checkpointing_and_long_passes_bring_tiles():
    assert planned(activation_offload=True, gpus=(GPU,)).gradient_checkpointing == "on"
    assert [planned(micro_batch=n).tiled_mlp for n in (15, 16)] == [False, True]


def test_yaml_switches_are_read_as_words():
    values = {"model": {"path": "m"}, "data": {"train": "d"}}
    for given, read in ((True, "on"), (False, "off"), ("selective", "selective"), (0.25, 0.25), ("0.25", 0.25)):
        asked = Recipe.build(values | {"train": {"gradient_checkpointing": given}})
        assert asked.train.gradient_checkpointing == read


def test_a_run_with_all_of_it_is_the_same_run(recipe):
    quick = {"max_steps": 5}
    switches = quick | {"gradient_checkpointing": 0.5, "tiled_mlp": "on"}
    runs = [train(recipe(name=f"{i}", train=settings)) for i, settings in enumerate((quick, switches))]
    first, second = ([e["loss"] for e in run.events("step")] for run in runs)
    assert first == pytest.approx(second, abs=BOUND)


def test_checkpointing_more_layers_later_keeps_the_offload(build):
    """As the ladder does when a step does not fit."""
    model, offload = build("llama3"), Offload(CPU)
    checkpoint_layers(model, 0.5, offload)
    checkpoint_layers(model, "on")
    assert all(layer.forward.offload is offload for layer in decoder_layers(model))
