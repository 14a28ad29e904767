"""Checkpoints written in the background hold what was, in order, and hide no error."""

import threading

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_checkpoint import trained
from tunesmith.finetune import job
from tunesmith.training import checkpoint, checkpoint_writer, loop

PATIENCE_SECONDS = 60


@pytest.fixture
def made(tmp_path):
    """A saver, what it logged, and what it saves."""
    events = []
    model, optimizer = trained(2)
    return (
        checkpoint_writer.Saver(tmp_path, 2, lambda event, **values: events.append((event, values))),
        events,
        model,
        optimizer,
    )


@pytest.fixture
def held_back(monkeypatch):
    """Lets no checkpoint be written before it is set."""
    free, save = threading.Event(), checkpoint.save

    def wait_and_save(folder, contents):
        assert free.wait(PATIENCE_SECONDS)
        return save(folder, contents)

    monkeypatch.setattr(checkpoint, "save", wait_and_save)
    return free


def test_what_is_written_is_what_was(made, held_back, tmp_path):
    """Training changes weights, moments and state while the checkpoint is written."""
    writer, events, model, optimizer = made
    state = checkpoint.State(step=1, tokens=5, best_step=1)
    weights = {name: p.detach().clone() for name, p in optimizer.weights().items()}
    moments = {name: t.clone() for name, t in checkpoint.Contents.of(optimizer, state).moments.items()}
    with writer:
        writer.save(optimizer, state)
        assert not list(tmp_path.iterdir())
        for tensor in (*model.parameters(), *checkpoint.Contents.of(optimizer, state).moments.values()):
            tensor.detach().fill_(7)
        state.step, state.tokens = 2, 9
        held_back.set()
    folder = tmp_path / "step-000001"
    for saved, expected in (
        (load_file(folder / "trained.safetensors"), weights),
        (load_file(folder / "optimizer.safetensors"), moments),
    ):
        assert saved.keys() == expected.keys() and all(torch.equal(saved[k], expected[k]) for k in saved)
    assert checkpoint.read_state(folder) == checkpoint.State(step=1, tokens=5, best_step=1)
    [(event, values)] = events
    assert (event, values["step"], values["best"]) == ("checkpoint", 1, True)


def test_each_waits_for_the_one_before(made, tmp_path):
    writer, events, _, optimizer = made
    with writer:
        for step in range(1, 6):
            writer.save(optimizer, checkpoint.State(step=step, best_step=1))
            assert [values["step"] for _, values in events[: step - 1]] == list(range(1, step))
    assert [values["step"] for _, values in events] == [1, 2, 3, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000004", "step-000005"]


def test_without_room_for_a_copy_training_waits(made, tmp_path, monkeypatch):
    writer, events, _, optimizer = made
    monkeypatch.setattr(checkpoint_writer, "memory", lambda: (2**40, 2**29))
    monkeypatch.setattr(checkpoint.Contents, "copied", lambda contents: pytest.fail("it was copied"))
    with writer:
        writer.save(optimizer, checkpoint.State(step=1))
        assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    [(_, values)] = events
    assert values["stall_seconds"] >= values["seconds"] >= 0


def test_without_room_for_what_is_on_a_gpu_it_is_said(made, tmp_path, monkeypatch):
    """Writing it would need as much memory as a copy. What is on no device stands for it."""
    writer, events, model, optimizer = made
    monkeypatch.setattr(checkpoint_writer, "memory", lambda: (2**40, 2**29))
    monkeypatch.setattr(optimizer, "weights", lambda: {n: p.to("meta") for n, p in model.named_parameters()})
    with writer:
        writer.save(optimizer, checkpoint.State(step=1))
    assert not list(tmp_path.iterdir()) and "not saved: it needs" in events[0][1]["message"]


def test_a_fault_in_the_thread_is_not_lost(made, monkeypatch):
    writer, _, _, optimizer = made
    monkeypatch.setattr(checkpoint, "save", lambda folder, contents: 1 / 0)
    with pytest.raises(ZeroDivisionError), writer:
        writer.save(optimizer, checkpoint.State(step=1))


def test_steps_go_on_while_a_checkpoint_is_written(recipe, monkeypatch):
    """The first checkpoint cannot be written before the third step began."""
    third_began, save, seed_batch = threading.Event(), checkpoint.save, loop.seed_batch

    def note(seed, step, row):
        if step == 3:
            third_began.set()
        seed_batch(seed, step, row)

    def wait_and_save(folder, contents):
        assert third_began.wait(PATIENCE_SECONDS)
        return save(folder, contents)

    monkeypatch.setattr(loop, "seed_batch", note)
    monkeypatch.setattr(checkpoint, "save", wait_and_save)
    run = job.train(recipe(train={"max_steps": 4, "save_every": 2}))
    assert [event["step"] for event in run.events("checkpoint")] == [2, 4]
    assert [event["event"] for event in run.events()].index("stop") > max(
        n for n, event in enumerate(run.events()) if event["event"] == "checkpoint"
    )
