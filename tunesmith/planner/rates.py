"""The speeds of a machine's devices that the planner's cost model needs: measured, or estimated from the catalogue.

`tunesmith doctor --measure` keeps what it measures in `rates.json` in the cache folder, by device, driver and torch. An
entry has `flops_per_second` and `weights_bytes_per_second` by precision, `memory_bytes_per_second`,
`to_device_bytes_per_second`, `to_host_bytes_per_second` and `launch_seconds`, as far as they apply, and the entry of a
disk has `write_bytes_per_second` and `read_bytes_per_second`; other keys are for people. Estimates are rules of thumb
that were not compared with GPUs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunesmith.errors import UserError
from tunesmith.files import cache_folder, read_json, write_json
from tunesmith.machine import Gpu, Machine
from tunesmith.planner.catalogue import CatalogueGpu, entry_of
from tunesmith.planner.decide import threads_of

# The keys in `Machine.rates` of the CPU with the host's memory, and of the disk; a GPU's is its UUID.
CPU, DISK = "cpu", "disk"

# Share of the peak rate that a training step reaches. Published speeds of 4090s and 3090s fit 0.55 within a fifth.
STEP_SHARE, POWER_LIMITED_SHARE = 0.55, 0.45
# A GPU whose power limit is below so many watts for each peak TFLOP/s does not hold its boost clock in products. GPUs
# from GA100 and Ada on are made in finer processes, and need half the power of Turing, Volta and the other Ampere GPUs.
LEAST_WATTS_PER_TFLOP, LEAST_WATTS_PER_TFLOP_FINER = 2.2, 1.0
MEMORY_SHARE = 0.8  # of the nominal memory bandwidth
LINK_SHARE = 0.8  # of the nominal bandwidth of a PCIe link
LANE_BYTES_PER_SECOND = {1: 250e6, 2: 500e6, 3: 985e6, 4: 1969e6, 5: 3938e6, 6: 7563e6}  # by PCIe generation, nominal
USUAL_LINK = (3, 16)  # where neither the driver nor the catalogue knows the link
CPU_WEIGHTS_SHARE = 0.35  # of the memory's rate, where the rate of reading weights was not measured
LAUNCH_SECONDS = 0.003  # 2 to 4 ms seen on two CPU cores
HOST_BYTES_PER_SECOND = 40e9  # two channels of DDR4
BY_PRECISION = ("flops_per_second", "weights_bytes_per_second")
NAMES = (
    "memory_bytes_per_second",
    "to_device_bytes_per_second",
    "to_host_bytes_per_second",
    "launch_seconds",
    "write_bytes_per_second",
    "read_bytes_per_second",
)


@dataclass(frozen=True)
class Rates:
    """Speeds of one device: a GPU with its link, or the CPU with all its cores. None is unknown."""

    flops_per_second: float | None
    """The rate of matrix products in the precision of computing, as a training step reaches it."""
    memory_bytes_per_second: float | None
    """The bandwidth of the device's own memory, reads and writes added up."""
    to_device_bytes_per_second: float
    """The rate of copies from pinned host memory, while all GPUs copy at once. Infinite on the CPU."""
    to_host_bytes_per_second: float
    launch_seconds: float
    """Time of one CPU core to launch a decoder layer's forward and backward pass for a micro-batch."""
    watts: float | None
    """The power limit."""
    source: str
    """"measured", "catalogue" (estimated from the peak rate), or "unknown"."""
    weights_bytes_per_second: float | None = None
    """The rate at which products with a few tokens read weights; None: that of the memory."""
    launches_overlap: bool = True
    """Whether the device computes while the CPU launches what comes next."""


@dataclass(frozen=True)
class HostRates:
    memory_bytes_per_second: float
    """Reads and writes added up, with all cores."""
    source: str
    """"measured", or "usual": an assumption."""


