"""Machines that are described instead of probed: `--machine 2x3090+4090,host=64GB`, or a file of `doctor --json`."""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from tunesmith.errors import UserError
from tunesmith.machine import Gpu, Machine, memory
from tunesmith.planner.catalogue import CatalogueGpu, find
from tunesmith.planner.rates import LANE_BYTES_PER_SECOND, check_rates
from tunesmith.units import size

RESERVED_SHARE = 0.02  # of the memory, for the driver: an RTX 4090 leaves CUDA 24,110 of 24,564 MiB
DESKTOP_BYTES = 512 * 2**20  # for an idle desktop: published nvidia-smi outputs show 270 to 850 MiB
FREE_HOST_SHARE = 0.9  # of the host memory that a planned machine has
CORES_PER_GPU = 8
MOST_GPUS = 64
MOST_LANES = 16
SMALLEST_TOTAL, SMALLEST_FREE = 10**9, 10**6  # bytes; less is a number in another unit
BYTES = {"gb": 10**9, "tb": 10**12, "gib": 2**30, "tib": 2**40}
KEYS = {"host": "host=64GB", "link": "link=4.0x8", "watts": "watts=250"}


def described(text: str) -> Machine:
    """Returns the machine that `--machine` describes: the path of a file, or GPUs and keys. It is another one, so that
    the disk of the run is not known. Raises UserError."""
    if not (text.endswith(".json") or "/" in text or Path(text).is_file()):
        return machine_of(text)
    try:
        return replace(read_machine(Path(text)), free_disk_bytes=None)
    except UserError as error:
        raise UserError(f"--machine: {error}") from None


@dataclass(frozen=True)
class _Slot:
    """A model of GPU and the PCIe link of its slot; None: the link that the GPU is made for."""

    model: CatalogueGpu
    link: tuple[int, int] | None


def machine_of(text: str) -> Machine:
    """Returns the machine with these GPUs, in this order, such as `4090@4.0x16+3060-12GB,host=64GB,link=3.0x8`.

    The keys after the GPUs are `host`, its memory (by default as much as this machine has), and `link` and `watts`, the
    PCIe link and the power limit of every GPU. A link after a GPU's name is that of this GPU. The machine is a Linux
    workstation with 8 cores for each GPU, with a tenth of its memory in use. Free memory of a GPU leaves out what the
    driver reserves and what an idle desktop needs, on every GPU.
    """
    gpus, *pairs = text.split(",")
    keys = _keys(pairs)
    slots = [slot for part in gpus.split("+") for slot in _slots(part)]
    if len(slots) > MOST_GPUS:
        raise UserError(f"--machine: {len(slots)} GPUs; a machine has at most {MOST_GPUS}")
    host_bytes = _bytes(keys["host"]) if "host" in keys else memory()[0]
    link = _link(keys["link"], f"link={keys['link']}") if "link" in keys else None
    watts = _watts(keys["watts"]) if "watts" in keys else None
    free_host = int(host_bytes * FREE_HOST_SHARE)
    return Machine(
        system="planned",
        processor="planned",
        cores=CORES_PER_GPU * len(slots),
        memory_bytes=host_bytes,
        free_memory_bytes=free_host,
        free_disk_bytes=None,
        cpu_fast_bf16=False,
        compiles_cpp=True,
        gpus=[
            _planned(index, slot.model, slot.link or link, watts, host_bytes, free_host)
            for index, slot in enumerate(slots)
        ],
    )


