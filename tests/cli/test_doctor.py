"""`tunesmith doctor` shows a machine and its GPUs in 80 columns."""

import io
import json

import pytest
from rich.console import Console

from tunesmith.cli import doctor
from tunesmith.cli.main import main
from tunesmith.finetune.gpu_check import GpuCheck
from tunesmith.machine import Gpu, Machine

WRONG = "bytes that are copied to it arrive changed; check its riser, slot and power"
RTX_3090, RTX_2060, LONG = (
    Gpu(0, "NVIDIA GeForce RTX 3090", 25_400_000_000, 2**34, (8, 6), "GPU-a"),
    Gpu(1, "NVIDIA GeForce RTX 2060", 6_200_000_000, 2**32, (7, 5), "GPU-b"),
    Gpu(10, "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 102_000_000_000, 2**36, (12, 0), "GPU-c"),
)
FOUND = [
    GpuCheck(RTX_3090, "bfloat16", 22.14e9, 23.4e9, 38.1e9, 11.04e9, 65.3e12),
    GpuCheck(RTX_2060, "float32", problem=WRONG),
    GpuCheck(LONG, "bfloat16", 55.2e9, 55.3e9, 101.9e9, 52.8e9, 1234.5e12),
]


def machine(*gpus: Gpu) -> Machine:
    return Machine("Linux-6.12", "a CPU", 8, 64 * 10**9, 32 * 10**9, 10**12, True, driver="580", gpus=list(gpus))


def shown(found: list[GpuCheck]) -> str:
    output = io.StringIO()
    Console(file=output, width=80).print(doctor.report(machine(*(one.gpu for one in found)), found))
    return output.getvalue()


def test_gpus_are_a_table_of_80_columns():
    lines = shown(FOUND).splitlines()
    assert max(map(len, lines)) <= 80
    [header] = [line for line in lines if "TFLOP/s" in line]
    assert header.split() == ["GPU", "Memory", "to", "GPU", "to", "host", "both", "together", "TFLOP/s"]
    [good] = [line for line in lines if line.startswith("0 ")]
    assert good.split()[-5:] == ["22.1", "23.4", "38.1", "11.0", "65.3"]
    [faulty] = [line for line in lines if line.startswith("1 ")]
    assert faulty.split()[-5:] == ["–"] * 5
    text = " ".join(" ".join(lines).split())
    assert f"GPU 1 (NVIDIA GeForce RTX 2060): {WRONG}" in text
    assert "Products in bfloat16 (GPU 0, 10), float32 (GPU 1)." in text


@pytest.mark.parametrize("as_json", [False, True])
def test_a_machine_without_a_gpu_has_no_table(monkeypatch, capsys, as_json):
    monkeypatch.setattr(doctor, "probe", machine)
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", *["--json"] * as_json])
    output = capsys.readouterr()
    assert "checking" not in output.err
    if as_json:
        found = json.loads(output.out)
        assert found["gpu_check"] == [] and found["machine"]["cores"] == 8
    else:
        assert "8 cores" in output.out and "GPU" not in output.out and "TFLOP" not in output.out


def test_json_has_the_rates_of_each_gpu(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "probe", lambda: machine(RTX_3090, RTX_2060))
    monkeypatch.setattr(doctor, "check_gpus", lambda gpus: FOUND[:2])
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--json"])
    good, faulty = json.loads(capsys.readouterr().out)["gpu_check"]
    assert good["uuid"] == "GPU-a" and good["flops_per_second"] == 65.3e12 and good["problem"] is None
    assert faulty["index"] == 1 and faulty["problem"] == WRONG and faulty["to_gpu_bytes_per_second"] is None
