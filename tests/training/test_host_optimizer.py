"""Full fine-tuning with weights, gradients and moments in host memory: the same run as with all of it on the device."""

import math
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import simulated_gpu, tiny
from tests.conftest import slow_but
from tests.finetune.test_resume import interrupt_at
from tests.training.test_walk import CPU, MICRO, ROWS, Alive, rows_of
from tunesmith import resume, train
from tunesmith.errors import Interrupted
from tunesmith.finetune import launch
from tunesmith.model.adapt import adapt
from tunesmith.model.load import config_of, load
from tunesmith.recipe import Adapter, Model, Train
from tunesmith.training import checkpoint, distributed, optimizer_parts, packed_attention
from tunesmith.training.batch import collate
from tunesmith.training.home import TrainedHome
from tunesmith.training.host_gradients import HostGradients
from tunesmith.training.host_optimizer import HostOptimizer
from tunesmith.training.layer_transforms import decoder_layers
from tunesmith.training.loss import total_loss
from tunesmith.training.offload import Offload
from tunesmith.training.optimizer import build_optimizer
from tunesmith.training.walk import Walk, backward

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
PRECISIONS = {
    "float32": (FLOAT32, FLOAT32),
    "mixed": (FLOAT32, BFLOAT16),
    "bfloat16": (BFLOAT16, BFLOAT16),
    "float16": (FLOAT32, FLOAT16),
}
FULL = Adapter(kind="full")
UNTIED = ("llama3", "mistral", "phi3", "olmo2", "qwen3_moe", "mixtral", "olmoe", "gpt_oss")


class Learner:
    """A model that trains whole, without a home if `kept` is None."""

    def __init__(self, folder: Path, kept: int | None, precision: str = "float32", optimizer: str = "adamw"):
        weights, compute = PRECISIONS[precision]
        attention = packed_attention.choose(config_of(folder), True)
        self.model = adapt(load(Model(path="m"), folder, weights, attention, 0), FULL, [], 0)
        self.cast = partial(torch.autocast, "cpu", compute) if compute != FLOAT32 else nullcontext
        settings = Train(learning_rate=3e-3, optimizer=optimizer, weight_decay=0.1)
        self.walk = None
        if kept is None:
            self.optimizer = build_optimizer(self.model, settings)
        else:
            home = TrainedHome(self.model, decoder_layers(self.model), [kept], CPU, weights, compute)
            home.place(self.model)
            self.walk = Walk(self.model, home, self.cast, True)
            self.optimizer = HostOptimizer(self.model, home, settings)
        self.model.train()

    def learn(self, steps: range, loss_scale: float = 1.0) -> list[float]:
        """Losses of micro-batches, and norms of gradients, which are clipped. A step that is not finite is skipped."""
        found = []

        def loss(batch):
            with self.cast():
                total = total_loss(self.model, batch, None) / 100
            found.append(total.item())
            return total * loss_scale

        for step in steps:
            rows = rows_of(step)
            batches = [collate(rows, np.arange(n, n + MICRO), True) for n in range(0, ROWS, MICRO)]
            backward(self.walk, batches, loss, lambda batch: 0.0, lambda batch: torch.manual_seed(batch.rows[0]))
            norm = self.optimizer.clip(0.05, loss_scale)
            found.append(norm if math.isfinite(norm) else math.inf)
            if math.isfinite(norm):
                self.optimizer.step((0, step))
                self.optimizer.zero_grad()
            else:
                self.optimizer.skip()
        return found

    @property
    def contents(self) -> dict[str, torch.Tensor]:
        """Weights and moments, as a checkpoint has them."""
        found = checkpoint.Contents.of(self.optimizer, checkpoint.State())
        return {
            k: t.detach().clone()
            for k, t in (found.trained | {f"{k} moment": t for k, t in found.moments.items()}).items()
        }


