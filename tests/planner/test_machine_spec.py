"""Machines that are described: by a text, or by a file that `doctor` wrote."""

import json

import pytest

from tunesmith.cli import doctor
from tunesmith.cli.main import main
from tunesmith.errors import UserError
from tunesmith.finetune.gpu_check import GpuCheck
from tunesmith.machine import Gpu, Machine, memory
from tunesmith.planner.machine_spec import described, machine_of, read_machine

GIB = 2**30
MACHINE = Machine(
    *("Linux-6.12", "a CPU", 8, 64 * 10**9, 32 * 10**9, 10**12, True),
    driver="580",
    gpus=[Gpu(0, "NVIDIA GeForce RTX 3090", 25_769_803_776, 24_000_000_000, (8, 6), "GPU-a", 4, 8, 4, 16, 280.0)],
    rates={"GPU-a": {"flops_per_second": {"bfloat16": 4e13}}},
)


def test_a_machine_of_several_gpus():
    machine = machine_of("2x3090+4090 + 3060 12GB,host=64GiB")
    assert [gpu.name.rsplit(" ", 1)[1] for gpu in machine.gpus] == ["3090", "3090", "4090", "3060"]
    assert [gpu.index for gpu in machine.gpus] == [0, 1, 2, 3]
    assert [gpu.capability for gpu in machine.gpus] == [(8, 6), (8, 6), (8, 9), (8, 6)]
    assert machine.memory_bytes == 64 * GIB > machine.free_memory_bytes > 50 * GIB
    assert machine.gpus[0].total_bytes == 24 * GIB
    for gpu in machine.gpus:
        assert 0.5 * GIB < gpu.total_bytes - gpu.free_bytes < 1.2 * GIB


def test_links_and_power_limits():
    """Of all GPUs, or of one; and no faster than the GPU itself."""

    def links(text: str) -> list[tuple]:
        return [(gpu.pcie_generation, gpu.pcie_lanes) for gpu in machine_of(text).gpus]

    assert links("2xRTX-4090+1xRTX_3090,host=64GB,link=3.0x8") == [(3, 8)] * 3
    assert links("4090@4.0x16+2x3090@3.0x4") == [(4, 16), (3, 4), (3, 4)]
    assert links("4090@3x4+3090,link=5.0×16") == [(3, 4), (4, 16)]
    assert links("5060 Ti 16GB") == [(5, 8)]
    limited, usual = machine_of("4090+T4,watts=250").gpus
    assert (limited.power_watts, limited.default_power_watts, usual.power_watts) == (250, 450, 70)


def test_a_machine_has_as_much_memory_as_this_one_unless_its_text_has_another():
    assert machine_of("4090").memory_bytes == memory()[0]
    assert machine_of("4090,host=64GB").memory_bytes == 64 * 10**9
    assert machine_of("4090, HOST = 1.5 TB").memory_bytes == 1.5e12


def test_a_gpu_with_unified_memory_has_the_hosts():
    [gpu] = machine_of("GB10,host=120GiB").gpus
    assert gpu.total_bytes == 120 * GIB > gpu.free_bytes


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("", r"--machine: \(empty\): give a count and a name"),
        ("3090+", r"--machine: \(empty\): give"),
        ("2x", "--machine: 2x: give"),
        ("0x3090", "--machine: 0x3090: give"),
        ("100x3090", "--machine: 100 GPUs; a machine has at most 64"),
        ("3090+4900", "--machine: no GPU 4900; did you mean"),
        ("7900 XTX", "--machine: RX 7900 XTX: Tunesmith trains on NVIDIA GPUs only"),
        ("4090,host=64", "--machine: host=64: give at least 1 GB of memory with its unit, such as host=64GB"),
        ("4090,host=64MB", "--machine: host=64MB: give at least 1 GB"),
        ("4090,host=0.5GB", "--machine: host=0.5GB: give at least 1 GB"),
        ("4090,host=-64GB", "--machine: host=-64GB: give at least 1 GB"),
        ("4090,memory=64GB", "--machine: no key memory; the keys are host=64GB, link=4.0x8, watts=250"),
        ("4090,64GB", "--machine: no key 64GB; the keys are"),
        ("4090,", r"--machine: no key \(empty\); the keys are"),
        ("4090,host=64GB,HOST=32GB", "--machine: HOST is given twice"),
        ("4090,link=8", "--machine: link=8: a link is a PCIe generation"),
        ("4090,link=9.0x8", "--machine: link=9.0x8: a link is"),
        ("4090,link=4.0x3", "--machine: link=4.0x3: a link is"),
        ("4090@", "--machine: 4090@: a link is"),
        ("4090@x16", "--machine: 4090@x16: a link is"),
        ("4090,watts=0", "--machine: watts=0: give the power limit"),
        ("runs/there.json", "--machine: runs/there.json: No such file or directory; write it with"),
        ("4090,watts=many", "--machine: watts=many: give the power limit"),
    ],
)
def test_a_wrong_description_is_one_line(gpus, message):
    with pytest.raises(UserError, match=message) as error:
        described(gpus)
    assert "\n" not in str(error.value)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "machine.json"


def test_a_machine_that_doctor_wrote_is_read_back(monkeypatch, capsys, file):
    monkeypatch.setattr(doctor, "probe", lambda: MACHINE)
    monkeypatch.setattr(doctor, "check_gpus", lambda gpus, **_: [GpuCheck(gpu, "bfloat16") for gpu in gpus])
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--json"])
    file.write_text(capsys.readouterr().out)
    assert read_machine(file) == MACHINE
    file.write_text(json.dumps(json.loads(file.read_text())["machine"]))
    assert read_machine(file) == MACHINE


def test_a_planned_machine_is_read_back(file):
    machine = machine_of("2x3090+4090@3.0x4,host=64GB,watts=250")
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
        ({}, {"pcie_lanes": 1.5}, r"gpus\[0\].pcie_lanes is 1.5; give a whole number"),
        ({}, {"power_watts": "280 W"}, r'gpus\[0\].power_watts is "280 W"; give a number'),
        ({"rates": [1]}, {}, ": rates is no JSON object of devices; write it with `tunesmith doctor --measure`"),
        ({"rates": {"cpu": {"launch_seconds": 0}}}, {}, ": rates: cpu: launch_seconds is 0, no positive number"),
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


def test_a_file_without_links_power_and_rates_is_read(file):
    """As Tunesmith wrote them before it knew these."""
    found = MACHINE.as_dict()
    del found["rates"]
    found["gpus"] = [
        {key: found["gpus"][0][key] for key in ("index", "name", "total_bytes", "free_bytes", "capability")}
    ]
    file.write_text(json.dumps(found))
    machine = described(str(file))
    assert machine.rates == {} and machine.gpus[0].pcie_lanes is None and machine.gpus[0].power_watts is None


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
