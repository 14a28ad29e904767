"""Speeds of devices: estimates from the catalogue, and measured values in their place."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.machine import Gpu, Machine
from tunesmith.planner import rates
from tunesmith.planner.catalogue import find
from tunesmith.planner.machine_spec import machine_of
from tunesmith.planner.rates import DiskRates, disk_rates, host_rates, keep_rates, rates_file, rates_of

OF_GPU = {
    "flops_per_second": {"bfloat16": 5e13, "float32": 2e13},
    "memory_bytes_per_second": 7e11,
    "to_device_bytes_per_second": 1.1e10,
    "to_host_bytes_per_second": 1.2e10,
}
OF_CPU = {"flops_per_second": {"float32": 2e11}, "memory_bytes_per_second": 2e10, "launch_seconds": 0.0021}
MACHINE = Machine(
    *("Linux", "a CPU", 8, 64 * 10**9, 32 * 10**9, 10**12, True),
    driver="580",
    gpus=[
        Gpu(0, "NVIDIA GeForce RTX 3090", 25_769_803_776, 24_000_000_000, (8, 6), "GPU-a", 3, 8, power_watts=350.0),
        Gpu(1, "a new GPU", 25_769_803_776, 24_000_000_000, (12, 0), "GPU-b"),
    ],
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def only(text: str, compute: str = "bfloat16") -> rates.Rates:
    [one] = rates_of(machine_of(text), compute)
    assert one.source == "catalogue"
    return one


def test_estimates_are_shares_of_the_catalogue():
    one = only("4090")
    assert one.flops_per_second == pytest.approx(165.2e12 * 0.55)
    assert one.memory_bytes_per_second == pytest.approx(1010e9 * 0.8) and one.watts == 450
    # 16 GT/s a lane, of 130 bits for 128; and four fifths of it
    assert one.to_device_bytes_per_second == pytest.approx(16 * 16e9 * 128 / 130 / 8 * 0.8, rel=0.001)
    assert 0.002 <= one.launch_seconds <= 0.004


@pytest.mark.parametrize("limited", ["L4", "L40S", "A4500", "RTX 6000 Ada", "H100 PCIe", "A40"])
@pytest.mark.parametrize("usual", ["4090", "3090", "5060 Ti 16GB", "PRO 6000", "A100 SXM"])
def test_gpus_with_little_power_for_their_rate_reach_less_of_it(limited, usual):

    assert only(limited).flops_per_second / find(limited).bfloat16_flops == pytest.approx(0.45)
    assert only(usual).flops_per_second / find(usual).bfloat16_flops == pytest.approx(0.55)


def test_a_power_limit_slows_a_gpu_by_less_than_its_share():
    whole, limited, more = only("3090"), only("3090,watts=280"), only("3090,watts=500")
    assert 0.8 < limited.flops_per_second / whole.flops_per_second < 1 and limited.watts == 280
    assert more == whole


def test_links_are_those_of_the_machine():
    whole, half, old = only("4090"), only("4090@4.0x8"), only("4090@3.0x16")
    assert whole.to_device_bytes_per_second == 2 * half.to_device_bytes_per_second == 2 * half.to_host_bytes_per_second
    assert old.to_device_bytes_per_second == pytest.approx(half.to_device_bytes_per_second, rel=0.001)


def test_what_the_catalogue_leaves_open_is_none():
    of_known, of_new = rates_of(MACHINE, "bfloat16")
    assert (
        of_known.flops_per_second and of_new.flops_per_second is of_new.memory_bytes_per_second is of_new.watts is None
    )
    assert of_new.source == "unknown" and of_new.to_device_bytes_per_second > 0
    [gb10] = rates_of(machine_of("GB10"), "bfloat16")
    assert gb10.flops_per_second is None and gb10.memory_bytes_per_second and gb10.source == "unknown"
    [old] = rates_of(machine_of("P40"), "bfloat16")
    assert old.flops_per_second == pytest.approx(11.8e12 * 0.55)  # computed in float32


def test_measured_rates_replace_estimates():
    keep_rates(MACHINE, {"GPU-a": OF_GPU, "cpu": OF_CPU})
    measured, other = rates_of(MACHINE, "bfloat16")
    assert measured == rates.Rates(5e13, 7e11, 1.1e10, 1.2e10, 0.0021, 350, "measured")
    assert other.source == "unknown" and other.launch_seconds == 0.0021
    assert rates_of(MACHINE, "float32")[0].flops_per_second == 2e13
    in_float16 = rates_of(MACHINE, "float16")[0]  # not measured, other than its link
    assert in_float16.source == "catalogue" and in_float16.to_device_bytes_per_second == 1.1e10
    assert host_rates(MACHINE) == rates.HostRates(2e10, "measured")
    [cpu] = rates_of(replace(MACHINE, gpus=[]), "float32")
    assert (cpu.flops_per_second, cpu.launch_seconds, cpu.source) == (2e11, 0.0021, "measured")
    assert cpu.weights_bytes_per_second == rates.CPU_WEIGHTS_SHARE * 2e10 and not cpu.launches_overlap
    keep_rates(MACHINE, {"cpu": OF_CPU | {"weights_bytes_per_second": {"float32": 4e9}}})
    assert rates_of(replace(MACHINE, gpus=[]), "float32")[0].weights_bytes_per_second == 4e9


def test_rates_are_those_of_the_same_driver_torch_and_cpu(monkeypatch):
    keep_rates(MACHINE, {"GPU-a": OF_GPU, "cpu": OF_CPU})
    keep_rates(replace(MACHINE, driver="600"), {"GPU-a": OF_GPU | {"memory_bytes_per_second": 8e11}})
    assert rates_of(MACHINE, "bfloat16")[0].memory_bytes_per_second == 7e11
    assert rates_of(replace(MACHINE, driver="590"), "bfloat16")[0].source == "catalogue"
    assert (
        host_rates(replace(MACHINE, cores=16)).source
        == host_rates(replace(MACHINE, processor="other")).source
        == "usual"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert host_rates(MACHINE).source == "usual"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(rates, "version", lambda name: version(name) + "+other")
    assert rates_of(MACHINE, "bfloat16")[0].source == "catalogue" and host_rates(MACHINE).source == "usual"


def test_a_machine_s_own_rates_come_before_those_kept_here():
    keep_rates(MACHINE, {"GPU-a": OF_GPU, "cpu": OF_CPU})
    own = replace(MACHINE, rates={"GPU-b": OF_GPU | {"flops_per_second": {"bfloat16": 1e14}}})
    assert [one.flops_per_second for one in rates_of(own, "bfloat16")][1] == 1e14
    assert rates_of(own, "bfloat16")[0].source == "catalogue" and host_rates(own).source == "usual"


def test_rates_of_a_disk_are_those_of_where_it_is_mounted(tmp_path, monkeypatch):
    """Those of a machine that is only described are its own, or not known."""
    mount = tmp_path / "mount"
    mount.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path in (mount, Path("/")))
    monkeypatch.chdir(mount)
    keep_rates(MACHINE, {"disk": {"write_bytes_per_second": 1e9}})
    assert disk_rates(MACHINE, mount / "not" / "there") == DiskRates(1e9, None)
    assert disk_rates(MACHINE, tmp_path) == disk_rates(machine_of("4090"), mount) == DiskRates()
    assert disk_rates(replace(MACHINE, rates={"disk": {"read_bytes_per_second": 2e9}}), tmp_path) == DiskRates(
        None, 2e9
    )


def test_a_cpu_that_was_not_measured_has_no_rate():
    [cpu] = rates_of(replace(MACHINE, gpus=[]), "float32")
    assert cpu.flops_per_second is cpu.memory_bytes_per_second is None and cpu.source == "unknown"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        '{"a": {"flops_per_second": 1}}',
        '{"a": {"launch_seconds": "x"}}',
        '{"a": {"weights_bytes_per_second": {"float32": 0}}}',
    ],
)
def test_a_damaged_file_is_named(content):
    rates_file().parent.mkdir()
    rates_file().write_text(content)
    with pytest.raises(UserError, match=r"cache/rates.json"):
        rates_of(MACHINE, "bfloat16")
    keep_rates(MACHINE, {"GPU-a": OF_GPU})  # by measuring again
    assert rates_of(MACHINE, "bfloat16")[0].source == "measured"


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/rates.json: .*; set TUNESMITH_CACHE"):
        keep_rates(MACHINE, {"cpu": OF_CPU})


def test_the_file_is_json_by_device_driver_and_torch():
    keep_rates(MACHINE, {"GPU-a": OF_GPU, "cpu": OF_CPU})
    torch = version("torch")
    assert set(json.loads(rates_file().read_text())) == {
        f"GPU-a | driver 580 | torch {torch}",
        f"a CPU | 8 cores, 8 threads | torch {torch}",
    }