def assert_same(one: Learner, other: Learner, steps: range, loss_scale: float = 1.0) -> None:
    assert one.learn(steps, loss_scale) == other.learn(steps, loss_scale)
    contents, expected = one.contents, other.contents
    assert contents.keys() == expected.keys()
    assert all(torch.equal(contents[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("name", "precision"),
    slow_but([("llama3", "mixed"), ("mixtral", "mixed")], [(name, p) for name in UNTIED for p in PRECISIONS]),
)
def test_every_family_learns_the_same_to_the_bit(family, name, precision):
    for kept in (0, 1):
        assert_same(Learner(family(name), kept, precision), Learner(family(name), None, precision), range(3))


@pytest.mark.parametrize("kept", slow_but([0], [0, 1]))
def test_a_scaled_loss_learns_the_same_to_the_bit(family, kept):
    """Among steps whose gradients overflow, and are skipped."""
    home, plain = Learner(family("llama3"), kept, "float16"), Learner(family("llama3"), None, "float16")
    unscaled = Learner(family("llama3"), kept, "float16").learn(range(1))
    for step, loss_scale in enumerate((2.0**60, 2.0**12, 2.0**60, 2.0**12)):
        assert_same(home, plain, range(step, step + 1), loss_scale)
    again = Learner(family("llama3"), kept, "float16").learn(range(1), 2.0**12)
    assert again == pytest.approx(unscaled, rel=2**-8)  # norms and losses are without the scale


@pytest.mark.parametrize("optimizer", slow_but(["adafactor"], ["adamw_8bit", "adafactor", "muon"]))
def test_every_optimizer_learns_the_same_to_the_bit(family, monkeypatch, optimizer):
    """In parts of a few matrices."""
    if optimizer.endswith("_8bit"):
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(optimizer_parts, "CHUNK_ELEMENTS", 5000)
    for precision in ("mixed", "bfloat16"):
        made = [Learner(family("llama3"), kept, precision, optimizer) for kept in (0, None)]
        assert_same(*made, range(3))


@pytest.mark.parametrize("name", slow_but(("qwen2",), sorted({*tiny.FAMILIES} - {*UNTIED})))
def test_tied_matrices_learn_the_same_to_rounding(family, name):
    """The walk adds up the gradients of head and embedding in another order."""
    home, plain = (Learner(family(name), kept) for kept in (0, None))
    assert home.learn(range(3)) == pytest.approx(plain.learn(range(3)), abs=1e-5)


@pytest.mark.parametrize("optimizer", slow_but(["adamw"], ["adamw", "adafactor"]))
def test_a_checkpoint_goes_on_anywhere(family, tmp_path, optimizer):
    """Saved with weights at home and loaded without, and the other way round."""
    for kept in (0, None):
        first = Learner(family("llama3"), kept, "mixed", optimizer)
        first.learn(range(2))
        checkpoint.save(tmp_path, checkpoint.Contents.of(first.optimizer, checkpoint.State(step=2)))
        others = [Learner(family("llama3"), other, "mixed", optimizer) for other in (0, 1, None)]
        for other in others:
            checkpoint.load(tmp_path / "step-000002", other.optimizer)
        losses = first.learn(range(2, 4))
        for other in others:
            assert other.learn(range(2, 4)) == losses
            assert all(torch.equal(other.contents[name], tensor) for name, tensor in first.contents.items())


def test_a_run_is_the_same_run_to_the_byte(recipe):
    """Evaluated on the way, interrupted and resumed."""
    asked = dict(adapter={"kind": "full"}, data={"eval_share": 0.1}, evaluate={"samples": 1})
    settings = {"max_steps": 6, "save_every": 2, "eval_every": 3, "result": "best"}
    plain = train(recipe(name="plain", train=settings, **asked))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(Interrupted):
            train(recipe(name="away", train=settings | {"kept_layers": 0}, **asked))
    away = resume(plain.folder.parent / "away")
    for kind in ("step", "eval"):
        expected, found = ([(e["step"], e["loss"]) for e in run.events(kind)] for run in (plain, away))
        assert found == expected
    assert plain.eval_file.read_bytes() == away.eval_file.read_bytes()
    expected, found = (load_file(run.result / "model.safetensors") for run in (plain, away))
    assert expected.keys() == found.keys() and all(torch.equal(found[name], t) for name, t in expected.items())


def test_a_step_that_runs_out_of_memory_in_its_backward_pass_is_learned_once(recipe, monkeypatch):
    """Its last layer's gradients are delivered by then."""
    asked = dict(adapter={"kind": "full"}, train={"max_steps": 4, "kept_layers": 0, "micro_batch": 4})
    expected = train(recipe(name="whole", **asked))
    collect, calls = HostGradients.collect, []

    def fail_once(self, group):
        calls.append(group)
        if self.are_wanted and calls.count(0) == 3:
            calls.append(0)
            raise torch.OutOfMemoryError("injected")
        collect(self, group)

    monkeypatch.setattr(HostGradients, "collect", fail_once)
    found = train(recipe(name="repeated", **asked))
    assert len(found.events("warning")) == len(expected.events("warning")) + 1
    for value in ("loss", "grad_norm"):
        assert [e[value] for e in found.events("step")] == pytest.approx([e[value] for e in expected.events("step")])


@pytest.mark.parametrize(
    ("change", "bound"),
    [({}, 1e-5), pytest.param({"weights": "bfloat16", "optimizer": "adafactor"}, 0.02, marks=pytest.mark.slow)],
    ids=["float32", "bfloat16"],
)
def test_two_processes_learn_what_one_does(recipe, change, bound):
    """Also in bfloat16, of which a weight is rounded alike whichever process updates it."""
    asked = dict(adapter={"kind": "full"}, model={"dtype": "auto"} if change else {})
    settings = {"max_steps": 4, "micro_batch": 1} | change
    one = train(recipe(name="one", train=settings, **asked))
    two = train(recipe(name="two", train=settings | {"kept_layers": 1, "processes": 2}, **asked))
    for value in ("loss", "grad_norm"):
        expected, found = ([event[value] for event in run.events("step")] for run in (one, two))
        assert found == pytest.approx(expected, rel=bound)
    assert two.plan.kept_layers == [1, 1]


def process(folder: Path, base: Path) -> None:
    """Trains in one of several processes, of which the last has no micro-batch."""
    distributed.join("cpu")
    rank, world = distributed.rank(), distributed.world()
    model = adapt(load(Model(path="m"), base, FLOAT32, None, 0), FULL, [], 0)
    home = TrainedHome(model, decoder_layers(model), [0] * world, CPU, FLOAT32, FLOAT32)
    home.place(model)
    walk = Walk(model, home, nullcontext, False)
    optimizer = HostOptimizer(model, home, Train(learning_rate=3e-3, optimizer="adafactor"))
    norms = []
    for step in range(3):
        rows = rows_of(step)
        places = np.array_split(np.arange(ROWS), world - 1)[rank] if rank < world - 1 else []
        batches = [collate(rows, np.array([place]), False) for place in places]
        walk.backward(
            batches, lambda batch: total_loss(model, batch, None) / 100, lambda batch: 0.0, lambda batch: None
        )
        norms.append(optimizer.clip(0.05))
        optimizer.step((0, step))
    names = [name for name, state in optimizer.states().items() if state]
    shares = re.findall(r"memfd:tunesmith.*?Pss: +(\d+) kB", Path("/proc/self/smaps").read_text(), re.S)
    distributed.wait()  # all have looked before one leaves
    torch.save((norms, optimizer.weights(), names, sum(map(int, shares)) * 1024), folder / f"{rank}.pt")


@pytest.mark.slow
def test_processes_sum_in_the_order_of_ranks_and_hold_all_once(family, tmp_path):
    found = []
    for attempt in ("first", "again"):
        folder = tmp_path / attempt
        folder.mkdir()
        launch.launch(process, 3, folder, family("llama3"))
        found += [torch.load(file) for file in sorted(folder.iterdir())]
    for norms, weights, names, _ in found:
        assert norms == found[0][0] and set(names) == set(weights)
        assert all(torch.equal(weights[name], tensor) for name, tensor in found[0][1].items())
    needed = sum(tensor.nbytes for tensor in found[0][1].values()) * 2  # with gradients; Adafactor's moments are small
    assert sum(share for *_, share in found[:3]) == pytest.approx(needed, rel=0.1)


def peak_on_gpu(folder: Path, layers: int) -> int:
    """Bytes on the simulated GPU at the most in two steps, updates among them, without the norm of each parameter."""
    with simulated_gpu.played() as gpu, Alive() as alive:
        model = load(Model(path="m"), tiny.save("llama3", folder, num_hidden_layers=layers), FLOAT32, None, 0)
        model = adapt(model, FULL, [], 0)
        model.config.use_cache = False
        home = TrainedHome(model, decoder_layers(model), [0], gpu, FLOAT32, FLOAT32)
        home.place(model)
        walk = Walk(model, home, nullcontext, False, Offload(gpu))
        optimizer = HostOptimizer(model, home, Train())
        model.train()
        alive.peak = 0
        for step in range(2):
            batches = [collate(rows_of(step), np.arange(n, n + MICRO), False).to(gpu) for n in range(0, ROWS, MICRO)]
            walk.backward(batches, lambda b: total_loss(model, b, None), lambda b: 0.0, lambda b: None)
            optimizer.clip(1.0)
            optimizer.step((0, step))
        assert {tensor.device.type for tensor in optimizer.weights().values()} == {"cpu"}
        return alive.peak - 4 * len(optimizer.weights())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU, which is simulated")
def test_memory_on_the_gpu_does_not_grow_with_the_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizer_parts, "CHUNK_ELEMENTS", 5000)
    assert peak_on_gpu(tmp_path / "few", 4) == peak_on_gpu(tmp_path / "many", 8)
