"""Layers that stay in host memory: what is learned is that of layers that stay on the device, and little is there."""

import re
import weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import simulated_gpu, tiny
from tests.conftest import slow_but
from tunesmith import train
from tunesmith.errors import UserError
from tunesmith.finetune import launch
from tunesmith.model.adapt import adapt
from tunesmith.model.load import config_of, load
from tunesmith.planner import predict
from tunesmith.recipe import Adapter, Model, Train
from tunesmith.training import distributed, packed_attention
from tunesmith.training.batch import collate
from tunesmith.training.expert_routing import Routing
from tunesmith.training.home import Home
from tunesmith.training.layer_transforms import decoder_layers, tile_mlps
from tunesmith.training.loss import find_head, total_loss
from tunesmith.training.offload import Offload
from tunesmith.training.optimizer import build_optimizer
from tunesmith.training.walk import Walk, backward, in_walks

STEPS, ROWS, MICRO = 3, 6, 2
CPU = torch.device("cpu")


def learned(
    folder,
    adapter: Adapter,
    kept: int | None,
    packed=True,
    change=None,
    offload=None,
    most_tokens=None,
    router_loss=0.0,
    **base,
):
    """Losses and trained weights after some steps of several micro-batches. `kept`: layers on the device, None: all,
    and without a walk."""
    attention = packed_attention.choose(config_of(folder), packed)
    model = load(Model(path="m", **base), folder, torch.float32, attention, 0)
    torch.manual_seed(0)
    model = adapt(model, adapter, [], 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    head = find_head(model, packed)
    if change:
        change(model)
    walk = None
    if kept is not None:
        home = Home(decoder_layers(model), [kept], CPU)
        home.place(model)
        walk = Walk(model, home, nullcontext, packed, offload, most_tokens)
    routing = Routing(model, router_loss)
    model.train()
    optimizer = build_optimizer(model, Train(learning_rate=3e-3, weight_decay=0.0))
    losses = []
    for step in range(STEPS):
        rows = rows_of(step)
        batches = [collate(rows, np.arange(n, n + MICRO), packed) for n in range(0, ROWS, MICRO)]

        def loss(batch):
            losses.append(total_loss(model, batch, head) / 100)
            return losses[-1]

        backward(
            walk,
            batches,
            loss,
            router_loss=lambda batch: routing.loss(batch, 100),
            seed=lambda batch: torch.manual_seed(batch.rows[0]),
        )
        optimizer.step()
        optimizer.zero_grad()
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return [loss.item() for loss in losses], trained


def rows_of(step: int) -> list:
    random = np.random.default_rng(step)
    return [(random.integers(5, 200, n), np.arange(n) > 3) for n in random.integers(10, 30, ROWS)]


LORA = Adapter(rank=4, alpha=8)


def same(found, expected) -> bool:
    return found[0] == expected[0] and all(torch.equal(found[1][name], tensor) for name, tensor in expected[1].items())


@pytest.mark.parametrize("name", slow_but(("llama3", "gemma3", "gpt_oss", "qwen3_moe"), tiny.FAMILIES))
def test_every_family_learns_the_same_to_the_bit(family, name):
    for packed in (True, False):
        expected = learned(family(name), LORA, None, packed)
        for kept in (0, 1):
            assert same(learned(family(name), LORA, kept, packed), expected)


@pytest.mark.parametrize("name", slow_but(("llama3",), tiny.FAMILIES))
def test_trained_layers_are_walked_as_well(family, name):
    """To the bit but for tied matrices, of which the walk adds up the gradients in another order."""
    full = Adapter(kind="full")
    losses, weights = learned(family(name), full, None)
    found, trained = learned(family(name), full, 0)
    assert found == pytest.approx(losses, abs=1e-6)
    if not config_of(family(name)).tie_word_embeddings:
        assert same((found, trained), (losses, weights))


@pytest.mark.parametrize(
    "case",
    [
        dict(adapter=Adapter(rank=4, alpha=8, dropout=0.3)),
        dict(adapter=Adapter(rank=4, alpha=8, modules_to_save=["embed_tokens", "lm_head"])),
        dict(adapter=Adapter(rank=4, alpha=8, targets=["layers.1.mlp.up_proj"])),
        dict(adapter=LORA, change=tile_mlps),
        dict(adapter=LORA, offload=Offload(CPU)),
        dict(adapter=LORA, most_tokens=50),
        dict(adapter=LORA, quantize="nf4"),
        dict(adapter=LORA, name="qwen3_moe", router_loss=0.1),
        dict(adapter=LORA, name="qwen3_moe", quantize="nf4"),
        dict(adapter=LORA, name="gpt_oss", quantize="nf4"),
    ],
    ids=lambda case: " ".join(f"{key}" for key in case if key != "adapter") or str(case["adapter"].targets),
)
def test_switches_change_nothing(family, case):
    folder = family(case.pop("name", "llama3"))
    plain = {key: value for key, value in case.items() if key not in ("offload", "most_tokens")}
    assert same(learned(folder, kept=0, **case), learned(folder, kept=None, **plain))


def test_a_walk_takes_as_many_batches_as_there_is_room_for():
    lengths = [30, 40, 10, 200, 5, 5]
    batches = [collate([(np.arange(n), np.ones(n, bool))], np.array([0]), False) for n in lengths]
    for most, expected in ((None, [lengths]), (80, [[30, 40, 10], [200], [5, 5]]), (1, [[n] for n in lengths])):
        assert [[one.input_ids_BT.numel() for one in walk] for walk in in_walks(batches, most)] == expected
    assert in_walks([], 10) == []


def test_each_layer_is_brought_twice_a_step_however_many_micro_batches(family, monkeypatch):
    folder, homes = family("llama3"), []
    opened = Home.__init__
    monkeypatch.setattr(Home, "__init__", lambda self, *given: (homes.append(self), opened(self, *given))[1])
    for micro in (1, 2, 6):
        monkeypatch.setattr("tests.training.test_walk.MICRO", micro)
        learned(folder, LORA, 0)
    first, *others = (home.brought_bytes / home.nbytes for home in homes)
    # The last layer of a forward pass is the first of the backward pass and stays; both layers fit in the two slots.
    assert others == [first, first] and first <= 2 * STEPS + 1


class Alive(TorchDispatchMode):
    """Counts the bytes on the simulated GPU that are alive, and their peak since it was last set."""

    def __init__(self):
        super().__init__()
        self.sizes, self.counts, self.peak = {}, Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, simulated_gpu.OnGpu):
                self.note(tensor.inner)
        return made

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        self.counts[storage.data_ptr()] += 1
        weakref.finalize(tensor, self.gone, storage.data_ptr())
        self.peak = max(self.peak, self.bytes)

    def gone(self, storage: int) -> None:
        self.counts[storage] -= 1

    @property
    def bytes(self) -> int:
        return sum(self.sizes[storage] for storage, count in self.counts.items() if count > 0)


