"""Speeds of the CPU and the disk."""

import os

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tunesmith.finetune import speed
from tunesmith.planner.rates import check_rates

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(speed, "CPU_SHAPE", (256, 384, 24))
    monkeypatch.setattr(speed, "MEMORY_NUMBERS", 2**12)
    monkeypatch.setattr(speed, "DISK_BYTES", 2**20)
    monkeypatch.setattr(speed, "BLOCK_BYTES", 2**18)


def test_the_operations_of_a_layer_are_those_that_torch_counts(monkeypatch):
    """Without those of attention, which torch counts with all scores."""
    hidden, _, tokens = shape = speed.CPU_SHAPE
    steps = []
    monkeypatch.setattr(speed, "rate", lambda step, seconds: steps.append(step))
    speed.layer_rate(CPU, torch.float32, shape, 0)
    with FlopCounterMode(display=False) as counter:
        [step] = steps
        operations = step()
    counted = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    assert counted == operations - 3 * 2 * tokens**2 * hidden


def test_a_rate_is_amount_by_time(monkeypatch):
    clock = iter([10.0, 10.5, 11.0, 12.0, 12.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    assert speed.rate(lambda: 3.0, 1.5) == 3 * 3.0 / 2.0


def test_the_cpu_s_rates_can_be_kept_and_threads_are_restored():
    before = torch.get_num_threads()
    found = speed.cpu_speeds(before + 1, ["float32", "bfloat16"], 0.01)
    assert torch.get_num_threads() == before
    assert set(found["flops_per_second"]) == {"float32", "bfloat16"} and found["launch_seconds"] > 0
    assert set(found["weights_bytes_per_second"]) == {"float32", "bfloat16"}
    check_rates({"cpu": found}, "here")


def test_the_disk_is_measured_and_nothing_is_left_on_it(tmp_path):
    found = speed.disk_rates(tmp_path)
    assert found["write_bytes_per_second"] > 0 and list(tmp_path.iterdir()) == []
    assert (found["read_bytes_per_second"] is not None) == hasattr(os, "posix_fadvise")
    assert set(speed.disk_rates(tmp_path / "missing").values()) == {None}
