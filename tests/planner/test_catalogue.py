"""GPUs by name, and machines from a list of GPUs or from a file that `doctor` wrote."""

import json

import pytest

from tunesmith.cli import doctor
from tunesmith.cli.main import main
from tunesmith.errors import UserError
from tunesmith.machine import Gpu, Machine
from tunesmith.planner.catalogue import catalogue, find, machine_of, read_machine

GIB = 2**30
MACHINE = Machine(
    *("Linux-6.12", "a CPU", 8, 64 * 10**9, 32 * 10**9, 10**12, True),
    driver="580",
    gpus=[Gpu(0, "NVIDIA GeForce RTX 3090", 25_769_803_776, 24_000_000_000, (8, 6), "GPU-a")],
)
CUDA = [gpu for gpu in catalogue() if gpu.capability]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "RTX 4090") for name in ("RTX 4090", "4090", "NVIDIA GeForce RTX 4090", " rtx4090 ", "geforce 4090")),
        *((name, "RTX 3090 Ti") for name in ("3090 Ti", "3090ti", "RTX 3090TI")),
        *((name, "RTX 4070 Ti SUPER") for name in ("4070 ti super", "RTX 4070 Ti Super", "4070TiSuper")),
        *((name, "RTX 3060 12 GB") for name in ("3060 12GB", "RTX 3060 12 GB", "NVIDIA GeForce RTX 3060")),
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
        ("4900", "--gpus: no GPU 4900; did you mean RTX 4090"),
        ("4090 Laptop GPU", "--gpus: no GPU 4090 Laptop GPU; did you mean RTX 4090"),
        ("7900", "--gpus: no GPU 7900; did you mean RX 7900 XTX?"),
        ("4080Ti", "--gpus: no GPU 4080Ti; did you mean RTX 4080"),
        ("3060", "--gpus: 3060 is RTX 3060 12 GB or RTX 3060 Ti: say which"),
        ("NVIDIA GeForce RTX 4060 Ti", "4060 Ti is RTX 4060 Ti 8 GB or RTX 4060 Ti 16 GB: say which"),
        ("A100", "A100 is A100 PCIe 40 GB or A100 PCIe 80 GB or A100 SXM 80 GB: say which"),
        ("RTX 6000", "RTX 6000 is RTX 6000 Ada or RTX PRO 6000 Blackwell: say which"),
        ("", "--gpus: no GPU (empty name)"),
        ("???", "--gpus: no GPU ???"),
        ("2x3090", "--gpus: no GPU 2x3090"),
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


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("3090", 71), ("3090 Ti", 80), ("A6000", 154.8), ("4090", 165.2), ("6000 Ada", 364.2), ("5090", 209.5),
     ("5070 Ti", 87.9), ("PRO 6000", 503.8), ("A100 SXM", 312), ("H100 SXM", 989), ("H100 PCIe", 756)],
)  # fmt: skip
def test_rates_are_those_of_the_whitepapers(name, tflops):
    assert find(name).bfloat16_flops == pytest.approx(tflops * 1e12, rel=0.005)


def test_a_machine_of_several_gpus():
    machine = machine_of("2x3090+4090 + 3060 12GB", 64 * GIB)
    assert [gpu.name.rsplit(" ", 1)[1] for gpu in machine.gpus] == ["3090", "3090", "4090", "3060"]
    assert [gpu.index for gpu in machine.gpus] == [0, 1, 2, 3]
    assert [gpu.capability for gpu in machine.gpus] == [(8, 6), (8, 6), (8, 9), (8, 6)]
    assert machine.memory_bytes == 64 * GIB > machine.free_memory_bytes > 50 * GIB
    assert machine.gpus[0].total_bytes == 24 * GIB
    for gpu in machine.gpus:
        assert 0.5 * GIB < gpu.total_bytes - gpu.free_bytes < 1.2 * GIB