def peak_on_gpu(folder: Path, layers: int, kept: int) -> tuple[int, int]:
    """Bytes on the GPU at the most in a step of three micro-batches, and bytes of a layer."""
    with simulated_gpu.played() as gpu, Alive() as alive:
        model = load(Model(path="m"), tiny.save("llama3", folder, num_hidden_layers=layers), torch.float32, None, 0)
        model = adapt(model, Adapter(rank=4, alpha=8, targets=["layers.0.mlp.up_proj"]), [], 0)
        model.config.use_cache = False
        home = Home(decoder_layers(model), [kept], gpu)
        home.place(model)
        walk = Walk(model, home, nullcontext, False, Offload(gpu))
        model.train()
        batches = [collate(rows_of(0), np.arange(n, n + MICRO), False).to(gpu) for n in range(0, ROWS, MICRO)]
        alive.peak = 0
        walk.backward(
            batches,
            loss=lambda batch: total_loss(model, batch, None),
            router_loss=lambda batch: 0.0,
            seed=lambda batch: None,
        )
        assert model.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight.grad is not None
        return alive.peak, home.nbytes // max(1, layers - kept)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, which is simulated")
def test_memory_on_the_gpu_does_not_grow_with_the_layers_that_are_away(tmp_path):
    few, layer = peak_on_gpu(tmp_path / "few", 4, 0)
    assert peak_on_gpu(tmp_path / "many", 12, 0)[0] == few
    assert peak_on_gpu(tmp_path / "kept", 12, 4)[0] == pytest.approx(few + 4 * layer, rel=0.01)


