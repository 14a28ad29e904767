"""Steps that run out of memory are done again in smaller parts, and the run is the same run."""

import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import slow_but
from tunesmith import resume, train
from tunesmith.data.packing import Sizes, micro_batches
from tunesmith.errors import NotEnoughMemory
from tunesmith.finetune.worker import work
from tunesmith.model.memory import is_out_of_memory
from tunesmith.run import Run
from tunesmith.training import checkpoint, distributed
from tunesmith.training import loop as training
from tunesmith.training.batch import collate
from tunesmith.training.layer_transforms import _Checkpointed, decoder_layers
from tunesmith.training.oom_fallback import step_down

BOUND = 1e-5


def losses(run) -> list[float]:
    return [event["loss"] for event in run.events("step")]


def recomputes(model) -> bool:
    return all(isinstance(layer.forward, _Checkpointed) for layer in decoder_layers(model))


def warned(run) -> list[str]:
    return [event["message"] for event in run.events("warning") if "ran out of memory" in event["message"]]


@pytest.fixture
def limited(monkeypatch):
    """Makes a pass run out of memory where `refuses(model, batch)`, in the forward pass or after the backward one."""
    method_loss = training.method_loss

    def limit(refuses):
        def losses(method, model, batch, head):
            total, metrics = method_loss(method, model, batch, head)
            if model.training and refuses(model, batch):
                if len(batch.rows) % 2:
                    total.register_hook(lambda _: out_of_memory())  # the head's gradients may be there already
                else:
                    out_of_memory()
            return total, metrics

        monkeypatch.setattr(training, "method_loss", losses)

    return limit


@pytest.mark.parametrize("words", ["CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "out of memory"])
def test_no_memory_is_told_from_other_errors(words):
    assert is_out_of_memory(RuntimeError(f"CUDA error: {words}"))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))


def out_of_memory():
    raise torch.OutOfMemoryError("injected")


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("seed", slow_but([1], [1, 2]))
def test_faults_at_random_steps_change_no_loss(recipe, limited, kind, packing, seed):
    sections = {"adapter": {"kind": kind}, "data": {"packing": packing}}
    whole = train(recipe(name="whole", **sections))
    draw = random.Random(seed)
    limited(lambda model, batch: len(batch.rows) > 1 and draw.random() < 0.4)
    faulty = train(recipe(name="faulty", **sections))
    assert losses(faulty) == pytest.approx(losses(whole), abs=BOUND)
    assert 0 < len(warned(faulty)) < 20
    assert len(losses(faulty)) == 20 and warned(whole) == []


def test_what_was_needed_is_remembered_also_by_a_resumed_run(recipe, limited):
    limited(lambda model, batch: batch.input_ids_BT.numel() > 100)
    run = train(recipe(train={"save_every": 5, "max_steps": 10}))
    rungs = len(warned(run))
    assert rungs and all("step 1 " in message for message in warned(run))
    state = checkpoint.read_state(checkpoint.complete(run.checkpoints)[0])
    assert state.micro_batch_tokens <= 100

    for folder in (run.result, *checkpoint.complete(run.checkpoints)[1:]):
        shutil.rmtree(folder)
    before = losses(run)[5:10]
    resume(run.folder)
    assert losses(run)[-5:] == before and len(warned(run)) == rungs


def test_then_activations_are_recomputed_and_then_it_is_said(recipe, limited):
    plain = train(recipe(name="plain", train={"max_steps": 5}))
    limited(lambda model, batch: not recomputes(model))
    run = train(recipe(name="recomputed", train={"max_steps": 5}))
    assert losses(run) == pytest.approx(losses(plain), abs=BOUND)
    assert "recomputed" in warned(run)[-1]
    limited(lambda model, batch: True)
    with pytest.raises(NotEnoughMemory, match="step 1: a row of [0-9]+ tokens does not fit"):
        train(recipe(name="never", train={"max_steps": 5}))


