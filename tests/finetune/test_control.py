"""A running job pauses, continues and stops as the user asks, whatever program asks, and stays the same run."""

import os
import threading
import time

import pytest

from tunesmith import resume, train
from tunesmith.errors import Interrupted, UserError
from tunesmith.evaluate.summary import summary
from tunesmith.finetune import control
from tunesmith.run import Run, process_start

STEPS = {"max_steps": 6, "save_every": 100}


def losses(run) -> list[float]:
    return [event["loss"] for event in run.events("step")]


def when(run: Run, count: int, act) -> threading.Thread:
    """Acts, in another thread, once the run has made so many steps."""

    def watch():
        while len(run.events("step")) < count:
            time.sleep(0.001)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_paused_run_waits_with_a_checkpoint_and_continues_as_the_same_run(recipe, processes):
    whole = train(recipe(name="whole", train=STEPS | {"processes": processes}))
    asked = recipe(name="paused", train=STEPS | {"processes": processes})
    run, observed = Run(asked.output / "paused"), {}

    def pause_and_continue():
        control.request(run, "pause")
        until(lambda: run.events("pause"))
        until(lambda: run.events("checkpoint"))  # it is written while the run waits
        steps = len(run.events("step"))
        observed.update(status=summary(run)["status"], saved=[p.name for p in run.checkpoints.glob("step-*")])
        time.sleep(0.6)
        observed["steps while paused"] = len(run.events("step")) - steps
        control.request(run, "run")

    watcher = when(run, 2, pause_and_continue)
    train(asked)
    watcher.join()
    [paused], [continued] = run.events("pause"), run.events("continue")
    assert observed["status"] == "paused" and observed["steps while paused"] == 0
    assert observed["saved"] == [f"step-{paused['step']:06d}"]
    assert continued["seconds"] >= 0.6 and run.events("stop")[0]["reason"] == "done"
    assert losses(run) == losses(whole)


def test_a_stopped_run_is_resumed_as_the_same_run(recipe):
    whole = train(recipe(name="whole", train=STEPS))
    asked = recipe(name="stopped", train=STEPS)
    run = Run(asked.output / "stopped")
    watcher = when(run, 2, lambda: control.request(run, "stop"))
    with pytest.raises(Interrupted, match="tunesmith resume"):
        train(asked)
    watcher.join()
    assert summary(run)["status"] == "interrupted" and not run.result.exists()
    assert losses(resume(run.folder)) == losses(whole)  # the wish of then is not heeded again


def test_a_paused_run_can_be_stopped(recipe):
    asked = recipe(name="both", train=STEPS)
    run = Run(asked.output / "both")

    def pause_and_stop():
        control.request(run, "pause")
        until(lambda: run.events("pause"))
        control.request(run, "stop")

    watcher = when(run, 1, pause_and_stop)
    with pytest.raises(Interrupted):
        train(asked)
    watcher.join()
    assert run.events("stop")[-1]["reason"] == "interrupted"


def test_the_time_of_a_pause_does_not_count_for_max_minutes(recipe):
    asked = recipe(name="late", train=STEPS | {"max_minutes": 60})
    run = Run(asked.output / "late")

    def pause():
        control.request(run, "pause")
        until(lambda: run.events("pause"))
        time.sleep(1.0)
        control.request(run, "run")

    watcher = when(run, 1, pause)
    train(asked)
    watcher.join()
    [continued] = run.events("continue")
    assert continued["seconds"] >= 1
    assert summary(run)["seconds"] < run.events()[-1]["time"] - run.events()[0]["time"] - 0.9


def test_a_run_that_is_not_running_cannot_be_asked(recipe):
    run = train(recipe(train={"max_steps": 1}))
    with pytest.raises(UserError, match="this run is not running"):
        control.request(run, "pause")
    assert not run.control_file.exists()


def test_the_lock_names_the_process(recipe):
    asked = recipe(name="held", train=STEPS)
    run, holders = Run(asked.output / "held"), []
    watcher = when(run, 1, lambda: holders.append(run.holder))
    train(asked)
    watcher.join()
    assert holders == [{"pid": os.getpid(), "started": process_start(os.getpid())}]
    assert run.holder is None and process_start(2**22 + 1) is None