def test_a_model_whose_layers_share_more_than_the_hidden_state_is_refused(family):
    with pytest.raises(UserError, match="train.kept_layers: the layers of Gemma4ForCausalLM cannot"):
        learned(family("gemma4"), LORA, 0)


def process(folder: Path) -> None:
    """Opens a home of 64 MB and notes how much of it is this process's share of the memory."""
    distributed.join("cpu")
    layers = [torch.nn.Linear(1024, 4096, bias=False).requires_grad_(False) for _ in range(4)]
    home = Home(layers, [0] * distributed.world(), CPU)
    sums = [float(layer.weight.sum()) for layer in layers]
    distributed.wait()
    lines = Path("/proc/self/smaps").read_text().split("memfd:tunesmith")[1:]
    shares = [int(re.search(r"Pss: +(\d+) kB", text)[1]) * 1024 for text in lines]
    distributed.wait()  # all have looked before one leaves
    (folder / f"{distributed.rank()}").write_text(f"{sum(shares)} {home.nbytes} {sums}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_weights_are_in_host_memory_once(tmp_path):
    launch.launch(process, 3, tmp_path)
    shares, sizes, sums = zip(*(file.read_text().split(" ", 2) for file in tmp_path.iterdir()))
    assert set(sizes) == {str(4 * 1024 * 4096 * 4)} and len(set(sums)) == 1
    assert sum(map(int, shares)) == pytest.approx(int(sizes[0]), rel=0.01)


def test_a_run_with_layers_in_host_memory_is_the_same_run(recipe, monkeypatch):
    """Also in two processes, of which the first keeps all layers."""
    settings = {"max_steps": 4, "micro_batch": 1}
    plain = train(recipe(name="plain", train=settings))
    streamed = train(recipe(name="streamed", train=settings | {"kept_layers": 0}))
    monkeypatch.setattr(predict, "with_kept_layers", lambda plan, *_: replace(plan, kept_layers=[2, 1]))
    two = train(recipe(name="two", train=settings | {"processes": 2}))
    expected, found, of_two = ([e["loss"] for e in run.events("step")] for run in (plain, streamed, two))
    assert found == expected and of_two == pytest.approx(expected, abs=1e-5)
    assert streamed.plan.kept_layers == [0]
    first, *others = [event["brought_bytes"] for event in streamed.events("step")]
    assert first > 0 and set(others) == {0}  # both layers stay in the two slots
    assert all(event["exchange_seconds"] >= 0 and "brought_bytes" in event for event in two.events("step"))
    assert sum(event["brought_bytes"] for event in two.events("step")) < first
    assert "brought_bytes" not in plain.events("step")[0]


def test_routers_see_no_token_of_the_trial(recipe):
    """Of a run, which tries the walk before its first step."""
    asked = dict(base="qwen3_moe", data={"packing": False}, method={"name": "sft", "router_loss": 0.1})
    settings = {"max_steps": 2, "micro_batch": 4}
    plain = train(recipe(name="plain", train=settings, **asked))
    streamed = train(recipe(name="streamed", train=settings | {"kept_layers": 0}, **asked))
    expected, found = (
        [(e["loss"], e["grad_norm"], e["expert_load"]) for e in run.events("step")] for run in (plain, streamed)
    )
    assert found == expected
