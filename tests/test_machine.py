"""What the driver says of cards, with a stand-in for NVML: no card is at hand."""

import sys
from types import SimpleNamespace

import pytest

from tunesmith.machine import _cards, memory


class NotSupported(Exception):
    pass


@pytest.fixture
def driver(monkeypatch):
    """Two cards and a part of the second; the first shares the machine's memory, of which NVML tells nothing."""
    known = {"GPU-a": ("GB10", None, (12, 1)), "GPU-b": ("H100", (80, 70), (9, 0)), "MIG-c": ("H100 MIG", (20, 19), (9, 0))}

    def told(uuid):
        if known[uuid][1] is None:
            raise NotSupported
        return SimpleNamespace(total=known[uuid][1][0], free=known[uuid][1][1])

    nvml = SimpleNamespace(
        NVMLError=Exception, NVMLError_NotSupported=NotSupported, nvmlInit=lambda: None, nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=["GPU-a", "GPU-b"].__getitem__,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid, nvmlDeviceGetUUID=lambda uuid: uuid, nvmlDeviceGetMemoryInfo=told,
        nvmlDeviceGetName=lambda uuid: known[uuid][0], nvmlSystemGetDriverVersion=lambda: "600",
        nvmlDeviceGetCudaComputeCapability=lambda uuid: known[uuid][2])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def names() -> list[str]:
    return [card.name for card in _cards()[1]]


def test_which_cards_there_are(driver):
    assert names() == ["GB10", "H100"]
    for asked, found in (("1", ["H100"]), ("GPU-b", ["H100"]), ("MIG-c", ["H100 MIG"]), ("", [])):
        driver.setenv("CUDA_VISIBLE_DEVICES", asked)
        assert names() == found


def test_a_card_that_shares_the_machine_s_memory(driver):
    card = _cards()[1][0]
    assert card.total_bytes == memory()[0] and 0 < card.free_bytes <= card.total_bytes and card.fast_bf16
