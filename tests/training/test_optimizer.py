"""The optimizers against arithmetic written out here, and a resumed run against one that was never stopped."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.finetune.test_resume import happened, interrupt_at
from tunesmith.errors import Interrupted, UserError
from tunesmith.finetune import job
from tunesmith.planner import decide
from tunesmith.recipe import Train
from tunesmith.training import checkpoint
from tunesmith.training.optimizer import build_optimizer

RUNNABLE = ["adamw", "adamw_8bit", "adafactor", "muon"]
RATE = 1e-3


def settings(name: str, **others) -> Train:
    if name.endswith("_8bit"):
        pytest.importorskip("bitsandbytes")
    return Train(optimizer=name, learning_rate=RATE, weight_decay=0.0, **others)


def learn(model, optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    ids_BT = torch.randint(0, 300, (8, 64))  # more tokens than any matrix has rank
    model(input_ids=ids_BT, labels=ids_BT).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def changes(model, optimizer) -> dict[str, torch.Tensor]:
    """What the first step does to each parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(model, optimizer, 0)
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


@pytest.fixture
def model(family):
    def build(dtype=torch.float32):
        return AutoModelForCausalLM.from_pretrained(family("llama3"), dtype=dtype)

    return build


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_learning_rate_means_the_same_with_each(model, name):
    """The root mean square of a matrix' first update, which is the learning rate itself with AdamW."""
    base = model()
    for parameter, change in changes(base, build_optimizer(base, settings(name))).items():
        if "layers" in parameter and change.ndim == 2:
            assert 0.15 * RATE < change.square().mean().sqrt() < 1.01 * RATE, parameter


def test_adafactor_is_the_papers():
    """Shazeer & Stern 2018, algorithm 4, with an absolute step; gradients as small as a large model's."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(30, 20, bias=False)
    before, optimizer = layer.weight.detach().double(), build_optimizer(layer, settings("adafactor"))
    row, column = torch.zeros(20, 1).double(), torch.zeros(1, 30).double()
    for step in range(1, 6):
        layer.weight.grad = torch.randn(20, 30) * 1e-6
        squared = layer.weight.grad.double().square()
        keep = 1 - step**-0.8
        row = keep * row + (1 - keep) * squared.mean(1, keepdim=True)
        column = keep * column + (1 - keep) * squared.mean(0, keepdim=True)
        update = layer.weight.grad.double() / (row * column / row.mean()).sqrt()
        before -= RATE * update / update.square().mean().sqrt().clamp(min=1)
        optimizer.step()
    assert torch.allclose(layer.weight.double(), before, atol=1e-7)


def test_muon_turns_hidden_matrices_and_leaves_the_rest_to_adamw(model):
    """A hidden matrix moves by a matrix whose singular values are about alike; the rest as AdamW alone moves it."""
    base, other = model(), model()
    found = changes(base, build_optimizer(base, settings("muon")))
    adamw = changes(other, build_optimizer(other, settings("adamw")))
    for name, change in found.items():
        if "layers" in name and change.ndim == 2:
            singular = torch.linalg.svdvals(change) / (0.2 * RATE * max(change.shape) ** 0.5)
            assert singular.max() < 1.4 and singular.median() > 0.6, name
        else:
            assert torch.equal(change, adamw[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_loaded_optimizer_goes_on_as_the_saved_one(model, tmp_path, name, dtype):
    base, other = model(dtype), model(dtype)
    optimizer, its_optimizer = (build_optimizer(m, settings(name)) for m in (base, other))
    for step in range(3):
        learn(base, optimizer, step)
    checkpoint.save(tmp_path, checkpoint.Contents.of(optimizer, checkpoint.State(step=3)))
    checkpoint.load(tmp_path / "step-000003", its_optimizer)
    for step in (3, 4):
        learn(base, optimizer, step)
        learn(other, its_optimizer, step)
    assert all(p.dtype == dtype for p in base.parameters())
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), other.parameters()))


@pytest.mark.filterwarnings("ignore:Paged optimizers")  # pages are a GPU's; elsewhere it is plain memory
def test_paged_moments_come_back(model, tmp_path):
    base, other = model(), model()
    optimizer, its_optimizer = (build_optimizer(m, settings("paged_adamw_8bit")) for m in (base, other))
    learn(base, optimizer, 0)
    checkpoint.save(tmp_path, checkpoint.Contents.of(optimizer, checkpoint.State(step=1)))
    checkpoint.load(tmp_path / "step-000001", its_optimizer)
    for m, o in ((base, optimizer), (other, its_optimizer)):
        learn(m, o, 1)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("name", "kind", "weights"),
    [("adamw_8bit", "lora", "auto"), ("muon", "lora", "auto"), ("adafactor", "full", "bfloat16")],
)
def test_an_interrupted_run_is_the_same_run(recipe, monkeypatch, name, kind, weights):
    settings(name)  # skips where it cannot run
    asked = [
        recipe(
            name=run,
            model={"dtype": "auto"} if weights == "bfloat16" else {},
            adapter={"kind": kind, "dropout": 0.1},
            train={"optimizer": name, "weights": weights, "max_steps": 5, "save_every": 1},
        )
        for run in ("whole", "interrupted")
    ]
    whole = job.train(asked[0])
    interrupt_at(monkeypatch, 3)
    with pytest.raises(Interrupted):
        job.train(asked[1])
    monkeypatch.undo()
    assert happened(job.resume(asked[1].output / "interrupted")) == happened(whole)


def test_what_cannot_run_is_refused_before_it_runs(recipe, monkeypatch):
    with pytest.raises(UserError, match="train.optimizer: paged_adamw_8bit .* no GPU; use adamw_8bit"):
        job.train(recipe(train={"optimizer": "paged_adamw_8bit"}))
    monkeypatch.setattr(decide, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"train.optimizer: adamw_8bit needs bitsandbytes; pip install 'tunesmith\[bnb\]'"
    ):
        job.train(recipe(train={"optimizer": "adamw_8bit"}))
