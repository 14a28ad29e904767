"""A process that hangs is found, named and explained, on processes that do nothing but that."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from tests import simulated_gpu
from tunesmith.finetune import watchdog
from tunesmith.finetune.watchdog import ThisMachine, Watchdog, newest_xid
from tunesmith.machine import Gpu
from tunesmith.training import progress_marks
from tunesmith.training.progress_marks import Mark

GPUS = [Gpu(number, "RTX 3090", 24, 24, (8, 6), f"GPU-{number}") for number in range(2)]
SLEEPING, COMPUTING = "import time; time.sleep(600)", "while True: pass"


@pytest.fixture
def patience(monkeypatch) -> float:
    monkeypatch.setattr(watchdog, "HANG_SECONDS", 0.8)
    return 0.8


@contextmanager
def processes(*programs: str):
    started = [subprocess.Popen([sys.executable, "-c", program]) for program in programs]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def marked(phase: str, step: int = 3, **values) -> Mark:
    return Mark(phase=progress_marks.CODES[phase], step=step, **values)


def looked_for(dog: Watchdog, seconds: float, each=lambda: None):
    """What it finds within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        each()
        if hang := dog.look(range(len(dog.marks))):
            return hang
        time.sleep(0.02)
    return None


def test_the_process_that_is_behind_is_named_not_those_that_wait_for_it(patience):
    marks = [marked("updating", 4, waiting=1), marked("forward", layer=12, layers=32)]
    with processes(SLEEPING, SLEEPING) as started:
        hang = looked_for(Watchdog(marks, ThisMachine([p.pid for p in started])), 10 * patience)
    assert hang.process == 1 and hang.text == (
        "process 1 of 2 made no progress for 0.8 s at step 3, layer 12 of 32, forward: no cause found"
    )


def test_a_stopped_process_is_named_also_while_it_waits(patience):
    marks = [marked("exchanging gradients", waiting=1), marked("exchanging gradients", waiting=1)]
    with processes(SLEEPING, SLEEPING) as started:
        os.kill(started[1].pid, signal.SIGSTOP)
        hang = looked_for(Watchdog(marks, ThisMachine([p.pid for p in started])), 10 * patience)
    assert hang.process == 1 and hang.text.endswith("at step 3, exchanging gradients: the process is stopped (SIGSTOP)")


def test_of_processes_that_all_wait_the_one_that_has_exchanged_least_is_named(patience):
    marks = [marked("updating", waiting=1, collectives=8), marked("updating", waiting=1, collectives=7)]
    with processes(SLEEPING, SLEEPING) as started:
        assert looked_for(Watchdog(marks, ThisMachine([p.pid for p in started])), 10 * patience).process == 1


def test_progress_is_a_changed_mark_or_computing(patience):
    marks = [marked("waiting for data"), marked("forward", layer=1, layers=1)]

    def advance():
        marks[0].count += 1

    with processes(SLEEPING, COMPUTING) as started:
        assert looked_for(Watchdog(marks, ThisMachine([p.pid for p in started])), 4 * patience, advance) is None


def test_on_a_gpu_computing_is_no_progress_as_waiting_for_it_computes_too(patience, monkeypatch):
    monkeypatch.setattr(watchdog, "kernel_log", lambda: [(time.monotonic(), XID_79)])
    mark = marked("backward", layer=9, layers=32, gpu_layer=32 + 31)
    with processes(COMPUTING) as started:
        hang = looked_for(Watchdog([mark], ThisMachine([started[0].pid]), GPUS[:1]), 10 * patience)
        assert hang.gpu_suspected and hang.text == (
            "GPU 0 (RTX 3090, process 0 of 1) made no progress for 0.8 s at step 3, layer 31 of 32, backward: "
            "Xid 79 of the GPU at PCI 0000:0a:00: the GPU has fallen off the bus; check power, riser and slot"
        )
        mark.phase = progress_marks.CODES["loading the model"]
        assert looked_for(Watchdog([mark], ThisMachine([started[0].pid]), GPUS[:1]), 4 * patience) is None


