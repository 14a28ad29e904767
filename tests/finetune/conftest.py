"""Invented GPUs and machines of them."""

import os

import pytest
import torch

from tunesmith.finetune import gpu_check, launch
from tunesmith.finetune.gpu_check import GpuCheck
from tunesmith.machine import Gpu
from tunesmith.run import Run


def gpu(number: int, fault: str = "works", task: str = "always", capability: tuple[int, int] = (8, 6)) -> Gpu:
    return Gpu(number, "RTX 3090", 2**33, 2**33, capability, f"GPU-{number} {fault} {task}")


def messages_of(run: Run) -> list[str]:
    return [event["message"] for event in run.events("warning")]


@pytest.fixture
def machine(monkeypatch):
    """Gives a function that invents a machine of GPUs with these problems, or none; `launched` has the GPUs of each
    launch of training processes, which do nothing."""
    everything = "0,1,2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", everything)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    there: dict[Gpu, str | None] = {}

    def build(*problems: str | None) -> list[Gpu]:
        there.clear()
        there.update({gpu(number): problem for number, problem in enumerate(problems)})
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", everything)
        return list(there)

    def check(gpus, compute=None):
        return [GpuCheck(one, compute, 1e9, problem=there[one]) for one in gpus]

    def find_gpus():
        visible = os.environ["CUDA_VISIBLE_DEVICES"]
        return "600", [one for one in there if visible == everything or one.uuid in visible.split(",")]

    def launch_nothing(entry, processes, folder, gpus=()):
        assert processes == len(gpus)
        build.launched.append([one.index for one in gpus])

    build.launched = []
    monkeypatch.setattr(gpu_check, "check_gpus", check)
    monkeypatch.setattr("tunesmith.machine.find_gpus", find_gpus)
    monkeypatch.setattr(launch, "launch", launch_nothing)
    return build