@dataclass(frozen=True)
class DiskRates:
    """Rates of large files; None if they were not measured."""

    write_bytes_per_second: float | None = None
    read_bytes_per_second: float | None = None


def rates_of(machine: Machine, compute: str) -> list[Rates]:
    """Returns the rates of each GPU in the machine's order, or of the CPU if there is no GPU. `compute` is bfloat16,
    float16 or float32. Raises UserError if rates.json is damaged."""
    measured = measured_rates(machine)
    of_cpu = measured.get(CPU, {})
    if not machine.gpus:
        return [_of_cpu(of_cpu, compute)]
    launch = of_cpu.get("launch_seconds", LAUNCH_SECONDS)
    return [_of_gpu(gpu, compute, measured.get(gpu.uuid, {}), launch) for gpu in machine.gpus]


def host_rates(machine: Machine) -> HostRates:
    """Raises UserError if rates.json is damaged."""
    rate = measured_rates(machine).get(CPU, {}).get("memory_bytes_per_second")
    return HostRates(rate, "measured") if rate else HostRates(HOST_BYTES_PER_SECOND, "usual")


def disk_rates(machine: Machine, folder: Path) -> DiskRates:
    """Returns the rates of the disk that holds a folder, which need not exist; of another machine, those of the disk
    that was measured there. Raises UserError if rates.json is damaged."""
    if machine.rates or machine.free_disk_bytes is None:
        found = machine.rates.get(DISK, {})
    else:
        found = _kept().get(_key_of_disk(folder), {})
    return DiskRates(found.get("write_bytes_per_second"), found.get("read_bytes_per_second"))


def _of_cpu(measured: Mapping[str, Any], compute: str) -> Rates:
    flops, memory = measured.get("flops_per_second", {}).get(compute), measured.get("memory_bytes_per_second")
    return Rates(
        flops_per_second=flops,
        memory_bytes_per_second=memory,
        to_device_bytes_per_second=float("inf"),
        to_host_bytes_per_second=float("inf"),
        launch_seconds=measured.get("launch_seconds", LAUNCH_SECONDS),
        watts=None,
        source="measured" if flops else "unknown",
        weights_bytes_per_second=measured.get("weights_bytes_per_second", {}).get(compute)
        or (memory and CPU_WEIGHTS_SHARE * memory),
        launches_overlap=False,
    )


def _of_gpu(gpu: Gpu, compute: str, measured: Mapping[str, Any], launch_seconds: float) -> Rates:
    model = entry_of(gpu)
    flops = measured.get("flops_per_second", {}).get(compute)
    estimate = _step_flops(gpu, model, compute) if model else None
    memory = model.bytes_per_second * MEMORY_SHARE if model else None
    link = link_bytes_per_second(gpu)
    return Rates(
        flops_per_second=flops or estimate,
        memory_bytes_per_second=measured.get("memory_bytes_per_second") or memory,
        to_device_bytes_per_second=measured.get("to_device_bytes_per_second") or link,
        to_host_bytes_per_second=measured.get("to_host_bytes_per_second") or link,
        launch_seconds=launch_seconds,
        watts=gpu.power_watts or (float(model.power_watts) if model else None),
        source="measured" if flops else "catalogue" if estimate else "unknown",
    )


def _step_flops(gpu: Gpu, model: CatalogueGpu, compute: str) -> float | None:
    """Returns the rate that a training step reaches on this model of GPU, estimated from its peak rate. A power limit
    below the usual one slows it by the cube root: the power of a chip grows about with the cube of its clock."""
    rates = {
        "bfloat16": model.bfloat16_flops or model.float32_flops,  # where the hardware has none, torch computes float32
        "float16": model.float16_flops,
        "float32": model.float32_flops,
    }
    peak, fastest = rates[compute], model.float16_flops
    if not peak or not fastest:
        return None
    finer = model.capability is not None and (model.capability == (8, 0) or model.capability >= (8, 9))
    least = LEAST_WATTS_PER_TFLOP_FINER if finer else LEAST_WATTS_PER_TFLOP
    share = POWER_LIMITED_SHARE if model.power_watts / (fastest / 1e12) < least else STEP_SHARE
    return peak * share * min(1.0, (gpu.power_watts or model.power_watts) / model.power_watts) ** (1 / 3)


