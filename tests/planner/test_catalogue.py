"""GPUs by name, and their rates."""

import pytest

from tunesmith.errors import UserError
from tunesmith.machine import Gpu
from tunesmith.planner.catalogue import catalogue, entry_of, find

CUDA = [gpu for gpu in catalogue() if gpu.capability]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "RTX 4090") for name in ("RTX 4090", "4090", "NVIDIA GeForce RTX 4090", " rtx4090 ", "geforce 4090")),
        *((name, "RTX A4500") for name in ("RTX-A4500", "rtx_a4500", "A4500")),
        *((name, "RTX 3090 Ti") for name in ("3090 Ti", "3090ti", "RTX 3090TI")),
        *((name, "RTX 4070 Ti SUPER") for name in ("4070 ti super", "RTX 4070 Ti Super", "4070TiSuper")),
        *(
            (name, "RTX 3060 12 GB")
            for name in ("3060 12GB", "RTX 3060 12 GB", "3060_12_GB", "NVIDIA GeForce RTX 3060")
        ),
        *((name, "A100 SXM 80 GB") for name in ("A100 SXM", "NVIDIA A100-SXM4-80GB")),
        ("3090", "RTX 3090"),
        ("5060 Ti 16GB", "RTX 5060 Ti 16 GB"),
        ("RTX 6000 Ada", "RTX 6000 Ada"),
        ("PRO 6000", "RTX PRO 6000 Blackwell"),
        ("V100", "V100 PCIe 32 GB"),
        ("L40", "L40"),
        ("Tesla T4", "T4"),
        ("7900 XTX", "RX 7900 XTX"),
    ],
)
def test_a_gpu_is_found_by_the_names_that_users_write(name, expected):
    assert find(name).name == expected


@pytest.mark.parametrize("gpu", catalogue(), ids=lambda gpu: gpu.name)
def test_every_gpu_is_found_by_its_own_name(gpu):
    assert find(gpu.name) is gpu and find(gpu.name.upper().replace(" GB", "GB")) is gpu


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("4900", "--machine: no GPU 4900; did you mean RTX 4090"),
        ("4090 Laptop GPU", "--machine: no GPU 4090 Laptop GPU; did you mean RTX 4090"),
        ("7900", "--machine: no GPU 7900; did you mean RX 7900 XTX?"),
        ("4080Ti", "--machine: no GPU 4080Ti; did you mean RTX 4080"),
        ("3060", "--machine: 3060 is RTX 3060 12 GB or RTX 3060 Ti: say which"),
        ("NVIDIA GeForce RTX 4060 Ti", "4060 Ti is RTX 4060 Ti 8 GB or RTX 4060 Ti 16 GB: say which"),
        ("A100", "A100 is A100 PCIe 40 GB or A100 PCIe 80 GB or A100 SXM 80 GB: say which"),
        ("RTX 6000", "RTX 6000 is RTX 6000 Ada or RTX PRO 6000 Blackwell: say which"),
        ("", "--machine: no GPU (empty name)"),
        ("???", "--machine: no GPU ???"),
        ("2x3090", "--machine: no GPU 2x3090"),
    ],
)
def test_an_unknown_or_ambiguous_name_gets_the_nearest_ones(name, message):
    with pytest.raises(UserError) as error:
        find(name)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_names_are_distinct():
    names = [gpu.name.lower() for gpu in catalogue()]
    assert len(names) == len(set(names)) >= 50
    sizes = [(gpu.nvml_name, gpu.memory_bytes) for gpu in CUDA]
    assert len(sizes) == len(set(sizes))


@pytest.mark.parametrize("gpu", catalogue(), ids=lambda gpu: gpu.name)
def test_numbers_are_plausible(gpu):
    assert gpu.memory_from in ("driver", "estimate", "open") and gpu.source.startswith("https://")
    assert (gpu.memory_bytes is None) == (gpu.memory_from == "open")
    assert gpu.memory_bytes is None or 8e9 < gpu.memory_bytes < 160e9
    assert 200e9 < gpu.bytes_per_second < 5e12 and 50 < gpu.power_watts <= 700
    assert gpu.pcie_generation in (None, 3, 4, 5) and gpu.pcie_lanes in (None, 8, 16)
    assert not (gpu.rates_from == "open" and gpu.float16_flops)


@pytest.mark.parametrize("gpu", CUDA, ids=lambda gpu: gpu.name)
def test_rates_go_together(gpu):
    assert 8e12 < gpu.float32_flops < 130e12
    if gpu.name != "GB10":
        assert 1 <= gpu.float16_flops / gpu.float32_flops < 17
        assert 20 < gpu.float16_flops / gpu.bytes_per_second < 500  # operations for each byte of memory read
        assert gpu.bfloat16_flops == (gpu.float16_flops if gpu.capability >= (8, 0) else None)
        assert 0.02e12 < gpu.float16_flops / gpu.power_watts < 3e12


# Operations of a multiprocessor in a clock, in float16 with sums in float32. With the same multiprocessors, GPUs for
# workstations and data centres have twice the rate of GeForce.
OPERATIONS = {(7, 0): 1024, (8, 0): 2048, (9, 0): 4096}
PLAIN = {"P40": 2 * 128, "P100 16 GB": 4 * 64}  # without tensor cores: operations of their float units


@pytest.mark.parametrize("gpu", [gpu for gpu in CUDA if gpu.rates_from == "calculated"], ids=lambda gpu: gpu.name)
def test_calculated_rates_follow_from_multiprocessors_and_clock(gpu):
    usual = 512 if "GeForce" in gpu.nvml_name else 1024
    operations = PLAIN.get(gpu.name) or OPERATIONS.get(gpu.capability, usual)
    rate = gpu.multiprocessors * gpu.boost_mhz * 1e6 * operations
    assert gpu.float16_flops == pytest.approx(rate, rel=0.005)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("3090", 71), ("3090 Ti", 80), ("A6000", 154.8), ("4090", 165.2), ("6000 Ada", 364.2), ("5090", 209.5),
     ("5070 Ti", 87.9), ("PRO 6000", 503.8), ("A100 SXM", 312), ("A100 PCIe 80 GB", 312),
     ("H100 SXM", 989), ("H100 PCIe", 756)],
)  # fmt: skip
def test_rates_are_those_of_the_whitepapers(name, tflops):
    assert find(name).bfloat16_flops == pytest.approx(tflops * 1e12, rel=0.005)


def test_a_gpu_of_a_machine_is_found_by_its_driver_s_name_and_memory():
    def named(name: str, nbytes: int) -> str | None:
        model = entry_of(Gpu(0, name, nbytes, nbytes, (8, 9)))
        return model and model.name

    assert named("NVIDIA GeForce RTX 4060 Ti", 8_500_000_000) == "RTX 4060 Ti 8 GB"
    assert named("NVIDIA GeForce RTX 4060 Ti", 17_100_000_000) == "RTX 4060 Ti 16 GB"
    assert named("RTX 4090", 25_000_000_000) == "RTX 4090"
    assert named("NVIDIA GeForce RTX 4090 Laptop GPU", 17_000_000_000) is None