def _keys(pairs: list[str]) -> Mapping[str, str]:
    """Returns the keys after the GPUs and their texts."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if key.lower() not in KEYS or not equals:
            raise UserError(f"--machine: no key {key or '(empty)'}; the keys are {', '.join(KEYS.values())}")
        if key.lower() in found:
            raise UserError(f"--machine: {key} is given twice")
        found[key.lower()] = value
    return found


def _slots(part: str) -> list[_Slot]:
    name, at, link = part.partition("@")
    match = re.fullmatch(r"\s*(?:(\d{1,3})\s*[x×*]\s*)?(.*?)\s*", name, re.DOTALL | re.IGNORECASE)
    count = int(match[1] or 1)
    if not count or not match[2]:
        raise UserError(f"--machine: {part.strip() or '(empty)'}: give a count and a name, such as 2x3090+4090")
    model = find(match[2])
    if model.capability is None:
        raise UserError(f"--machine: {model.name}: Tunesmith trains on NVIDIA GPUs only")
    return [_Slot(model, _link(link, part.strip()) if at else None)] * count


def _link(text: str, place: str) -> tuple[int, int]:
    """Returns the PCIe generation and lanes of a text such as 4.0x8."""
    match = re.fullmatch(r"(\d)(?:\.0)?\s*[x×]\s*(\d{1,2})", text.strip(), re.IGNORECASE)
    generation, lanes = map(int, match.groups()) if match else (0, 0)
    if generation not in LANE_BYTES_PER_SECOND or lanes not in (1, 2, 4, 8, MOST_LANES):
        raise UserError(
            f"--machine: {place}: a link is a PCIe generation (1.0 to 6.0) and lanes (x1 to x16), like 4.0x8"
        )
    return generation, lanes


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([gt]i?b)", text, re.IGNORECASE)
    nbytes = int(float(match[1]) * BYTES[match[2].lower()]) if match else 0
    if nbytes < SMALLEST_TOTAL:
        raise UserError(f"--machine: host={text}: give at least 1 GB of memory with its unit, such as host=64GB")
    return nbytes


def _watts(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*W?", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise UserError(f"--machine: watts={text}: give the power limit of each GPU in watts, such as watts=250")
    return float(match[1])


def _planned(
    index: int, model: CatalogueGpu, link: tuple[int, int] | None, watts: float | None, host_bytes: int, free_host: int
) -> Gpu:
    """A link and a power limit beyond those of the GPU make it no faster."""
    total, free = model.memory_bytes, free_host  # unified memory: the GPU uses the machine's
    if total:
        free = int(total * (1 - RESERVED_SHARE)) - DESKTOP_BYTES
    generation, lanes = model.pcie_generation, model.pcie_lanes
    if link and generation and lanes:
        generation, lanes = min(link[0], generation), min(link[1], lanes)
    return Gpu(
        index,
        model.nvml_name or model.name,
        total or host_bytes,
        free,
        model.capability,
        pcie_generation=generation,
        pcie_lanes=lanes,
        most_pcie_generation=model.pcie_generation,
        most_pcie_lanes=model.pcie_lanes,
        power_watts=min(watts or model.power_watts, model.power_watts),
        default_power_watts=model.power_watts,
    )


def read_machine(file: Path) -> Machine:
    """Returns the machine that `tunesmith doctor --json` wrote: its whole output, or only the object `machine`."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; write it with `tunesmith doctor --json`") from None
    except ValueError:
        raise UserError(f"{file}: not JSON; write it with `tunesmith doctor --json`") from None
    if isinstance(found, dict) and "machine" in found:
        found = found["machine"]
    values = _values(Machine, found, file, "")
    gpus = values.get("gpus", [])
    if not isinstance(gpus, list):
        raise UserError(f"{file}: gpus is no list")
    values["gpus"] = [_read_gpu(gpu, file, f"gpus[{index}].") for index, gpu in enumerate(gpus)]
    check_rates(values.get("rates", {}), f"{file}: rates")
    return Machine(**values)


def _read_gpu(found: Any, file: Path, where: str) -> Gpu:
    values = _values(Gpu, found, file, where)
    capability = values["capability"]
    if not isinstance(capability, list) or [type(part) for part in capability] != [int, int]:
        raise UserError(f"{file}: {where}capability is {json.dumps(capability)}; give two numbers, such as [8, 9]")
    return Gpu(**values | {"capability": tuple(capability)})


def _values(kind: type[Machine] | type[Gpu], found: Any, file: Path, where: str) -> dict[str, Any]:
    """Returns the fields of a Machine or Gpu with their types and units checked; other keys are left out."""
    if not isinstance(found, dict):
        raise UserError(f"{file}: {where.rstrip('.') or 'the machine'} is no JSON object")
    values = {}
    for field in fields(kind):
        key, required = field.name, field.default is MISSING and field.default_factory is MISSING
        if key not in found and required:
            raise UserError(f"{file}: {where}{key} is missing")
        if key in found:
            values[key] = found[key]
            _check(field.type, values[key], f"{file}: {where}{key}")
    for total, free in (("memory_bytes", "free_memory_bytes"), ("total_bytes", "free_bytes")):
        if total in values and values[free] > values[total]:
            raise UserError(f"{file}: {where}{free} is more than {total}")
    return values


def _check(kind: Any, value: Any, place: str) -> None:
    """Raises UserError for a value of another type, or for bytes that are certainly in another unit."""
    kinds = get_args(kind)
    if NoneType in kinds:
        if value is None:
            return
        kind = kinds[0]
    if kind is float and type(value) is int:
        kind = int
    article = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}.get(kind)
    if article and type(value) is not kind:
        raise UserError(f"{place} is {json.dumps(value)}; give {article}")
    if kind in (int, float) and value < 0:
        raise UserError(f"{place} is {value}, which is negative")
    if place.endswith("_bytes"):
        least = SMALLEST_TOTAL if place.endswith((".total_bytes", " memory_bytes")) else SMALLEST_FREE
        if value < least and (value or least == SMALLEST_TOTAL):
            raise UserError(f"{place} is {value}, which is less than {size(least).replace('.0', '')}: give bytes")