def link_bytes_per_second(gpu: Gpu) -> float:
    """Returns what copies in one direction reach over a GPU's link, estimated from its generation and lanes."""
    model = entry_of(gpu)
    generation = gpu.pcie_generation or (model and model.pcie_generation) or USUAL_LINK[0]
    lanes = gpu.pcie_lanes or (model and model.pcie_lanes) or USUAL_LINK[1]
    newest = max(LANE_BYTES_PER_SECOND)
    return LANE_BYTES_PER_SECOND[min(generation, newest)] * lanes * LINK_SHARE


def rates_file() -> Path:
    return cache_folder() / "rates.json"


def measured_rates(machine: Machine) -> dict[str, dict[str, Any]]:
    """Returns what was measured on the devices of a machine, by UUID of a GPU, "cpu" and "disk": what a file of
    `doctor --json` holds, or what `doctor --measure` keeps here."""
    if machine.rates:
        return machine.rates
    kept = _kept()
    return {device: kept[key] for device, key in _keys(machine).items() if key in kept}


def _kept() -> dict[str, dict[str, Any]]:
    found = read_json(rates_file())
    if found is not None:
        check_rates(found, str(rates_file()))
    return found or {}


def keep_rates(machine: Machine, measured: Mapping[str, Mapping[str, Any]]) -> None:
    """Keeps what was measured on this machine, by UUID of a GPU, "cpu" and "disk" (of the current folder), beside what
    was measured before. A damaged file is replaced. Raises UserError if the file cannot be written."""
    keys = _keys(machine)
    try:
        kept = _kept()
    except UserError:
        kept = {}
    try:
        rates_file().parent.mkdir(parents=True, exist_ok=True)
        write_json(rates_file(), kept | {keys[device]: entry for device, entry in measured.items()})
    except OSError as error:
        raise UserError(f"{rates_file()}: {error.strerror}; set TUNESMITH_CACHE to a folder for such files") from None


def check_rates(found: Any, place: str) -> None:
    """Raises UserError, naming the place, unless `found` holds rates as `doctor --measure` writes them."""
    if not isinstance(found, dict) or not all(isinstance(entry, dict) for entry in found.values()):
        raise UserError(f"{place} is no JSON object of devices; write it with `tunesmith doctor --measure`")
    for device, entry in found.items():
        values = [(name, entry[name]) for name in NAMES if name in entry]
        for name in BY_PRECISION:
            by_precision = entry.get(name, {})
            if not isinstance(by_precision, dict):
                raise UserError(f"{place}: {device}: {name} has no precisions; measure again")
            values += by_precision.items()
        for name, value in values:
            if type(value) not in (int, float) or value <= 0:
                raise UserError(f"{place}: {device}: {name} is {value!r}, no positive number; measure again")


def _keys(machine: Machine) -> dict[str, str]:
    """Returns the keys in rates.json of a machine's devices."""
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "no torch"
    gpus = {gpu.uuid: f"{gpu.uuid} | driver {machine.driver} | {torch}" for gpu in machine.gpus if gpu.uuid}
    threads = threads_of(machine.cores, 1)
    cpu = f"{machine.processor} | {machine.cores} cores, {threads} threads | {torch}"
    return {CPU: cpu, DISK: _key_of_disk(Path("."))} | gpus


def _key_of_disk(folder: Path) -> str:
    """Returns the key in rates.json of the disk that holds a folder: where it is mounted."""
    folder = folder.resolve()
    mount = next(path for path in (folder, *folder.parents) if path.is_mount() or path == path.parent)
    return f"disk at {mount}"
