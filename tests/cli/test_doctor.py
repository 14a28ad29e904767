"""`tunesmith doctor` shows a machine and its GPUs in 80 columns."""

import io
import json
import os
from dataclasses import replace

import pytest
from rich.console import Console

from tunesmith.cli import doctor
from tunesmith.cli.main import main
from tunesmith.finetune import speed
from tunesmith.finetune.diagnosis import diagnose
from tunesmith.finetune.gpu_check import GpuCheck
from tunesmith.leases import held
from tunesmith.machine import Gpu, Machine
from tunesmith.planner.machine_spec import described
from tunesmith.planner.rates import disk_rates, host_rates, rates_of

WRONG = "bytes that are copied to it arrive changed; check its riser, slot and power"
RTX_3090, RTX_2060, LONG = (
    Gpu(0, "NVIDIA GeForce RTX 3090", 25_400_000_000, 2**34, (8, 6), "GPU-a", 3, 4, 4, 16, 280.0, 350.0, 71, 93),
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
    there = machine(*(one.gpu for one in found))
    Console(file=output, width=80).print(doctor.report(there, found, diagnose(there, found)))
    return output.getvalue()


def test_gpus_are_a_table_of_80_columns():
    lines = shown(FOUND).splitlines()
    assert max(map(len, lines)) <= 80
    [header] = [line for line in lines if "TFLOP/s" in line]
    assert header.split() == ["GPU", "Memory", "to", "GPU", "to", "host", "both", "together", "TFLOP/s"]
    [slot, good] = [line for line in lines if line.startswith("0 ")]
    assert slot.split()[-10:] == "3.0 x4 4.0 x16 280 W 350 W 71 °C".split()
    assert good.split()[-5:] == ["22.1", "23.4", "38.1", "11.0", "65.3"]
    [unknown, faulty] = [line for line in lines if line.startswith("1 ")]
    assert unknown.split()[-5:] == ["–"] * 5
    assert faulty.split()[-5:] == ["–"] * 5
    text = " ".join(" ".join(lines).split())
    assert f"GPU 1 (NVIDIA GeForce RTX 2060): {WRONG}" in text
    assert "Products in bfloat16 (GPU 0, 10), float32 (GPU 1)." in text
    assert (
        "GPU 0 (NVIDIA GeForce RTX 3090): its link runs as PCIe 3.0 x4, and it is made for 4.0 x16, which slows" in text
    )


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
        assert "8 cores" in output.out and "to GPU" not in output.out and "TFLOP" not in output.out
        assert "plan for another machine: tunesmith plan recipe.yaml --machine" in output.out


def test_json_has_the_rates_of_each_gpu(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "probe", lambda: machine(RTX_3090, RTX_2060))
    monkeypatch.setattr(doctor, "check_gpus", lambda gpus, **_: FOUND[:2])
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    good, faulty = found["gpu_check"]
    assert {problem["about"] for problem in found["problems"]} >= {"GPU 0 (NVIDIA GeForce RTX 3090)"}
    assert found["versions"]["torch"] and set(found["extras"]) >= {"bnb", "gguf"}
    assert good["uuid"] == "GPU-a" and good["flops_per_second"] == 65.3e12 and good["problem"] is None
    assert faulty["index"] == 1 and faulty["problem"] == WRONG and faulty["to_gpu_bytes_per_second"] is None


def test_what_is_measured_is_kept_and_travels_with_the_machine(monkeypatch, capsys, tmp_path):
    """A GPU's rates are those of its check; the CPU and the disk are measured here, with small shapes."""
    measured = replace(
        FOUND[0], together_to_host_bytes_per_second=12e9, speeds={"memory_bytes_per_second": 8e11, "bfloat16": 4e13}
    )
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "probe", lambda: machine(RTX_3090))
    monkeypatch.setattr(doctor, "check_gpus", lambda gpus, **_: [measured])
    monkeypatch.setattr(doctor, "CPU_SECONDS", 0.01)
    sizes = {"CPU_SHAPE": (128, 128, 8), "MEMORY_NUMBERS": 2**12, "DISK_BYTES": 2**20, "BLOCK_BYTES": 2**18}
    for name, small in sizes.items():
        monkeypatch.setattr(speed, name, small)
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--measure"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    [row] = [line.split() for line in lines if line.startswith("GPU 0  ")]
    assert row == ["GPU", "0", "40.0", "–", "–", "800.0", "11.0", "12.0"]
    with pytest.raises(SystemExit, match="0"):
        main(["doctor", "--json"])
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "empty"))  # as on another machine
    (tmp_path / "machine.json").write_text(capsys.readouterr().out)
    there = described(str(tmp_path / "machine.json"))
    [rates] = rates_of(there, "bfloat16")
    assert (rates.flops_per_second, rates.memory_bytes_per_second, rates.source) == (4e13, 8e11, "measured")
    assert (rates.to_device_bytes_per_second, rates.to_host_bytes_per_second, rates.watts) == (11.04e9, 12e9, 280)
    assert host_rates(there).source == "measured" and there.free_disk_bytes is None
    assert disk_rates(there, tmp_path).write_bytes_per_second > 0


def test_who_holds_a_gpu_is_shown_and_a_gpu_that_trains_is_not_checked(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "probe", lambda: machine(RTX_3090, RTX_2060))
    checked = []

    def check(gpus, **_):
        checked.append([gpu.index for gpu in gpus])
        return [GpuCheck(gpu, "float32") for gpu in gpus]

    monkeypatch.setattr(doctor, "check_gpus", check)
    with (
        held(["GPU-a"], "training", exclusive=True, folder="runs/alpha", job=7),
        held(["GPU-a"], "chat", nbytes=5 * 10**9, folder="runs/beta"),
        held(["GPU-b", "GPU-hidden"], "serving", folder="models/gamma"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(["doctor"])
        output = capsys.readouterr().out
        with pytest.raises(SystemExit, match="0"):
            main(["doctor", "--json"])
        found = json.loads(capsys.readouterr().out)
    assert checked == [[1], [1]] and max(map(len, output.splitlines())) <= 80
    text, process = " ".join(output.split()), f"process {os.getpid()}"
    trains = f"alpha (training, {process}, job 7)"
    for line in (
        f"GPU 0 (NVIDIA GeForce RTX 3090): held by {trains}",
        f"GPU 0 (NVIDIA GeForce RTX 3090): held by beta (chat, {process}, 5.0 GB)",
        f"GPU 1 (NVIDIA GeForce RTX 2060): held by gamma (serving, {process})",
        f"GPU-hidden: held by gamma (serving, {process})",
        f"GPU 0 (NVIDIA GeForce RTX 3090): it was not checked, because {trains} uses it",
    ):
        assert line in text
    assert [(one["device"], one["use"], one["job"]) for one in found["holders"]] == [
        ("GPU-a", "training", 7),
        ("GPU-a", "chat", None),
        ("GPU-b", "serving", None),
        ("GPU-hidden", "serving", None),
    ]
    assert [one["note"] is None for one in found["gpu_check"]] == [False, True]
