"""Which GPUs the driver lists, with a stand-in for NVML: the machine that runs the tests has none."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tunesmith.errors import UserError
from tunesmith.machine import Machine, find_gpus, memory, state_of
from tunesmith.planner.decide import choose
from tunesmith.recipe import Recipe
from tunesmith.training import distributed

# By PCI bus: a slow GPU first, a fast one second, as a used pair may be plugged in. CUDA's own order is the other way.
SLOW, FAST = "GPU-06a1", "GPU-0c42"


class NotSupported(Exception):
    pass


class Driver:
    """NVML's functions over {UUID: (name, (total, free) or None, capability)}; a handle is the UUID.

    `parts`: MIG devices by GPU, where MIG mode is on.
    """

    NVMLError, NVMLError_NotSupported = Exception, NotSupported
    NVML_TEMPERATURE_GPU, NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 0, 1

    def __init__(self, known: dict, parts: dict[str, list[str]]):
        self.known, self.parts = known, parts
        self.answers: dict[str, int] = {}  # of whole GPUs; the driver supports no other question about them
        self.gpus = [uuid for uuid in known if uuid.startswith("GPU-")]

    def nvmlInit(self):
        pass

    def nvmlShutdown(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return "600"

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number):
        return self.gpus[number]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {each: each for each in self.known}[uuid]

    def nvmlDeviceGetUUID(self, uuid):
        return uuid

    def nvmlDeviceGetIndex(self, uuid):
        return self.gpus.index(uuid)

    def nvmlDeviceGetName(self, uuid):
        return self.known[uuid][0]

    def nvmlDeviceGetCudaComputeCapability(self, uuid):
        return self.known[uuid][2]

    def nvmlDeviceIsMigDeviceHandle(self, uuid):
        return uuid.startswith("MIG-")

    def nvmlDeviceGetMigDeviceHandleByIndex(self, uuid, number):
        return self.parts[uuid][number]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part):
        return next(gpu for gpu, parts in self.parts.items() if part in parts)

    def nvmlDeviceGetMigMode(self, uuid):
        if "RTX" in self.known[uuid][0]:
            raise NotSupported
        return [uuid in self.parts, uuid in self.parts]

    def nvmlDeviceGetMemoryInfo(self, uuid):
        if self.known[uuid][1] is None:
            raise NotSupported
        return SimpleNamespace(total=self.known[uuid][1][0], free=self.known[uuid][1][1])

    def answer(self, question: str, uuid: str) -> int:
        assert uuid.startswith("GPU-")
        if question not in self.answers:
            raise NotSupported
        return self.answers[question]

    def nvmlDeviceGetMaxPcieLinkGeneration(self, uuid):
        return self.answer("generation", uuid)

    def nvmlDeviceGetCurrPcieLinkGeneration(self, uuid):
        return self.answer("generation now", uuid)

    def nvmlDeviceGetGpuMaxPcieLinkGeneration(self, uuid):
        return self.answer("most generation", uuid)

    def nvmlDeviceGetCurrPcieLinkWidth(self, uuid):
        return self.answer("lanes", uuid)

    def nvmlDeviceGetMaxPcieLinkWidth(self, uuid):
        return self.answer("most lanes", uuid)

    def nvmlDeviceGetPowerManagementLimit(self, uuid):
        return self.answer("milliwatts", uuid)

    def nvmlDeviceGetPowerManagementDefaultLimit(self, uuid):
        return self.answer("default milliwatts", uuid)

    def nvmlDeviceGetTotalEnergyConsumption(self, uuid):
        return self.answer("millijoules", uuid)

    def nvmlDeviceGetPowerUsage(self, uuid):
        return self.answer("milliwatts now", uuid)

    def nvmlDeviceGetTemperature(self, uuid, sensor):
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self.answer("celsius", uuid)

    def nvmlDeviceGetTemperatureThreshold(self, uuid, threshold):
        assert threshold == self.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        return self.answer("slowdown", uuid)


def install(monkeypatch, known: dict, parts: dict | None = None):
    monkeypatch.setitem(sys.modules, "pynvml", Driver(known, parts or {}))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


@pytest.fixture
def mixed_pair(monkeypatch):
    return install(monkeypatch, {SLOW: ("RTX 2060", (12, 11), (7, 5)), FAST: ("RTX 3090", (24, 23), (8, 6))})


@pytest.fixture
def split(monkeypatch):
    """A whole GPU, and one that is split in two."""
    return install(
        monkeypatch,
        {
            "GPU-a1": ("A100", (80, 70), (8, 0)),
            "GPU-b2": ("H100", (80, 70), (9, 0)),
            "MIG-c3": ("H100 MIG", (20, 19), (9, 0)),
            "MIG-d4": ("H100 MIG", (40, 39), (9, 0)),
        },
        {"GPU-b2": ["MIG-c3", "MIG-d4"]},
    )


def uuids() -> list[str]:
    return [gpu.uuid for gpu in find_gpus()[1]]


def test_numbers_go_by_bus(mixed_pair):
    assert [(gpu.index, gpu.name, gpu.uuid, gpu.total_bytes, gpu.fast_bf16) for gpu in find_gpus()[1]] == [
        (0, "RTX 2060", SLOW, 12, False),
        (1, "RTX 3090", FAST, 24, True),
    ]


@pytest.mark.parametrize(
    "asked, found",
    [
        ("1", [FAST]),
        ("0", [SLOW]),
        ("1,0", [FAST, SLOW]),
        (" 0 , 1 ", [SLOW, FAST]),
        (FAST, [FAST]),
        ("GPU-0c", [FAST]),
        (f"{FAST},0", [FAST, SLOW]),
        ("", []),
        ("-1", []),
        ("1,-1,0", [FAST]),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices(mixed_pair, asked, found):
    mixed_pair.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert uuids() == found


@pytest.mark.parametrize(
    "asked, said",
    [
        ("2", "2 names none"),
        ("GPU-ff", "GPU-ff names none"),
        ("GPU-0", "GPU-0 names more than one"),
        ("1,1", "1 is named twice"),
        (f"1,{FAST}", "is named twice"),
        ("MIG-9", "MIG-9 names none"),
    ],
)
def test_a_gpu_that_does_not_exist(mixed_pair, asked, said):
    """CUDA would silently continue with fewer GPUs, or none."""
    mixed_pair.setenv("CUDA_VISIBLE_DEVICES", asked)
    with pytest.raises(UserError, match=f"CUDA_VISIBLE_DEVICES: .*{said}"):
        find_gpus()


@pytest.mark.parametrize(
    "asked, found",
    [
        (None, ["MIG-c3"]),
        ("0", ["GPU-a1"]),
        ("1", ["MIG-c3"]),
        ("0,1", ["MIG-c3"]),
        ("GPU-b2", ["MIG-c3"]),
        ("MIG-d4", ["MIG-d4"]),
        ("MIG-d4,MIG-c3", ["MIG-d4"]),
    ],
)
def test_a_process_has_one_mig_device(split, asked, found):
    if asked is not None:
        split.setenv("CUDA_VISIBLE_DEVICES", asked)
    assert uuids() == found
    assert {"GPU-a1": 0, "MIG-c3": 1, "MIG-d4": 1}[found[0]] == find_gpus()[1][0].index


def test_slot_power_and_temperature(mixed_pair):
    """None for what the driver does not answer."""
    sys.modules["pynvml"].answers |= {"generation": 3, "most generation": 4, "lanes": 4, "most lanes": 16}
    sys.modules["pynvml"].answers |= {"milliwatts": 280_000, "default milliwatts": 350_000, "celsius": 71}
    for gpu in find_gpus()[1]:
        assert (gpu.pcie_generation, gpu.most_pcie_generation, gpu.pcie_lanes, gpu.most_pcie_lanes) == (3, 4, 4, 16)
        assert (gpu.power_watts, gpu.default_power_watts, gpu.celsius, gpu.slowdown_celsius) == (280, 350, 71, None)


def test_a_mig_device_has_the_slot_of_its_gpu(split):
    sys.modules["pynvml"].answers |= {"lanes": 8, "generation now": 1}
    [part] = find_gpus()[1]
    assert part.uuid == "MIG-c3" and part.pcie_lanes == 8 and part.power_watts is None
    assert state_of("MIG-c3") == {"pcie_generation": 1, "pcie_lanes": 8}


def test_the_state_of_a_gpu_that_the_driver_does_not_know_is_empty(mixed_pair):
    assert state_of("GPU-gone") == {}


def test_a_gpu_that_shares_the_machine_s_memory(monkeypatch):
    install(monkeypatch, {"GPU-a": ("GB10", None, (12, 1))})
    [gpu] = find_gpus()[1]
    assert gpu.total_bytes == memory()[0] and 0 < gpu.free_bytes <= gpu.total_bytes and gpu.fast_bf16


@pytest.mark.parametrize("before, after", [(None, "PCI_BUS_ID"), ("FASTEST_FIRST", "FASTEST_FIRST")])
def test_every_process_numbers_gpus_by_bus(monkeypatch, before, after):
    """Whatever module comes first, and in processes that it starts; unless the user set another order."""
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if before:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", before)
    code = (
        "import tunesmith.machine, os, subprocess, sys; assert 'torch' not in sys.modules; "
        "subprocess.run([sys.executable, '-c', 'import os; print(os.environ[\"CUDA_DEVICE_ORDER\"])'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == after


@pytest.mark.parametrize(
    "visible, order, agrees",
    [(None, [SLOW, FAST], True), (None, [FAST, SLOW], False), ("1", [FAST], True), ("1", [SLOW], False)],
)
def test_a_process_trains_on_the_gpu_that_was_planned(mixed_pair, visible, order, agrees):
    """`order`: as CUDA has them, by speed where CUDA was started before Tunesmith came."""
    if visible:
        mixed_pair.setenv("CUDA_VISIBLE_DEVICES", visible)
    mixed_pair.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=order[device.index].removeprefix("GPU-")),
    )
    mixed_pair.setattr(torch.cuda, "device_count", lambda: len(order))
    mixed_pair.setattr(torch.cuda, "set_device", lambda device: None)
    mixed_pair.setenv("PYTORCH_ALLOC_CONF", "")  # so that none is set
    if agrees:
        assert distributed.join("cuda") == torch.device("cuda", 0)
    else:
        with pytest.raises(UserError, match=f"CUDA_DEVICE_ORDER: CUDA's GPU 0 is {order[0]}"):
            distributed.join("cuda")


@pytest.mark.parametrize(
    ("asked", "processes", "threads"),
    [(None, 1, 8), (None, 2, 4), ("3", 1, 3), ("3", 2, 3), ("2,1", 1, 2), ("0", 1, 8), ("many", 1, 8)],
)
def test_threads_are_those_of_omp_num_threads(monkeypatch, asked, processes, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    eight = Machine(
        system="",
        processor="",
        cores=8,
        memory_bytes=2**34,
        free_memory_bytes=2**34,
        free_disk_bytes=2**34,
        cpu_fast_bf16=False,
    )
    asked_for = Recipe.build({"model": "m", "data": "d", "train": {"processes": processes}})
    assert choose(asked_for, eight).threads == threads