def test_a_phase_that_computes_does_not_take_forever(patience, monkeypatch):
    monkeypatch.setattr(watchdog, "LONGEST_SECONDS", 2 * patience)
    with processes(COMPUTING) as started:
        dog = Watchdog([marked("loading the model")], ThisMachine([started[0].pid]))
        assert looked_for(dog, 1.5 * patience) is None and looked_for(dog, 10 * patience)


def test_time_in_which_the_launcher_itself_was_stopped_does_not_count(patience):
    with processes(SLEEPING) as started:
        dog = Watchdog([marked("forward")], ThisMachine([started[0].pid]))
        dog.look([0])
        time.sleep(2 * patience)
        assert dog.look([0]) is None


XID_79 = "NVRM: Xid (PCI:0000:0a:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
XID_31 = "NVRM: Xid (PCI:0000:0b:00): 31, pid=2191, name=python, Ch 00000008, MMU Fault: ENGINE GRAPHICS"
XID_13 = "NVRM: Xid (PCI:0000:0a:00): 13, pid=2191, Graphics SM Warp Exception"


def test_the_newest_xid_since_the_start_is_told():
    lines = [(10.0, XID_79), (20.0, "usb 1-1: new device"), (30.0, XID_31), (40.0, "eth0: link up")]
    assert newest_xid(lines, 5.0) == (
        "Xid 31 of the GPU at PCI 0000:0b:00: a GPU memory page fault, by a faulty kernel or faulty memory"
    )
    assert newest_xid(lines, 35.0) is None and newest_xid([], 0.0) is None
    assert newest_xid([(1.0, XID_13)], 0.0) == "Xid 13 of the GPU at PCI 0000:0a:00: see the NVIDIA Xid catalogue"


class Layer(nn.Linear):
    def forward(self, hidden, factor=1.0):
        return (super().forward(hidden * factor),)


@pytest.fixture
def shared(monkeypatch) -> Mark:
    mark = multiprocessing.get_context("spawn").RawArray(Mark, 1)[0]
    for name in ("_own", "_is_read"):
        monkeypatch.setattr(progress_marks, name, getattr(progress_marks, name))
    progress_marks.share(mark)
    return mark


def test_layers_mark_their_forward_and_backward_pass_and_change_no_gradient(shared):
    plain, hooked = (nn.ModuleList(Layer(4, 4) for _ in range(3)) for _ in range(2))
    hooked.load_state_dict(plain.state_dict())
    places = []

    class Note(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden):
            places.append(shared.place)
            return hidden.clone()

        @staticmethod
        def backward(ctx, gradient):
            places.append(shared.place)
            return gradient

    for layers in (plain, hooked):
        if layers is hooked:
            progress_marks.mark_layers(layers)
        hidden = torch.ones(2, 4)
        for layer in layers:
            hidden = layer(hidden)[0]
            if layers is hooked:
                hidden = Note.apply(hidden)
        hidden.square().sum().backward()
    assert places == [
        "layer 1 of 3, forward",
        "layer 2 of 3, forward",
        "loss",
        "loss",
        "layer 2 of 3, backward",
        "layer 1 of 3, backward",
    ]
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), hooked.parameters()))


@pytest.mark.parametrize("pinned, expected", [(True, [1, 2, 3, 6, 5, 4]), (False, [0] * 6)])
def test_a_gpu_marks_its_layers_itself_where_memory_can_be_pinned(shared, monkeypatch, pinned, expected):
    monkeypatch.setattr(progress_marks, "pin", lambda *_: pinned)
    reached, mark_layer = [], progress_marks.mark_layer

    def note(phase, layer):
        mark_layer(phase, layer)
        if layer:
            reached.append(shared.gpu_layer)

    monkeypatch.setattr(progress_marks, "mark_layer", note)
    with simulated_gpu.played() as gpu:
        layers = nn.ModuleList(Layer(4, 4) for _ in range(3)).to(gpu)
        progress_marks.mark_layers(layers)
        hidden = torch.ones(2, 4, device=gpu)
        for layer in layers:
            hidden = layer(hidden)[0]
        hidden.square().sum().backward()
    assert reached == expected and shared.layers == 3
    assert shared.place == "layer 1 of 3, backward"
