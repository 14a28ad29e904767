"""Problems of a machine are named, each with what to do about it."""

import platform
import resource
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tunesmith.finetune import diagnosis
from tunesmith.finetune.diagnosis import EXTRAS, Problem, diagnose, extras, torch_cuda
from tunesmith.finetune.gpu_check import GpuCheck
from tunesmith.machine import Gpu, Machine

GPU = Gpu(
    *(1, "NVIDIA GeForce RTX 3090", 24 * 10**9, 22 * 10**9, (8, 6), "GPU-b"),
    *(4, 16, 4, 16),
    *(350.0, 350.0, 60, 93),
)
MACHINE = Machine("Linux", "a CPU", 8, 64 * 10**9, 50 * 10**9, 10**12, True, driver="580", gpus=[GPU])
CHECK = GpuCheck(GPU, "bfloat16", 24e9, 25e9, 40e9, 24e9, 60e12, pinned=True)


def problems(machine: Machine = MACHINE, check: GpuCheck = CHECK, **of_gpu) -> list[Problem]:
    found = diagnose(machine, [replace(check, gpu=replace(GPU, **of_gpu))])
    assert all(one.about and one.problem and one.remedy for one in found)
    return found


def test_a_machine_in_order_has_no_problems():
    assert problems() == []


def test_what_is_not_known_is_no_problem():
    unknown = Gpu(0, "a GPU", 24 * 10**9, 22 * 10**9, (8, 6))
    assert diagnose(MACHINE, [GpuCheck(unknown, "bfloat16", 1e9)]) == []


@pytest.mark.parametrize(
    ("generation", "lanes", "runs_as"), [(3, 4, "3.0 x4"), (4, 8, "4.0 x8"), (3, 16, "3.0 x16"), (1, 1, "1.0 x1")]
)
def test_a_gpu_in_a_slow_slot_is_named(generation, lanes, runs_as):
    [found] = problems(pcie_generation=generation, pcie_lanes=lanes)
    assert found.about == "GPU 1 (NVIDIA GeForce RTX 3090)" and not found.severe
    assert f"runs as PCIe {runs_as}, and it is made for 4.0 x16" in found.problem and "slot" in found.remedy


def test_copies_that_are_slower_than_the_link_are_named():
    [found] = problems(check=replace(CHECK, to_gpu_bytes_per_second=9e9))
    assert "copies reach 9.0 GB/s, and a link of PCIe 4.0 x16 about 25" in found.problem
    assert problems(check=replace(CHECK, to_gpu_bytes_per_second=20e9)) == []


def test_a_hot_gpu_is_named():
    [found] = problems(celsius=92)
    assert "92 °C and slows down at 93" in found.problem and "nvidia-smi -i 1 -pl" in found.remedy
    assert problems(celsius=89) == []


@pytest.mark.parametrize(
    ("message", "problem", "remedy"),
    [
        ("bytes arrive changed; check its riser, slot and power", "bytes arrive changed", "check its riser"),
        ("it hangs: no answer within 10 s of copying", "it hangs: no answer within 10 s of copying", "check its riser"),
        (
            "torch has no code for it; install one (pip install x); or hide it",
            "torch has no code for it",
            "install one",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_a_severe_problem(message, problem, remedy):
    [found] = problems(check=replace(CHECK, problem=message))
    assert found.severe and found.problem == problem and found.remedy.startswith(remedy)


@pytest.mark.parametrize(
    ("release", "words"), [("6.6-microsoft-standard-WSL2", "WSL2"), ("6.12.0", "ulimit -l: 8.4 MB")]
)
def test_memory_that_cannot_be_pinned(monkeypatch, release, words):
    monkeypatch.setattr(platform, "release", lambda: release)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**23, resource.RLIM_INFINITY))
    [found] = problems(check=replace(CHECK, pinned=False))
    assert found.about == "host memory" and words in found.problem
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert diagnosis.locked_memory_bytes() is None


def test_little_memory_and_disk():
    machine = replace(MACHINE, free_memory_bytes=5 * 10**9, free_disk_bytes=10**9)
    of_memory, of_disk = problems(machine)
    assert "5.0 GB of 64.0 GB" in of_memory.problem and of_memory.remedy == "end other programs"
    assert "1.0 GB are free" in of_disk.problem and "--output" in of_disk.remedy
    assert "container" in problems(replace(machine, container_bytes=64 * 10**9))[0].remedy


def test_a_gpu_without_a_driver(tmp_path, monkeypatch):
    """Devices of the PCI bus as Linux shows them: an NVIDIA GPU, its sound device, another maker's GPU."""
    monkeypatch.setattr(diagnosis, "PCI_DEVICES", tmp_path)
    nothing = replace(MACHINE, gpus=[], driver=None)
    for place, vendor, kind in (("a", "0x10de", "0x040300"), ("b", "0x1002", "0x030000"), ("c", "0x10de", "0x030200")):
        assert diagnose(nothing, []) == []
        (tmp_path / place).mkdir()
        (tmp_path / place / "vendor").write_text(f"{vendor}\n")
        (tmp_path / place / "class").write_text(f"{kind}\n")
    [found] = diagnose(nothing, [])
    assert found.severe and "driver does not answer" in found.problem
    assert diagnose(replace(nothing, driver="580"), []) == []  # hidden by CUDA_VISIBLE_DEVICES


def test_extras_are_those_of_the_package():
    """Their names and packages; a package with an extra of its own counts."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {
        extra: tuple(requirement.partition(">")[0] for requirement in packages)
        for extra, packages in project["optional-dependencies"].items()
    }
    assert {extra: packages for extra, (packages, _) in EXTRAS.items()} == declared


def test_an_extra_is_installed_if_all_its_packages_are(monkeypatch):
    monkeypatch.setattr(diagnosis, "installed", lambda name: None if name == "uvicorn" else "1.0")
    assert [extra for extra, is_installed in extras().items() if not is_installed] == ["serve"]


def test_the_cuda_of_torch_is_read_without_torch(monkeypatch, tmp_path):
    assert torch_cuda() == torch.version.cuda
    monkeypatch.setattr(diagnosis, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert torch_cuda() is None
    (tmp_path / "version.py").write_text("from typing import Optional\ncuda: Optional[str] = '13.0'\nhip = None\n")
    assert torch_cuda() == "13.0"
    (tmp_path / "version.py").write_text("cuda = None\nhip: Optional[str] = '7.0'\n")
    assert torch_cuda() is None
