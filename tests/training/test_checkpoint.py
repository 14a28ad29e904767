"""Checkpoints: what comes back is what was saved; the last few and the best stay; nothing is unpickled."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tunesmith.finetune import job, worker
from tunesmith.recipe import Train
from tunesmith.training import checkpoint
from tunesmith.training.optimizer import build_optimizer


def trained(steps: int):
    """A small model and its optimizer after some steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    optimizer = build_optimizer(model, Train())
    for step in range(steps):
        learn(model, optimizer, step)
    return model, optimizer


def learn(model, optimizer, step: int) -> None:
    torch.manual_seed(step)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder, optimizer, state: checkpoint.State) -> int:
    return checkpoint.save(folder, checkpoint.Contents.of(optimizer, state))


def test_a_loaded_optimizer_goes_on_as_the_saved_one(tmp_path):
    model, optimizer = trained(3)
    state = checkpoint.State(step=3, tokens=7, seconds=1.5, best_loss=0.1 + 0.2, best_step=2, evals_without_gain=1)
    size = save(tmp_path, optimizer, state)
    [folder] = tmp_path.iterdir()
    assert size == sum(file.stat().st_size for file in folder.iterdir())
    other, its_optimizer = trained(1)
    assert checkpoint.load(folder, its_optimizer) == state
    for step in (3, 4):
        learn(model, optimizer, step)
        learn(other, its_optimizer, step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


@settings(max_examples=30)
@given(
    steps=st.lists(st.integers(1, 2_000_000), min_size=1, max_size=8, unique=True).map(sorted),
    keep=st.integers(1, 3),
    data=st.data(),
)
def test_the_last_and_the_best_stay(tmp_path_factory, steps, keep, data):
    folder = tmp_path_factory.mktemp("checkpoints")
    best = data.draw(st.none() | st.sampled_from(steps))
    _, optimizer = trained(1)
    for step in steps:
        save(folder, optimizer, checkpoint.State(step=step))
    (folder / ".step-000009.tmp").mkdir()
    checkpoint.prune(folder, keep, best)
    left = [checkpoint.read_state(found).step for found in checkpoint.complete(folder)]
    assert left == sorted({*steps[-keep:], *([best] if best else [])})
    assert len(list(folder.iterdir())) == len(left)


def test_drafts_are_no_checkpoints(tmp_path):
    _, optimizer = trained(1)
    save(tmp_path, optimizer, checkpoint.State(step=1))
    (tmp_path / "step-000001").rename(tmp_path / ".step-000002.tmp")
    assert checkpoint.complete(tmp_path) == []
    save(tmp_path, optimizer, checkpoint.State(step=2))
    assert [found.name for found in checkpoint.complete(tmp_path)] == ["step-000002"]


def test_nothing_is_unpickled(recipe, monkeypatch):
    run = job.train(recipe(train={"max_steps": 3, "save_every": 1}))
    assert {file.suffix for file in run.checkpoints.glob("*/*")} == {".safetensors", ".json"}
    run.result.rename(run.folder / "away")

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert job.resume(run.folder).result.exists()


def test_the_best_result_is_saved_whenever_it_comes(recipe, monkeypatch):
    """The best evaluation is at step 3, between two checkpoints: its weights become the result."""
    monkeypatch.setattr(worker, "log_evaluation", lambda job, state: 1.0 if state.step == 3 else 2.0)
    run = job.train(
        recipe(
            data={"eval_share": 0.1},
            train={"max_steps": 8, "eval_every": 3, "save_every": 5, "result": "best", "keep_checkpoints": 1},
        )
    )
    assert [found.name for found in checkpoint.complete(run.checkpoints)] == ["step-000003", "step-000008"]
    result = load_file(run.result / "adapter_model.safetensors")
    for step, same in ((3, True), (8, False)):
        saved = load_file(run.checkpoints / f"step-{step:06d}" / "trained.safetensors")
        assert saved.keys() == {name.replace(".weight", ".default.weight") for name in result}
        assert all(torch.equal(result[name.replace(".default", "")], saved[name]) for name in saved) == same


@pytest.mark.parametrize(
    "reason, train",
    [
        ("done", {}),
        ("max_tokens", {"max_tokens": 300}),
        ("max_minutes", {"max_minutes": 1e-6}),
        ("early_stopping", {"patience": 2, "learning_rate": 1e-30}),
    ],
)
def test_how_a_run_ends(recipe, reason, train):
    run = job.train(recipe(data={"eval_share": 0.1}, train={"max_steps": 5, "eval_every": 1} | train))
    [stop] = run.events("stop")
    assert stop["reason"] == reason
    tokens = [event["tokens"] for event in run.events("step")]
    expected = {
        "done": 5,
        "max_minutes": 1,
        "early_stopping": 2,
        "max_tokens": next((n for n in range(1, 6) if sum(tokens[:n]) >= 300), 5),
    }
    assert stop["step"] == len(tokens) == expected[reason]
    assert run.result.exists() and run.report_file.exists()