def test_a_gpu_with_unified_memory_has_the_hosts():
    [gpu] = machine_of("GB10", 120 * GIB).gpus
    assert gpu.total_bytes == 120 * GIB > gpu.free_bytes


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("", r"--gpus: \(empty\): give a count and a name"),
        ("3090+", r"--gpus: \(empty\): give"),
        ("2x", "--gpus: 2x: give"),
        ("0x3090", "--gpus: 0x3090: give"),
        ("100x3090", "--gpus: 100 GPUs; a machine has at most 64"),
        ("3090+4900", "--gpus: no GPU 4900; did you mean"),
        ("7900 XTX", "--gpus: RX 7900 XTX: Tunesmith trains on NVIDIA GPUs only"),
    ],
)
def test_a_wrong_list_of_gpus_is_one_line(gpus, message):
    with pytest.raises(UserError, match=message):
        machine_of(gpus, 64 * GIB)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "machine.json"


def test_a_machine_that_doctor_wrote_is_read_back(monkeypatch, capsys, file):
    monkeypatch.setattr(doctor, "probe", lambda: MACHINE)
    monkeypatch.setattr(doctor, "check_gpus", lambda gpus: [])
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--json"])
    file.write_text(capsys.readouterr().out)
    assert read_machine(file) == MACHINE
    file.write_text(json.dumps(json.loads(file.read_text())["machine"]))
    assert read_machine(file) == MACHINE


def test_a_planned_machine_is_read_back(file):
    machine = machine_of("2x3090+4090", 64 * GIB)
    file.write_text(json.dumps(machine.as_dict()))
    assert read_machine(file) == machine


def test_a_missing_file_and_text_that_is_no_json(file):
    with pytest.raises(UserError, match="machine.json: No such file or directory; write it with `tunesmith doctor"):
        read_machine(file)
    for content in (b"GPU 0", b"\xff\xfe", b""):
        file.write_bytes(content)
        with pytest.raises(UserError, match="machine.json: not JSON"):
            read_machine(file)
    file.write_text("[]")
    with pytest.raises(UserError, match="machine.json: the machine is no JSON object"):
        read_machine(file)


@pytest.mark.parametrize(
    ("of_machine", "of_gpu", "message"),
    [
        ({}, {"total_bytes": 24}, r": gpus\[0\].total_bytes is 24, which is less than 1 GB: give bytes"),
        ({}, {"total_bytes": 24576, "free_bytes": 20000}, r"total_bytes is 24576, which is less than 1 GB"),
        ({}, {"free_bytes": 23}, r"gpus\[0\].free_bytes is 23, which is less than 1 MB: give bytes"),
        ({}, {"free_bytes": 26_000_000_000}, r"gpus\[0\].free_bytes is more than total_bytes"),
        ({}, {"capability": "8.6"}, r'gpus\[0\].capability is "8.6"; give two numbers'),
        ({}, {"capability": None}, r"gpus\[0\].capability is null; give two numbers"),
        ({}, {"name": 3090}, r"gpus\[0\].name is 3090; give a text"),
        ({}, {"total_bytes": "24 GB"}, r'gpus\[0\].total_bytes is "24 GB"; give a whole number'),
        ({"memory_bytes": 64}, {}, ": memory_bytes is 64, which is less than 1 GB: give bytes"),
        ({"free_memory_bytes": 32}, {}, ": free_memory_bytes is 32, which is less than 1 MB"),
        ({"cores": True}, {}, "cores is true; give a whole number"),
        ({"cores": -1}, {}, "cores is -1, which is negative"),
        ({"gpus": {}}, {}, "gpus is no list"),
        ({"gpus": [3090]}, {}, r"gpus\[0\] is no JSON object"),
    ],
)
def test_wrong_values_are_named(file, of_machine, of_gpu, message):
    found = MACHINE.as_dict()
    found["gpus"][0] |= of_gpu
    file.write_text(json.dumps(found | of_machine))
    with pytest.raises(UserError, match=message) as error:
        read_machine(file)
    assert str(error.value).startswith(f"{file}: ")


@pytest.mark.parametrize("key", ["memory_bytes", "cores", "cpu_fast_bf16"])
def test_missing_keys_are_named(file, key):
    file.write_text(json.dumps({name: value for name, value in MACHINE.as_dict().items() if name != key}))
    with pytest.raises(UserError, match=f"machine.json: {key} is missing"):
        read_machine(file)
    found = MACHINE.as_dict()
    del found["gpus"][0]["total_bytes"]
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"machine.json: gpus\[0\].total_bytes is missing"):
        read_machine(file)