@given(
    st.lists(st.lists(st.integers(1, 3000), min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(1, 4000),
    st.booleans(),
)
def test_every_rung_is_one_down_and_the_last_is_said(rows, tokens, packed):
    """However long the rows, also where one alone is as long as a pass holds."""
    lengths = np.array([length for some in rows for length in some])
    state = checkpoint.State(micro_batch_tokens=max(tokens, lengths.max()))
    made, seen = [], set()

    def descend():
        while True:
            made[:] = [
                collate([(np.zeros(n, int), np.ones(n, bool)) for n in lengths[chosen]], np.arange(len(chosen)), packed)
                for chosen in micro_batches(
                    np.arange(len(lengths)), Sizes.single(lengths), state.micro_batch_tokens, packed
                )
            ]
            now = state.micro_batch_tokens, state.checkpointing
            assert now not in seen
            seen.add(now)
            step_down(state, made, "step 1")

    with pytest.raises(NotEnoughMemory):
        descend()
    assert state.checkpointing and all(len(batch.rows) == 1 for batch in made)


@pytest.mark.parametrize("step", [1, 3])
def test_an_update_without_room_ends_the_run_and_leaves_the_last_checkpoint(recipe, monkeypatch, step):
    """The weights have moved by then."""
    settings = {"adapter": {"kind": "full"}, "train": {"max_steps": 4, "save_every": 1, "keep_checkpoints": 9}}
    update = training.update

    def fail(job, state, *rest):
        if state.step == step:
            move = job.optimizer.step
            job.optimizer.step = lambda seed: (move(seed), out_of_memory())
        return update(job, state, *rest)

    asked = recipe(**settings)
    with monkeypatch.context() as patch:
        patch.setattr(training, "update", fail)
        with pytest.raises(NotEnoughMemory, match=rf"step {step}: .*train\.optimizer: adamw .*adamw_8bit"):
            train(asked)
    run = Run(asked.output / "run")
    assert [stop["reason"] for stop in run.events("stop")] == ["out_of_memory"]
    assert len(checkpoint.complete(run.checkpoints)) == step - 1
    assert losses(resume(run.folder)) == losses(train(recipe(name="whole", **settings)))


def one_of_two_runs_out(folder, rows=1):
    """A training process of which the second has no room for more than so many rows."""
    method_loss = training.method_loss

    def losses(method, model, batch, head):
        if model.training and distributed.rank() == 1 and len(batch.rows) > rows:
            out_of_memory()
        return method_loss(method, model, batch, head)

    training.method_loss = losses
    work(folder)


def one_of_two_has_no_room(folder):
    one_of_two_runs_out(folder, rows=0)


def test_what_ends_a_process_that_writes_no_events_is_in_them(recipe, monkeypatch):
    monkeypatch.setattr("tunesmith.finetune.worker.work", one_of_two_has_no_room)
    asked = recipe(train={"processes": 2, "max_steps": 2})
    with pytest.raises(NotEnoughMemory, match="does not fit"):
        train(asked)
    [stop] = Run(asked.output / "run").events("stop")
    assert stop["reason"] == "out_of_memory" and "does not fit" in stop["message"]


def test_only_the_process_that_needs_them_takes_smaller_passes(recipe, monkeypatch):
    whole = train(recipe(name="whole", train={"max_steps": 6}))
    monkeypatch.setattr("tunesmith.finetune.worker.work", one_of_two_runs_out)
    run = train(recipe(name="faulty", train={"processes": 2, "max_steps": 6}))
    assert losses(run) == pytest.approx(losses(whole), abs=BOUND)
    assert "step 1 ran out of memory in process 2 of 2 and was repeated there" in warned(run)[0]
    [last] = checkpoint.complete(run.checkpoints)
    state, planned = checkpoint.read_state(last), run.plan.micro_batch_tokens
    (first, _), (second, _) = state.passes
    assert first == planned > second
    assert [state.of_process(rank, 2).micro_batch_tokens for rank in (0, 1)] == [first, second]
    assert state.of_process(0, 3).micro_batch_tokens == second  # where it is not known who needed them
